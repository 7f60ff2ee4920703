"""Contact sheets: many pictures as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

GAP = 4  # pixels between pictures


def contact_sheet(pictures: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Pictures in so many columns, or about as many as rows, on white; each has the room that the largest needs."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    wide, high = max(one.width for one in pictures) + GAP, max(one.height for one in pictures) + GAP
    sheet = Image.new("RGB", (columns * wide - GAP, rows * high - GAP), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * wide, i // columns * high))
    return sheet
