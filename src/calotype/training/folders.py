"""Folders of pictures, with their captions in `metadata.jsonl`, in `metadata.csv` or beside each picture."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import local_path
from ..made import data_lies_in, is_of_a_run, is_run, noted_in
from ..texts import text_lines
from ..words import nearest, some
from .entries import Entry, as_captions, check_column
from .tables import table_rows

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
METADATA = ("metadata.jsonl", "metadata.csv")
_OTHERS = (".gif", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jfif", ".jxl", ".jp2", ".ppm", ".tga", ".svg", ".psd", ".dng")
_log = logging.getLogger(__name__)


@dataclass
class Found:
    """The files in a folder and all folders in it, in the order of their names, whatever the file system's.

    Hidden files are not among them, nor is what Calotype made there, and links to folders are not followed.

    Attributes:
        pictures: files that end as pictures do. tables: of metadata. texts: the `.txt` files.
        left_out: what else looks like data, by what it is, and how often it is there.
    """

    folder: Path
    pictures: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def told_left_out(self) -> str:
        """What is left out, in words; nothing if nothing is."""
        return some([f"{count} {what}" for what, count in self.left_out.items()])


def find_files(folder: str | os.PathLike[str], not_in: Iterable[str | os.PathLike[str]] = ()) -> Found:
    """The files in a folder.

    Args:
        not_in: folders that are no data, wherever they lie: a run's own.

    Raises:
        FileNotFoundError: there is no such folder. PermissionError: it may not be read.
    """
    folder = local_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{str(folder)!r} is " + ("a file" if folder.exists() else "not there")
                                + "; a folder of pictures is needed")
    found = Found(folder)
    files = sorted(_walk(folder, found.left_out, {os.path.realpath(one) for one in not_in}),
                   key=lambda path: path.relative_to(folder).parts)
    for path in files:
        ending = path.suffix.lower()
        if ending in EXTENSIONS:
            found.pictures.append(path)
        elif path.name.lower() in METADATA:
            found.tables.append(path)
        elif ending == ".txt":
            found.texts.append(path)
        elif ending in _OTHERS:
            found.left_out[f"{ending} files, which are not read"] += 1
    return found


def _walk(top: Path, left_out: Counter[str], not_in: set[str]) -> Iterator[Path]:
    """The files in a folder, none of them hidden, in any order. What is in it and looks like data, but is none, is counted."""
    folders = [top]
    while folders:
        folder = folders.pop()
        of_a_run = is_run(folder) or os.path.realpath(folder) in not_in
        made = noted_in(folder) if folder != top else set()
        for path in _listing(folder, top, left_out):
            if path.is_file():
                if path.name not in made:
                    yield path
                else:
                    left_out["pictures made by Calotype"] += 1
            elif path.is_symlink():
                left_out["links to folders" if path.is_dir() else "links that lead nowhere"] += 1
            elif not path.is_dir():
                continue
            elif (of_a_run and is_of_a_run(path.name)) or os.path.realpath(path) in not_in or (
                    is_run(path) and not data_lies_in(path)):
                left_out["folders of training runs"] += 1
            else:
                folders.append(path)


def _listing(folder: Path, top: Path, left_out: Counter[str]) -> list[Path]:
    """What is in a folder and not hidden."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except PermissionError:
        if folder == top:
            raise
        left_out["folders that may not be read"] += 1
        return []


