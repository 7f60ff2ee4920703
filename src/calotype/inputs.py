"""The pictures that a picture is made of: read from files, known by their content, and found again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import local_path
from .picture_files import read_picture
from .words import check_choice

ROLES = {"image": "RGB", "mask": "L", "depth_map": "F"}
"""What an input may be, and the mode of the PIL image that it is read as."""


def read_input(path: str | os.PathLike[str], role: str = "image") -> Any:
    """A picture in a file as a PIL image that hides nothing: upright, and without transparency, palettes or ink.

    Args:
        path: see `picture_files` for what is read.
        role: `"image"` becomes RGB, what is transparent laid on white; `"mask"` grey, on black; `"depth_map"` floats, all
            16 bits of them where there are so many.

    Raises:
        ValueError: no picture, or no depth map, since it is the same everywhere; names the file. OSError: it cannot be read.
    """
    check_choice("an input", role, ROLES)
    picture = read_picture(path, upright=True)
    try:
        return _depth(picture) if role == "depth_map" else _eight_bits(picture, role)
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from None


def _eight_bits(picture: Any, role: str) -> Any:
    from .images.reading import plain, plain_mask

    return (plain_mask(picture) if role == "mask" else plain(picture)).convert(ROLES[role])


def _depth(picture: Any) -> Any:
    import numpy as np
    from PIL import Image

    from .images.reading import plain

    deep = picture.mode in ("I", "F") or picture.mode.startswith("I;16")
    depth = np.asarray(picture if deep else plain(picture, "black").convert("L"), np.float32)
    if not np.isfinite(depth).all() or depth.min() == depth.max():
        raise ValueError("a depth map with values that are not finite, or all the same, shows no depth")
    return Image.fromarray(depth)


def input_hash(picture: Any) -> str:
    """sha256 of the pixels of a picture as `read_input` gives it, row by row; of RGB it is `recipe.pixel_hash`."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def note_input(path: str | os.PathLike[str], picture: Any) -> dict[str, str]:
    """What a recipe keeps of an input: its file's name, without the folder, and its hash."""
    return {"file": Path(path).name, "pixels": input_hash(picture)}


def find_input(
    role: str, noted: Mapping[str, str], beside: str | os.PathLike[str], given: str | os.PathLike[str] | None = None
) -> tuple[Any, str]:
    """The input that a recipe notes: in the file `given`, else in the one of its name in the folder `beside`.

    Returns:
        The picture, and in what it differs from what the recipe notes: nothing, or a sentence.

    Raises:
        FileNotFoundError: there is none; says how to give it.
    """
    option, name = f"--{role.replace('_', '-')}", noted["file"]
    plain_name = Path(name).name == name and name.isprintable() and "\\" not in name  # it comes with somebody's picture
    path = local_path(given) if given else local_path(beside) / name if plain_name else None
    if path is None or not os.path.isfile(path):
        where = f"{str(given)!r} is no file" if given else f"no file {name!r:.80} lies beside it"
        raise FileNotFoundError(f"the picture was made of another ({role}, {name!r:.80}), and {where}: "
                                f"say where it is with {option} FILE")
    picture = read_input(path, role)
    found = input_hash(picture)
    if found == noted["pixels"]:
        return picture, ""
    return picture, (f"{str(path)!r} is not the {role} that the picture was made of: the hash of its pixels is {found[:12]}…, "
                     f"and the recipe says {noted['pixels'][:12]}… ({option} FILE names another)")
