"""The command line: `calotype generate | reproduce | info | schedulers`.

Nothing heavy is imported before a command needs it: help, and errors in what was typed, come at once.
"""

from __future__ import annotations

import gc
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from . import __version__
from .contents import content_hash, describe, locate
from .files import staged_file, to_json
from .hub import Source
from .recipe import DTYPES, Recipe, pixel_hash, versions
from .registry import SCHEDULERS, find
from .words import listing, nearest, some

FORMATS = (".png", ".jpg", ".jpeg", ".webp")
_MODEL = "calotype/emoji"
_MOST_TOGETHER, _PIXELS_TOGETHER = 4, 4 * 512 * 512  # pictures in a batch, and pixels in all of them


class _Commands(TyperGroup):
    """Commands whose errors are one paragraph, unless `--debug` asks for the traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("stopped; nothing is half-written", err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            own = hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError))  # Typer's affair
            if own or ctx.params.get("debug"):
                raise
            typer.echo(f"{typer.style('error:', fg='red', bold=True)} {_explain(error)}", err=True)
            raise typer.Exit(1) from None


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {str(error.filename)!r}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"not enough memory; a smaller --height and --width or --dtype float16 need less ({error})"
    if isinstance(error, (ValueError, TypeError, OSError, RuntimeError)):
        return str(error)
    return f"{type(error).__name__}: {error} (this looks like a fault of Calotype; --debug shows where)"


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


def main() -> None:
    """What the command `calotype` runs. It leaves at once: to take a process with torch apart needs up to a second."""
    gc.set_threshold(200_000)  # imports make a million objects, and no garbage
    try:
        app(prog_name="calotype")
    except SystemExit as end:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"calotype {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    version: Annotated[bool, Option("--version", is_eager=True, callback=_show_version, help="Show the version.")] = False,
    debug: Annotated[bool, Option("--debug", envvar="CALOTYPE_DEBUG", help="Show tracebacks of errors.")] = False,
) -> None:
    """Pictures by diffusion models. Each command has its own --help."""


# -- what was typed -------------------------------------------------------------------------------------------------------


def _one_of(what: str, allowed: Sequence[str], read: Callable[[Any], str] = str) -> Callable[[Any], Any]:
    """A check of an option, that what `read` sees in it is one of `allowed`."""

    def check(given: Any) -> Any:
        if given is not None and read(given) not in allowed:
            raise typer.BadParameter(f"{what} is {read(given)!r}, but must be {listing(allowed)}{nearest(read(given), allowed)}")
        return given

    return check


def _check_writable(path: Path, overwrite: bool) -> None:
    """Find out before the work whether its result can be saved."""
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists, and --no-overwrite keeps it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PermissionError(f"{str(path)!r} cannot be saved: {str(folder)!r} is no folder that may be written to")


def _choose_device(wanted: str | None) -> str:
    """`wanted`, which may be `"cuda:1"`, or the best that there is."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [device for device, usable in there.items() if usable]
    if wanted is not None and wanted.partition(":")[0] not in here:
        raise ValueError(f"no device {wanted!r:.80} here: there is {listing(here)}{nearest(wanted, here)}")
    return wanted or here[0]


_saved_as = _one_of("the file's extension", FORMATS, lambda path: path.suffix.lower())
_CHECKPOINT = "A bundled name, a folder, or a Hub repository."
Device = Annotated[str | None, Option(help="cuda, cuda:1, mps or cpu.  [default: the best there is]")]
Overwrite = Annotated[bool, Option(help="Replace files that exist.")]
Variant = Annotated[str | None, Option(help="The weights of this variant (fp16) where there are such.")]
Revision = Annotated[str | None, Option(help="Branch, tag or commit of a Hub repository.")]


def _facts(pipeline: Any, model: str, revision: str | None, variant: str | None, content: str) -> dict[str, Any]:
    """What a recipe says of the pipeline that follows it. The path of a folder is nobody's business."""
    kind, root = locate(model, revision)
    config = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    return {"model": root.resolve().name if kind == "folder" else model, "model_hash": content, "variant": variant,
            "revision": root.name if kind == "Hub cache" else None, "dtype": str(pipeline.dtype).removeprefix("torch."),
            "scheduler": type(pipeline.scheduler).__name__, "scheduler_config": json.loads(to_json(config)),
            "device": pipeline.device.type, "versions": versions()}