def folder_entries(
    folder: str | os.PathLike[str], caption_column: str | None = "text", not_in: Iterable[str | os.PathLike[str]] = ()
) -> list[Entry]:
    """Entries of the pictures in a folder and all folders in it, in the order of their names, whatever the file system's.

    A `metadata.jsonl` (an object a line) or `metadata.csv` names pictures by `file_name`, relative to its own folder, and
    says what else is known of them; then those alone are read. Otherwise every picture is, and its caption is what
    `NAME.txt` beside `NAME.png` says: each line that is not empty is a caption. Hidden files and folders are left alone, and
    so is what Calotype made: samples and checkpoints of training runs, and pictures made to be evaluated or of a class. What
    else is left out is counted, and said.

    Args:
        caption_column: of the metadata, text or a list of texts; `None` reads no captions at all.
        not_in: folders that are no data, wherever they lie: a run's own.

    Raises:
        FileNotFoundError: there is no such folder, no pictures are in it, or metadata names one that is not there.
        ValueError: metadata that cannot be read, or has no such column; names file and line.
    """
    found = find_files(folder, not_in)
    if found.tables:
        entries = [entry for table in found.tables for entry in _listed(table, found, caption_column)]
        if left := len({*map(_normal, found.pictures)} - {_normal(entry.image) for entry in entries}):
            found.left_out[f"pictures that are in no {' or '.join(METADATA)}"] += left
    else:
        entries = _all(found, read=caption_column is not None)
    if left_out := found.told_left_out():
        _log.warning("left out in %r: %s", str(folder), left_out)
    if not entries:
        raise FileNotFoundError(f"there are no pictures in {str(folder)!r} or the folders in it; looked for {some(EXTENSIONS)}"
                                + (f" ({left_out})" if left_out else ""))
    if caption_column is not None:
        _say_captions(entries, str(folder))
    return entries


def _all(found: Found, read: bool) -> list[Entry]:
    """Entries of all pictures, with the captions beside them if they are to be read."""
    beside = _by_picture(found.texts) if read else {}
    captions = {path: tuple(line for _, line in text_lines(text)) for path in found.pictures
                if (text := beside.get(path.with_suffix("")))}
    if alone := beside.keys() - {path.with_suffix("") for path in found.pictures}:
        found.left_out[".txt files with no picture of their name"] += len(alone)
    return [Entry(path, captions.get(path, ()), {"file_name": path.relative_to(found.folder).as_posix()}, repr(str(path)))
            for path in found.pictures]


def _by_picture(texts: Iterable[Path]) -> dict[Path, Path]:
    """Text files by the names, without an ending, of the pictures that they are of."""
    named: dict[Path, Path] = {}
    for text in texts:
        if (other := named.setdefault(text.with_suffix(""), text)) is not text:
            raise ValueError(f"{str(other)!r} and {str(text)!r} both are captions of one picture; leave one")
    return named


def _say_captions(entries: Sequence[Entry], folder: str) -> None:
    empty = sum(not any(caption.strip() for caption in entry.captions) for entry in entries)
    if 0 < empty < len(entries):
        _log.warning("%d of %d pictures in %r have no caption; theirs is empty", empty, len(entries), folder)
    if twice := len(entries) - len({_normal(entry.image) for entry in entries}):
        _log.warning("%d pictures in %r are named more than once, and count as often", twice, folder)


def _normal(path: Path) -> str:
    return os.path.normpath(path)


def _listed(table: Path, found: Found, caption_column: str | None) -> Iterator[Entry]:
    """Entries of the pictures that a table names."""
    if len([other for other in found.tables if other.parent == table.parent]) > 1:
        raise ValueError(f"{str(table.parent)!r} holds both {METADATA[0]} and {METADATA[1]}; leave one")
    rows = list(table_rows(table))
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    for column in ("file_name", caption_column) if rows else ():
        if column is not None:
            check_column(column, columns, repr(str(table)))
    for line, row in rows:
        where = f"line {line} of {str(table)!r}"
        if not isinstance(name := row.get("file_name"), str) or not name:
            raise ValueError(f"{where} names no picture: its file_name is {name!r}")
        path = table.parent / name
        if not path.is_file():
            raise FileNotFoundError(f"{where} names {name!r}, which is {'a folder' if path.is_dir() else 'not there'}"
                                    f"{nearest(name, _names_near(path, table.parent))}")
        if caption_column is not None and caption_column not in row:
            raise ValueError(f"{where} has no {caption_column!r}, as other lines have; null says that there is no caption")
        captions = () if caption_column is None else as_captions(row[caption_column], where)
        yield Entry(path, captions, row, repr(str(path)))


def _names_near(path: Path, top: Path) -> list[str]:
    """What there is where a file was looked for, as tables name it."""
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    return sorted(os.path.relpath(other, top).replace(os.sep, "/") for other in there)


def any_caption(entries: Iterable[Entry]) -> bool:
    """Whether one of the pictures has a caption that says something."""
    return any(caption.strip() for entry in entries for caption in entry.captions)
