"""How what is typed is checked, and what a shell offers while it is typed."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from typer import Option

from ..additions import parse_adapter
from ..files import local_path
from ..scheduler_names import meaning
from ..words import listing, nearest

DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")
FORMATS = (".png", ".jpg", ".jpeg", ".webp")


def one_of(what: str, allowed: Sequence[str], read: Callable[[Any], str] = str) -> Callable[[Any], Any]:
    """A check of an option, that what `read` sees in it is one of `allowed`."""

    def check(given: Any) -> Any:
        if given is not None and read(given) not in allowed:
            raise typer.BadParameter(f"{what} is {read(given)!r}, but must be {listing(allowed)}{nearest(read(given), allowed)}")
        return given

    return check


def starting(words: Iterable[str], folders: bool = False) -> Callable[[str], list[str]]:
    """What a shell offers for the beginning of a word: those of `words`, and, if wanted, folders that there are."""

    def offered(incomplete: str) -> list[str]:
        found = [word for word in words if word.startswith(incomplete)]
        if folders and (incomplete or not found):
            found += sorted(glob.glob(f"{glob.escape(incomplete)}*/"))
        return found

    return offered


def choice(what: str, allowed: Sequence[str], **named: Any) -> Any:
    """An option that is one of a few words."""
    return Option(callback=one_of(what, allowed), autocompletion=starting(allowed), **named)


def solver(given: str | None) -> str | None:
    """A check of a scheduler's name."""
    try:
        return given and meaning(given) and given
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def device(given: str | None) -> str | None:
    """A check of a device's name; whether there is such a one is found out when PyTorch is there."""
    if given is not None and not re.fullmatch(r"(auto|cpu|mps|cuda(:\d{1,3})?)", given, re.ASCII):
        raise typer.BadParameter(f"device is {given!r:.80}, but must be {listing(DEVICES)}{nearest(given, DEVICES)}")
    return given


def at_home(given: Path | None) -> Path | None:
    """A path whose `~`, which no shell replaces after `--output=`, is the home folder."""
    return given and local_path(given)


def file_name(given: Path | None) -> Path | None:
    """A check of a file to be written: that its extension says a format."""
    given = at_home(given)
    if given is not None and given.is_dir() and not given.suffix:
        raise typer.BadParameter(f"{str(given)!r} is a folder; name a file in it, such as {str(given / 'picture.png')!r}")
    return _format(given)


def text(given: str | None) -> str | None:
    """A check that what is typed is text. Where the locale is not one of UTF-8, what is typed may be in UTF-8 all the same."""
    try:
        if given:
            given.encode()
        return given
    except UnicodeEncodeError:  # bytes that Python could not decode
        pass
    try:
        return os.fsencode(str(given)).decode()
    except UnicodeError:
        raise typer.BadParameter(f"{given!r:.80} is no text in UTF-8") from None


def weighted(given: list[str] | None) -> list[str] | None:
    """A check of adapters and their weights."""
    for one in given or ():
        try:
            parse_adapter(one)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return given


_format = one_of("the file's extension", FORMATS, lambda path: path.suffix.lower())
