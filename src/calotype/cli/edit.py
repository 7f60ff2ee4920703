"""`edit`, `inpaint`, `depth`: pictures made of a picture and a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..inputs import note_input, read_input
from ..tasks import whole_size
from .checks import text
from .making import load, make, plan
from .options import Saving, Size, Source, Strength, TextSource, Wishes

_File = {"exists": True, "dir_okay": False, "show_default": False}
Photo = Annotated[Path, Argument(help="The picture that is changed.", **_File)]
Prompt = Annotated[str, Argument(callback=text, help="What the new picture should show.")]


def edit(
    photo: Photo, prompt: Prompt, strength: Strength = 0.8, *, wishes: Wishes, size: Size, saving: Saving, source: TextSource,
) -> None:
    """Change a picture by a text."""
    _make("image-to-image", {"image": photo}, prompt, wishes, size, saving, source, strength=strength)


def inpaint(
    photo: Photo,
    mask: Annotated[Path, Argument(help="A picture of the same size: white is made anew, black is kept.", **_File)],
    prompt: Prompt,
    strength: Strength = 1.0,
    padding: Annotated[int | None, Option(min=0, max=8192, help=(
        "Work on the mask's surroundings, so many pixels around it, enlarged.  [default: on the whole picture]"))] = None,
    blur: Annotated[int, Option(min=0, max=1024, help="Soften the mask's edge, by a Gaussian of so many pixels.")] = 0,
    overlay: Annotated[bool, Option(help="Put what is outside the mask back, pixel for pixel.")] = True,
    *, wishes: Wishes, size: Size, saving: Saving, source: TextSource,
) -> None:
    """Make a part of a picture anew."""
    if padding is not None and not overlay:
        raise typer.BadParameter("--padding works on a part, which is put into the picture: it has no --no-overlay")
    _make("inpainting", {"image": photo, "mask": mask}, prompt, wishes, size, saving, source, strength=strength,
          padding=padding, blur=blur, overlay=overlay)


def depth(
    photo: Photo,
    prompt: Prompt,
    depth_map: Annotated[Path | None, Option(help=(
        "A grey picture, bright where it is near.  [default: estimated by the checkpoint's model]"), **_File)] = None,
    strength: Strength = 0.8,
    *, wishes: Wishes, size: Size, saving: Saving, source: TextSource,
) -> None:
    """Change a picture by a text, and keep its depth."""
    files = {"image": photo, **({"depth_map": depth_map} if depth_map else {})}
    _make("depth-to-image", files, prompt, wishes, size, saving, source, strength=strength)


def _make(
    task: str, files: dict[str, Path], prompt: str, wishes: Wishes, size: Size, saving: Saving, source: Source,
    **facts: Any,
) -> None:
    if not 0 < facts["strength"] <= 1:
        raise typer.BadParameter(f"--strength is {facts['strength']:g}, but must be above 0 and at most 1")
    wanted = plan(saving, files["image"].stem, lambda seed: wishes.read(prompt, seed), [*files.values()])
    inputs = {role: read_input(path, role) for role, path in files.items()}
    _check_mask(files, inputs)
    pipeline, known = load(source, task)
    natural = pipeline.picture_size() if facts.get("padding") is not None else whole_size(pipeline, inputs["image"])
    height, width = pipeline.picture_size(size.height or natural[0], size.width or natural[1])
    noted = {role: note_input(path, inputs[role]) for role, path in files.items()}
    make(wanted, pipeline, saving, inputs, height=height, width=width, inputs=noted, **facts, **known | wishes.facts())


def _check_mask(files: dict[str, Path], inputs: dict[str, Any]) -> None:
    if "mask" in inputs:
        image, mask = inputs["image"], inputs["mask"]
        if mask.size != image.size:
            raise ValueError(f"{str(files['mask'])!r} has {mask.width} x {mask.height} pixels, but a mask must have "
                             f"those of the picture, {image.width} x {image.height}")
        if mask.getbbox() is None:
            raise ValueError(f"{str(files['mask'])!r} is black everywhere: nothing would be made anew. White is, black is kept")
