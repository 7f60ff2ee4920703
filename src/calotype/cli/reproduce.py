"""`reproduce`: a picture made again by its recipe, and compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..additions import Addition
from ..contents import content_hash, locate
from ..hub import BUNDLED
from ..inputs import find_input
from ..picture_files import read_picture
from ..recipe import Recipe, pixel_hash
from ..words import listing
from .checks import file_name, starting
from .making import choose_device, facts_of, note, place, progress
from .options import DEFAULT_MODEL, Device, Offload, Overwrite
from .process import work_begins
from .saving import check_writable, save


def reproduce(
    picture: Annotated[Path, Argument(help="A PNG that Calotype saved.")],
    output: Annotated[Path | None, Option("--output", "-o", callback=file_name, help="Save the new picture here.")] = None,
    image: Annotated[Path | None, Option(help="The picture it was made of, if that is not beside it under its old name.")] = None,
    mask: Annotated[Path | None, Option(help="The same for its mask.")] = None,
    depth_map: Annotated[Path | None, Option(help="The same for its depth map.")] = None,
    model: Annotated[str | None, Option(autocompletion=starting(BUNDLED, folders=True), help=(
        "The checkpoint, where the recipe's own is not to be found by its name."))] = None,
    lora: Annotated[list[Path] | None, Option(exists=True, help=(
        "A LoRA adapter that it was made with, if that is not beside it under its old name. May be repeated."))] = None,
    embedding: Annotated[list[Path] | None, Option(exists=True, help="The same for a learned word.")] = None,
    device: Device = None,
    offload: Offload = None,
    anyway: Annotated[bool, Option("--anyway", help="Go on where the recipe cannot be met.")] = False,
    allow_download: Annotated[bool, Option("--allow-download", help="Fetch from the Hub what the picture names.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Make a picture again by its recipe, and compare. Ends with 0 if every pixel is the same, else with 1."""
    recipe = Recipe.from_png(picture, anyway)
    was = read_picture(picture, formats=("PNG",)).convert("RGB")
    if pixel_hash(was) != recipe.pixels:
        note(f"{str(picture)!r} was changed after it was made: its pixels are not those that the recipe names")
    given = {role: path for role, path in {"image": image, "mask": mask, "depth_map": depth_map}.items() if path}
    if output:
        sources = [given.get(role, picture.parent / noted["file"]) for role, noted in recipe.inputs.items()]
        check_writable([output], overwrite, sources)
    inputs = _find_inputs(recipe, picture.parent, given, anyway)
    device = choose_device(device or ("cpu" if recipe.device == "cpu" and not offload else None), offload)
    additions, unlike = recipe.additions({"adapter": lora or (), "embedding": embedding or ()}, picture.parent, allow_download)
    for one in unlike:
        _forgive(one, anyway)
    pipeline, facts = _load(recipe, model, allow_download, anyway, additions)
    place(pipeline, device, offload)
    facts["device"] = pipeline.device.type
    _tell_differences(recipe, facts)
    work_begins()
    with progress(picture.name) as on_step:
        again = recipe.pictures(pipeline, on_step, inputs)[recipe.index]
    if output:
        save(replace(recipe, **facts), again, output)
    _compare(picture, was, again)


def _find_inputs(recipe: Recipe, beside: Path, given: dict[str, Path], anyway: bool) -> dict[str, Any]:
    if unasked := [f"--{role.replace('_', '-')}" for role in given if role not in recipe.inputs]:
        of = f"of {listing(recipe.inputs)}" if recipe.inputs else "of no other"
        raise ValueError(f"{listing(unasked)} is given, but the picture was made {of} ({recipe.task})")
    inputs = {}
    for role, noted in recipe.inputs.items():
        inputs[role], unlike = find_input(role, noted, beside, given.get(role))
        if unlike:
            _forgive(unlike, anyway)
    return inputs


def _load(
    recipe: Recipe, model: str | None, allow_download: bool, anyway: bool, additions: dict[str, list[Addition]]
) -> tuple[Any, dict[str, Any]]:
    """The recipe's pipeline, and what a recipe would say of it; what is not as in the recipe is said, or an error."""
    try:
        pipeline = recipe.load(model, allow_download, anyway, additions)
    except FileNotFoundError as error:
        if not anyway or model:
            raise FileNotFoundError(f"{error}; --model names another, --allow-download asks the Hub") from None
        note(f"{error}; {DEFAULT_MODEL} is used for it")
        model = DEFAULT_MODEL
        pipeline = recipe.load(model, anyway=True, additions=additions)
    name, revision = model or recipe.model, None if model else recipe.revision
    content = content_hash(locate(name, revision)[1], recipe.variant)
    facts = facts_of(pipeline, name, revision, recipe.variant, content)
    if content != recipe.model_hash:
        _forgive(f"{name!r} is not the model that the picture was made with: the hash of its content is {content[:12]}…, "
                 f"and the recipe says {recipe.model_hash[:12]}…", anyway)
    return pipeline, facts


def _tell_differences(recipe: Recipe, facts: dict[str, Any]) -> None:
    was = {**recipe.versions, "device": recipe.device, "scheduler": recipe.scheduler}
    for what, now in {**facts["versions"], "device": facts["device"], "scheduler": facts["scheduler"]}.items():
        if was.get(what) != now:
            note(f"the recipe's {what} is {was.get(what)!r:.80}, and here it is {now!r}")


def _forgive(unlike: str, anyway: bool) -> None:
    if not anyway:
        raise ValueError(f"{unlike}; --anyway takes it all the same")
    note(unlike)


def _compare(path: Path, was: Any, again: Any) -> None:
    import numpy as np

    if again.size != was.size:
        typer.echo(f"different: the new picture has {again.size} pixels, and {str(path)!r} has {was.size}")
    elif pixel_hash(again) == pixel_hash(was):
        return typer.echo(f"identical: every pixel (sha256 {pixel_hash(again)[:12]}…)")
    else:
        off = abs(np.asarray(again, np.int16) - np.asarray(was, np.int16))
        typer.echo(f"different: off by at most {off.max()} of 255 grey levels, on {(off > 0).mean():.2%} of the values")
    raise typer.Exit(1)
