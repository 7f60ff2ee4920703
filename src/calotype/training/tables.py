"""Tables of what is known of pictures: an object of JSON a line (`.jsonl`), or values between commas (`.csv`)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..texts import read_text
from ..words import some


def table_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table and the lines they begin in, from 1.

    Raises:
        ValueError: it is damaged; names the file and the line.
    """
    text = read_text(table)
    if table.suffix.lower() == ".csv":
        yield from _csv_rows(text, str(table))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _object(line, f"line {number} of {str(table)!r}")


def _csv_rows(text: str, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Strict: else a quote that is not closed takes the rest of the file for one value, without a word.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] = []
    begun = 1
    try:
        for values in reader:
            if not columns:
                if twice := [column for column in dict.fromkeys(values) if values.count(column) > 1]:
                    raise ValueError(f"{name!r} has several columns of one name: {some([*map(repr, twice)])}")
                columns = values
            elif values:
                if len(values) != len(columns):
                    raise ValueError(f"line {begun} of {name!r} has another number of columns than line 1: {len(values)}, and "
                                     f"not {len(columns)}; a value with commas in it stands in double quotes")
                yield begun, dict(zip(columns, values, strict=True))
            begun = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{name!r} is damaged: the row that begins in line {begun} is not CSV ({error}); a double quote within "
                         "quotes is written twice") from None


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: it is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a JSON {type(row).__name__}, and an object is needed")
    return row
