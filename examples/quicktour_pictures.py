"""Draw the picture of the quicktour by its own snippets: `python examples/quicktour_pictures.py`."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from PIL import Image

from calotype import DiffusionPipeline

DOCS = Path(__file__).resolve().parent.parent / "docs"


def in_a_row(pictures: list[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (sum(p.width for p in pictures) + 8 * (len(pictures) - 1), pictures[0].height), "white")
    at = 0
    for picture in pictures:
        row.paste(picture, (at, 0))
        at += picture.width + 8
    return row


def main() -> None:
    # the last snippet, and before it the one that loads its model
    snippets = re.findall(r"^```python\n(.*?)^```", (DOCS / "quicktour.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"pipeline": DiffusionPipeline.from_pretrained("calotype/emoji"), "torch": torch}
    loads = next(snippet for snippet in snippets if "model = UNet2DConditionModel" in snippet)
    exec(loads + snippets[-1].replace('.save("rocket-by-hand.png")', ""), names)
    in_a_row(names["on_the_way"]).save(DOCS / "images" / "on-the-way.png")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