# -- commands ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], object]]:
    """A progress bar on a terminal, and nothing elsewhere; to be told the steps done and how many there are."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _save(recipe: Recipe, picture: Any, path: Path, about: str = "") -> None:
    if path.suffix.lower() == ".png":
        recipe.save_png(picture, path)
    else:
        with staged_file(path) as scratch:
            picture.save(scratch, quality=95)
        about += ", without its recipe: only a PNG keeps one"
    typer.echo(f"saved {path} ({picture.width}x{picture.height}, seed {recipe.seed}{about})")


@app.command()
def generate(
    prompt: Annotated[str, Argument(help="What the picture should show.")],
    output: Annotated[Path | None, Option("--output", "-o", callback=_saved_as, help=(
        f"Where to save it: {', '.join(FORMATS)}. PNG keeps the recipe.  [default: calotype-SEED.png]"))] = None,
    model: Annotated[str, Option(help=_CHECKPOINT)] = _MODEL,
    scheduler: Annotated[str | None, Option(
        callback=_one_of("scheduler", SCHEDULERS), help="Another solver; see `calotype schedulers`.")] = None,
    steps: Annotated[int, Option(min=1, max=10_000, help="More is slower and, up to a point, better.")] = 50,
    guidance: Annotated[float, Option(help="How much the prompt counts; up to 1 not at all, which is faster.")] = 7.5,
    negative: Annotated[str, Option(help="What should not be seen.")] = "",
    seed: Annotated[int | None, Option(min=0, max=2**52, help="Picture i has the seed SEED + i.  [default: random]")] = None,
    count: Annotated[int, Option(min=1, help="How many pictures: NAME-0.png, NAME-1.png, …")] = 1,
    height: Annotated[int | None, Option(min=1, help="In pixels.  [default: the model's]")] = None,
    width: Annotated[int | None, Option(min=1, help="In pixels.  [default: the model's]")] = None,
    device: Device = None,
    dtype: Annotated[str | None, Option(callback=_one_of("dtype", DTYPES), help=(
        f"{', '.join(DTYPES)}.  [default: float16 on cuda, else float32]"))] = None,
    variant: Variant = None,
    revision: Revision = None,
    overwrite: Overwrite = True,
) -> None:
    """Make pictures of a text."""
    from concurrent.futures import ThreadPoolExecutor

    start = time.perf_counter()
    seed = secrets.randbelow(2**32) if seed is None else seed
    output = output or Path(f"calotype-{seed}.png")
    paths = [output.with_stem(f"{output.stem}-{i}") if count > 1 else output for i in range(count)]
    for path in paths:
        _check_writable(path, overwrite)
    root = Source(model).local
    with ThreadPoolExecutor(1) as beside:
        content = beside.submit(content_hash, root, variant) if root else None  # while torch is imported
        import torch

        from .pipelines.base import DiffusionPipeline

        device = _choose_device(device)
        dtype = dtype or ("float16" if device.startswith("cuda") else "float32")
        pipeline: Any = DiffusionPipeline.from_pretrained(
            model, revision=revision, variant=variant, torch_dtype=getattr(torch, dtype)).to(device)
        if not hasattr(pipeline, "encode_prompt"):
            raise ValueError(f"{model!r} is a {type(pipeline).__name__}, which makes no pictures of a text")
        if scheduler:
            pipeline.scheduler = find(scheduler).from_config(pipeline.scheduler.config)
        content = content or beside.submit(content_hash, locate(model, revision)[1], variant)
    pipeline.set_progress_bar_config(disable=True)
    height, width = pipeline.picture_size(height, width)
    facts = _facts(pipeline, model, revision, variant, content.result())
    most = max(1, min(_MOST_TOGETHER, _PIXELS_TOGETHER // (height * width)))
    for first in range(0, count, most):
        here = paths[first : first + most]
        recipe = Recipe(prompt=prompt, negative_prompt=negative, seed=seed + first, batch=len(here), steps=steps,
                        guidance=guidance, height=height, width=width, **facts)
        with _progress(some([path.name for path in here], 2)) as on_step:
            pictures = recipe.pictures(pipeline, on_step)
        for i, (picture, path) in enumerate(zip(pictures, here, strict=True)):
            _save(replace(recipe, seed=seed + first + i, index=i), picture, path, f", {time.perf_counter() - start:.1f} s")


@app.command()
def reproduce(
    picture: Annotated[Path, Argument(help="A PNG that Calotype saved.")],
    output: Annotated[Path | None, Option("--output", "-o", callback=_saved_as, help="Save the new picture here.")] = None,
    model: Annotated[str | None, Option(help="The checkpoint, where the recipe's own is not to be found by its name.")] = None,
    device: Device = None,
    anyway: Annotated[bool, Option("--anyway", help="Go on where the recipe cannot be met.")] = False,
    allow_download: Annotated[bool, Option("--allow-download", help="Fetch from the Hub what the picture names.")] = False,
    overwrite: Overwrite = True,
) -> None:
    """Make a picture again by its recipe, and compare. Ends with 0 if every pixel is the same, else with 1."""
    import numpy as np
    from PIL import Image

    def note(text: str) -> None:
        typer.echo(f"note: {text}", err=True)

    recipe = Recipe.from_png(picture, anyway)
    with Image.open(picture) as file:
        given = file.convert("RGB")
    if pixel_hash(given) != recipe.pixels:
        note(f"{str(picture)!r} was changed after it was made: its pixels are not those that the recipe names")
    if output:
        _check_writable(output, overwrite)
    device = _choose_device(device or ("cpu" if recipe.device == "cpu" else None))
    try:
        pipeline = recipe.load(model, allow_download, anyway)
    except FileNotFoundError as error:
        if not anyway or model:
            raise FileNotFoundError(f"{error}; --model names another, --allow-download asks the Hub") from None
        note(f"{error}; {_MODEL} is used for it")
        model = _MODEL
        pipeline = recipe.load(model, anyway=True)
    name, revision = model or recipe.model, None if model else recipe.revision
    facts = _facts(pipeline.to(device), name, revision, recipe.variant,
                   content_hash(locate(name, revision)[1], recipe.variant))
    if facts["model_hash"] != recipe.model_hash:
        unlike = (f"{name!r} is not the model that the picture was made with: the hash of its content is "
                  f"{facts['model_hash'][:12]}…, and the recipe says {recipe.model_hash[:12]}…")
        if not anyway:
            raise ValueError(f"{unlike}; --anyway takes it all the same")
        note(unlike)
    was = {**recipe.versions, "device": recipe.device, "scheduler": recipe.scheduler}
    for what, now in {**facts["versions"], "device": facts["device"], "scheduler": facts["scheduler"]}.items():
        if was.get(what) != now:
            note(f"the recipe's {what} is {was.get(what)!r:.80}, and here it is {now!r}")
    pipeline.set_progress_bar_config(disable=True)
    with _progress(picture.name) as on_step:
        again = recipe.pictures(pipeline, on_step)[recipe.index]
    if output:
        _save(replace(recipe, **facts), again, output)
    if again.size != given.size:
        typer.echo(f"different: the new picture has {again.size} pixels, and {str(picture)!r} has {given.size}")
    elif pixel_hash(again) == pixel_hash(given):
        return typer.echo(f"identical: every pixel (sha256 {pixel_hash(again)[:12]}…)")
    else:
        off = abs(np.asarray(again, np.int16) - np.asarray(given, np.int16))
        typer.echo(f"different: off by at most {off.max()} of 255 grey levels, on {(off > 0).mean():.2%} of the values")
    raise typer.Exit(1)


@app.command()
def info(
    model: Annotated[str, Argument(help=_CHECKPOINT)],
    as_json: Annotated[bool, Option("--json", help="The same as JSON.")] = False,
    variant: Variant = None,
    revision: Revision = None,
) -> None:
    """Show what a checkpoint on this machine is made of, without loading it."""
    facts = describe(model, revision, variant)
    if as_json:
        return typer.echo(json.dumps(facts, indent=2))
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("component", "class", "parameters", "dtypes", "size", "files", box=None, header_style="bold", pad_edge=False)
    for part in facts["components"]:
        files = some([Path(file).name for file in part["files"]], 3) if part["used"] else "unknown class; left out"
        table.add_row(part["name"] or "itself", part["class"], f"{part['parameters']:,}" if part["parameters"] else "",
                      ", ".join(part["dtypes"]), f"{part['bytes'] / 1e6:,.1f} MB", escape(files))
    console = Console(highlight=False, soft_wrap=True)
    console.print(escape(f"{model} is a {facts['class']} ({facts['where']}: {facts['folder']})"))
    console.print(table)
    if facts["picture_size"]:
        console.print("picture size: {} x {}".format(*facts["picture_size"]))
    if facts["scheduler"]:
        console.print("scheduler: " + escape(", ".join(f"{n.removeprefix('_')} {v}" for n, v in facts["scheduler"].items())))
    console.print(f"content hash: {facts['content_hash']}")


@app.command()
def schedulers() -> None:
    """List the solvers that `generate --scheduler` takes."""
    for name in SCHEDULERS:
        typer.echo(f"{name:<34}{(find(name).__doc__ or '').strip().splitlines()[0]}")


if __name__ == "__main__":
    main()
