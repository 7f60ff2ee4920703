"""Contact sheets: many pictures as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

GAP = 4  # pixels between pictures


def sheet_size(count: int, width: int, height: int, columns: int | None = None) -> tuple[int, int, int]:
    """The columns, width and height of a contact sheet of so many pictures that large."""
    columns = columns or math.ceil(math.sqrt(count))
    return columns, columns * (width + GAP) - GAP, math.ceil(count / columns) * (height + GAP) - GAP


def contact_sheet(pictures: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures in so many columns, or about as many as rows, on white; each has the room that the largest needs."""
    wide, high = max(one.width for one in pictures), max(one.height for one in pictures)
    columns, *size = sheet_size(len(pictures), wide, high, columns)
    sheet = Image.new("RGB", (size[0], size[1]), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (wide + GAP), i // columns * (high + GAP)))
    return sheet
