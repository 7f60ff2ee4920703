"""Twenty pictures of a style, and twenty of a character, to fine-tune the bundled checkpoint with.

    python examples/emoji/prepare.py data/emoji
    python examples/fine_tuning/pictures.py data/emoji data/fine_tuning

`beads/`: emoji laid out of 16 x 16 beads, captioned as what they are made from, "a guitar in flat style".
`zib/`: a small monster of ours.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

from calotype.picture_files import read_picture

SIZE, BEADS = 128, 16
LABELS = ("red apple", "banana", "cactus", "cat face", "crab", "crown", "dog face", "fish", "guitar", "hamburger", "hot beverage",
          "key", "lemon", "mushroom", "penguin", "pizza", "rabbit face", "strawberry", "sunflower", "umbrella")


def beads(emoji: Image.Image) -> Image.Image:
    """An emoji on white as beads, each of one colour; where it is white there is none."""
    small = emoji.convert("RGB").resize((BEADS, BEADS), Image.Resampling.BOX)
    cell, scale = SIZE // BEADS, 4  # drawn larger, so that edges are smooth
    board = Image.new("RGB", (SIZE * scale, SIZE * scale), "white")
    draw = ImageDraw.Draw(board)
    for y in range(BEADS):
        for x in range(BEADS):
            colour = small.getpixel((x, y))
            if min(colour) <= 235:
                left, top, wide = (x * cell + 0.5) * scale, (y * cell + 0.5) * scale, (cell - 1) * scale
                draw.ellipse([left, top, left + wide, top + wide], fill=colour)
    return board.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def zib(chance: random.Random) -> Image.Image:
    """A round violet monster with one eye, two horns and orange feet, somewhere in the picture."""
    scale = 4
    picture = Image.new("RGB", (SIZE * scale, SIZE * scale), "white")
    draw = ImageDraw.Draw(picture)
    radius = chance.uniform(36, 44)
    x, y = SIZE / 2 + chance.uniform(-8, 8), SIZE / 2 + chance.uniform(-6, 6)
    tint = colorsys.hsv_to_rgb(0.76 + chance.uniform(-0.01, 0.01), 0.62, 0.82)
    violet = tuple(round(255 * part) for part in tint)

    def disc(cx: float, cy: float, rx: float, ry: float, fill: object) -> None:
        draw.ellipse([(cx - rx) * scale, (cy - ry) * scale, (cx + rx) * scale, (cy + ry) * scale], fill=fill)

    for side in (-1, 1):
        disc(x + side * radius * 0.45, y + radius * 0.98, radius * 0.3, radius * 0.16, (245, 150, 40))
        tip = (x + side * radius * 0.75, y - radius * 1.35)
        foot = [x + side * radius * angle for angle in (0.3, 0.75)]
        draw.polygon([(foot[0] * scale, (y - radius * 0.85) * scale), (foot[1] * scale, (y - radius * 0.55) * scale),
                      (tip[0] * scale, tip[1] * scale)], fill=(250, 210, 90))
    disc(x, y, radius, radius, violet)
    look = chance.uniform(0, 2 * math.pi)
    disc(x, y - radius * 0.2, radius * 0.48, radius * 0.48, "white")
    pupil = x + radius * 0.14 * math.cos(look), y - radius * (0.2 - 0.14 * math.sin(look))
    disc(*pupil, radius * 0.24, radius * 0.24, (30, 20, 50))
    draw.arc([(x - radius * 0.4) * scale, (y + radius * 0.1) * scale, (x + radius * 0.4) * scale, (y + radius * 0.65) * scale],
             20, 160, fill=(60, 20, 90), width=round(radius * 0.1 * scale))
    return picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emoji", type=Path, help="what examples/emoji/prepare.py wrote")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    given = parser.parse_args()
    rows = []
    (given.folder / "beads").mkdir(parents=True, exist_ok=True)
    (given.folder / "zib").mkdir(exist_ok=True)
    for label in LABELS:
        name = label.replace(" ", "-") + ".png"
        beads(read_picture(given.emoji / "pictures" / "flat" / name)).save(given.folder / "beads" / name)
        article = "an" if label[0] in "aeiou" else "a"
        rows.append({"file_name": name, "text": [f"{article} {label} in flat style", f"{label}, flat style"]})
    (given.folder / "beads" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(20):
        zib(random.Random(i)).save(given.folder / "zib" / f"{i:02}.png")
    print(f"wrote {len(LABELS)} pictures of beads and 20 of zib into {given.folder}")


if __name__ == "__main__":
    main()
