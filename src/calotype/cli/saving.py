"""Pictures into files: what they are called, whether they can be saved, and contact sheets."""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer

from ..files import staged_file
from ..recipe import Recipe

_MOST_PIXELS = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}  # each way, of what Pillow writes


def check_writable(paths: Sequence[Path], overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Find out before the work whether its results can be saved; what exists is only replaced with `overwrite`."""
    inputs = [one for one in inputs if os.path.isfile(one)]
    for path in paths:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()  # a name that is too long, or a folder that may not be entered, is an error
        if path.is_dir():
            raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it")
        if path.exists() and any(path.samefile(one) for one in inputs):
            raise FileExistsError(
                f"{str(path)!r} is what the picture is made of, and is not replaced by it; name another file")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise PermissionError(f"{str(path)!r} cannot be saved: {str(folder)!r} is no folder that may be written to")
    there = [path for path in paths if os.path.lexists(path)]
    if there and not overwrite:
        more = f", and so do {len(there) - 1} more" if len(there) > 1 else ""
        raise FileExistsError(f"{str(there[0])!r} exists{more}; name another file, or have it replaced by --overwrite (-f)")


def check_fits(path: Path, width: int, height: int) -> None:
    """Find out before the work whether a picture is too large for its format."""
    most = _MOST_PIXELS.get(path.suffix.lower(), width + height)
    if max(width, height) > most:
        raise ValueError(f"{str(path)!r} would have {width} x {height} pixels, and {path.suffix} has at most {most} each way; "
                         "a .png has no such bound")


def numbered(path: Path, count: int) -> list[Path]:
    """The names of `count` pictures, of which one alone has the name itself."""
    return [path.with_stem(f"{path.stem}-{i}") if count > 1 else path for i in range(count)]


def file_name(number: int, prompt: str) -> str:
    """`0007-a-red-apple.png`: a name that sorts, says what is to be seen, and is short enough for any file system."""
    encoding = sys.getfilesystemencoding()
    words = re.sub(r"\W+", "-", prompt.lower().encode(encoding, "replace").decode(encoding))[:40].strip("-_")
    return f"{number:04}-{words}.png" if words else f"{number:04}.png"


def save(recipe: Recipe, picture: Any, path: Path, about: str = "") -> None:
    """Save a picture, with its recipe where the file can keep one, and say so."""
    if path.suffix.lower() == ".png":
        recipe.save_png(picture, path)
    else:
        _save_plain(picture, path)
        about += ", without its recipe: only a PNG keeps one"
    typer.echo(f"saved {path} ({picture.width}x{picture.height}, seed {recipe.seed}{about})")


@contextmanager
def saved_beside() -> Iterator[Callable[..., None]]:
    """To be called as `save`, which then works beside what comes next: a large PNG takes as long as some steps on a GPU.

    At the end of the block all is saved, also after an error in it; what cannot be saved is an error at the next call, or there.
    """
    pending: deque[Future[None]] = deque()
    beside = ThreadPoolExecutor(1)

    def keep(*args: Any) -> None:
        while pending and pending[0].done():  # they end in order
            pending.popleft().result()
        pending.append(beside.submit(save, *args))

    try:
        yield keep
        for one in pending:
            one.result()
    finally:
        beside.shutdown()  # which waits; so a first Ctrl-C while the last pictures are saved does not lose them


def _save_plain(picture: Any, path: Path) -> None:
    with staged_file(path) as scratch:
        picture.save(scratch, quality=95)


def save_sheet(pictures: Sequence[Any], path: Path, columns: int | None = None) -> None:
    """Save a contact sheet, in so many columns or about as wide as high, and say so."""
    from ..images.grids import contact_sheet

    sheet = contact_sheet(pictures, columns)
    check_fits(path, *sheet.size)
    _save_plain(sheet, path)
    typer.echo(f"saved {path} ({sheet.width}x{sheet.height}, a contact sheet of {len(pictures)})")
