"""`generate`: pictures of texts. `sample`: pictures of nothing in particular."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..recipe import Recipe
from ..tasks import native_size
from ..texts import prompts_in
from .checks import at_home, text
from .making import Wanted, check_all, load, make, note, plan
from .options import Saving, Size, Source, Steps, TextSource, Wishes
from .saving import file_name, numbered


def generate(
    prompt: Annotated[str | None, Argument(callback=text, help="What the picture should show.", show_default=False)] = None,
    prompts: Annotated[Path | None, Option(exists=True, dir_okay=False, help=(
        "A file of prompts, one a line; blank lines and those that begin with # are skipped."))] = None,
    out_dir: Annotated[Path | None, Option(callback=at_home, file_okay=False, help=(
        "For the pictures of --prompts: 0001-a-red-apple.png, … What exists is skipped, but for --overwrite."))] = None,
    *, wishes: Wishes, size: Size, saving: Saving, source: TextSource,
) -> None:
    """Make pictures of a text, or of all texts in a file."""
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("a prompt is needed: what the picture should show, or --prompts FILE" if prompt is None else
                                 "a prompt and --prompts exclude each other")
    if prompts is None:
        if out_dir is not None:
            raise typer.BadParameter("--out-dir goes with --prompts; -o names the file of one prompt's picture")
        wanted, columns = plan(saving, "calotype", lambda seed: wishes.read(str(prompt), seed)), None
    else:
        if saving.output or not (out_dir or saving.grid):
            raise typer.BadParameter("the pictures of --prompts go into --out-dir FOLDER, or onto --grid FILE, or both; "
                                     "-o is for one prompt")
        wanted = _plan_all(prompts_in(prompts), out_dir, saving, wishes, source)
        columns = saving.count if saving.count > 1 else None
        sheet_there = saving.grid is None or (saving.grid.is_file() and not saving.overwrite)
        if all(one.there for one in wanted) and sheet_there:
            return typer.echo(f"nothing to do: all {len(wanted)} pictures are there")
        check_all([one.path for one in wanted if not one.there], saving)
    pipeline, facts = load(source, "text-to-image")
    height, width = pipeline.picture_size(size.height, size.width)
    make(wanted, pipeline, saving, columns=columns, height=height, width=width, **facts | wishes.facts())


def _plan_all(
    prompts: list[str], folder: Path | None, saving: Saving, wishes: Wishes, source: Source
) -> list[Wanted]:
    """The pictures of all prompts; every prompt has the same seeds. What is there is said."""
    wanted = []
    for number, prompt in enumerate(prompts, 1):
        paths = numbered(folder / file_name(number, prompt), saving.count) if folder else [None] * saving.count
        for i, path in enumerate(paths):
            seed = saving.first_seed + i
            there = path is not None and path.exists() and not saving.overwrite
            if path and there:
                typer.echo(f"skipped {path}: it exists")
                _compare(path, prompt, wishes, source)
            chosen, negative = wishes.read(prompt, seed)
            wanted.append(Wanted(chosen, seed, path, there, negative))
    return wanted


def _compare(path: Path, prompt: str, wishes: Wishes, source: Source) -> None:
    """Say if a picture that is there, and stays, is not what would be made now."""
    try:
        recipe = Recipe.from_png(path)
    except (OSError, ValueError):
        return note(f"{path} is not a picture as Calotype saves it")
    chosen, negative = wishes.read(prompt, recipe.seed)
    facts = {"prompt": chosen, "negative_prompt": negative, **wishes.facts(), **source.facts()}
    if other := [name.rstrip("s") if isinstance(value, list) else name for name, value in facts.items()
                 if not _says(getattr(recipe, name), value)]:
        note(f"{path} was made with another {' and '.join(other)}; --overwrite makes it anew")


def _says(recorded: Any, wanted: Any) -> bool:
    """Whether a recipe says what is wanted; of adapters and embeddings it says more, which is not compared."""
    if isinstance(wanted, list):
        return len(recorded) == len(wanted) and all(map(lambda one, told: one.items() >= told.items(), recorded, wanted))
    return bool(recorded == wanted)


def sample(
    steps: Steps = None, *, saving: Saving, source: Source,
) -> None:
    """Make pictures with an unconditional model: no text, just what it has learned."""
    wanted = plan(saving, Path(source.model).name or "sample")
    pipeline, facts = load(source, "unconditional")
    height, width = native_size(pipeline)
    given = {} if steps is None else {"steps": steps}
    make(wanted, pipeline, saving, height=height, width=width, **facts | given)
