"""Pictures into files: what they are called, whether they can be saved, and contact sheets."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ..files import staged_file
from ..recipe import Recipe


def check_writable(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Find out before the work whether its result can be saved."""
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; name a file in it")
    if path.exists() and any(os.path.isfile(one) and path.samefile(one) for one in inputs):
        raise FileExistsError(f"{str(path)!r} is what the picture is made of, and is not replaced by it; name another file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists, and --no-overwrite keeps it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise PermissionError(f"{str(path)!r} cannot be saved: {str(folder)!r} is no folder that may be written to")


def numbered(path: Path, count: int) -> list[Path]:
    """The names of `count` pictures, of which one alone has the name itself."""
    return [path.with_stem(f"{path.stem}-{i}") if count > 1 else path for i in range(count)]


def file_name(number: int, prompt: str) -> str:
    """`0007-a-red-apple.png`: a name that sorts, and says what is to be seen."""
    words = re.sub(r"\W+", "-", prompt.lower())[:40].strip("-_")
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
    with ThreadPoolExecutor(1) as beside:

        def keep(*args: Any) -> None:
            while pending and pending[0].done():  # they end in order
                pending.popleft().result()
            pending.append(beside.submit(save, *args))

        yield keep
    for one in pending:
        one.result()


def _save_plain(picture: Any, path: Path) -> None:
    with staged_file(path) as scratch:
        picture.save(scratch, quality=95)


def save_sheet(pictures: Sequence[Any], path: Path, columns: int | None = None) -> None:
    """Save a contact sheet, in so many columns or about as wide as high, and say so."""
    from ..images.grids import contact_sheet

    sheet = contact_sheet(pictures, columns)
    _save_plain(sheet, path)
    typer.echo(f"saved {path} ({sheet.width}x{sheet.height}, a contact sheet of {len(pictures)})")
