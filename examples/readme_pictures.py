"""Draw the pictures of the README and the quicktour: `python examples/readme_pictures.py`."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from PIL import Image

from calotype import DiffusionPipeline

DOCS = Path(__file__).resolve().parent.parent / "docs"
FOUR = [("a rocket in flat style", 0), ("a guitar, noto style", 1),
        ("red heart, fluent style", 2), ("a ghost in twemoji style", 3)]


def in_a_row(pictures: list[Image.Image]) -> Image.Image:
    row = Image.new("RGB", (sum(p.width for p in pictures) + 8 * (len(pictures) - 1), pictures[0].height), "white")
    at = 0
    for picture in pictures:
        row.paste(picture, (at, 0))
        at += picture.width + 8
    return row


def main() -> None:
    pipeline = DiffusionPipeline.from_pretrained("calotype/emoji")
    generators = [torch.Generator().manual_seed(seed) for _, seed in FOUR]
    in_a_row(pipeline([prompt for prompt, _ in FOUR], generator=generators).images).save(DOCS / "images" / "four.png")

    # the last snippet of the quicktour, after the one that loads its model
    snippets = re.findall(r"^```python\n(.*?)^```", (DOCS / "quicktour.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {"pipeline": pipeline, "torch": torch}
    exec(snippets[5] + snippets[-1].replace('.save("rocket-by-hand.png")', ""), names)
    in_a_row(names["on_the_way"]).save(DOCS / "images" / "on-the-way.png")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
