"""Folders of pictures, with their captions in `metadata.jsonl`, in `metadata.csv` or beside each picture."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import local_path
from ..words import nearest, some
from .entries import Entry, as_captions, check_column

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
METADATA = ("metadata.jsonl", "metadata.csv")
_log = logging.getLogger(__name__)


def folder_entries(folder: str | os.PathLike[str], caption_column: str | None = "text") -> list[Entry]:
    """Entries of the pictures in a folder and all folders in it, in the order of their names, whatever the file system's.

    A `metadata.jsonl` (an object a line) or `metadata.csv` names pictures by `file_name`, relative to its own folder, and
    says what else is known of them; then those alone are read. Otherwise every picture is, and its caption is what
    `NAME.txt` beside `NAME.png` says: each line that is not empty is a caption. Hidden files and folders are left alone.

    Args:
        caption_column: of the metadata, text or a list of texts; `None` reads no captions at all.

    Raises:
        FileNotFoundError: there is no such folder, no pictures are in it, or metadata names one that is not there.
        ValueError: metadata that cannot be read, or has no such column; names file and line.
    """
    folder = local_path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{str(folder)!r} is " + ("a file" if folder.exists() else "not there")
                                + "; a folder of pictures is needed")
    files = sorted((path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder))),
                   key=lambda path: path.relative_to(folder).parts)
    pictures = [path for path in files if path.suffix.lower() in EXTENSIONS]
    if tables := [path for path in files if path.name in METADATA]:
        entries = [entry for table in tables for entry in _listed(table, folder, caption_column)]
        if left := len(set(pictures) - {entry.image for entry in entries}):
            _log.warning("%d pictures in %r are in no %s and are left out", left, str(folder), " or ".join(METADATA))
    else:
        captions = [() if caption_column is None else _beside(path) for path in pictures]
        entries = [Entry(path, texts, {"file_name": _relative(path, folder)}, repr(str(path)))
                   for path, texts in zip(pictures, captions, strict=True)]
        if any(captions) and not all(captions):
            _log.warning("%d of %d pictures in %r have no caption in a .txt beside them; theirs is empty",
                         captions.count(()), len(captions), str(folder))
    if not entries:
        raise FileNotFoundError(f"there are no pictures in {str(folder)!r} or the folders in it; looked for {some(EXTENSIONS)}")
    return entries


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _beside(picture: Path) -> tuple[str, ...]:
    """The captions in the text file of the picture's name."""
    text = picture.with_suffix(".txt")
    if not text.is_file():
        return ()
    try:
        lines = text.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(text)!r} is damaged: it is not UTF-8 ({error})") from None
    return tuple(line.strip() for line in lines if line.strip())


def _listed(table: Path, folder: Path, caption_column: str | None) -> Iterator[Entry]:
    """Entries of the pictures that a table names."""
    if table.name != METADATA[0] and table.with_name(METADATA[0]).is_file():
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
            there = sorted(_relative(other, table.parent) for other in path.parent.glob("*")) if path.parent.is_dir() else []
            raise FileNotFoundError(f"{where} names {name!r}, which is not there{nearest(name, there)}")
        if caption_column is not None and caption_column not in row:
            raise ValueError(f"{where} has no {caption_column!r}, as other lines have; null says that there is no caption")
        captions = () if caption_column is None else as_captions(row[caption_column], where)
        yield Entry(path, captions, row, repr(str(path)))


def table_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table and the lines they are in, from 1."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            if table.suffix == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    if None in row or None in row.values():
                        raise ValueError(f"line {reader.line_num} of {str(table)!r} has another number of columns than line 1")
                    yield reader.line_num, row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line, f"line {number} of {str(table)!r}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(table)!r} is damaged: it is not UTF-8 ({error})") from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: it is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a JSON {type(row).__name__}, and an object is needed")
    return row
