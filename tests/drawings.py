"""A small data set of drawings: shapes as labels, colours as styles."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

SHAPES = {"disc": lambda draw, fill: draw.ellipse((5, 5, 26, 26), fill=fill),
          "bar": lambda draw, fill: draw.rectangle((13, 2, 18, 29), fill=fill),
          "beam": lambda draw, fill: draw.rectangle((2, 13, 29, 18), fill=fill),
          "corner": lambda draw, fill: draw.polygon([(3, 3), (28, 3), (3, 28)], fill=fill)}
STYLES = {"red": "#cc2222", "green": "#22aa22", "blue": "#2222cc"}


def save_drawings(folder: Path, size: int = 32) -> Path:
    """Twelve pictures, of which the red disc is held out."""
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for label, draw in SHAPES.items():
        for style, fill in STYLES.items():
            picture = Image.new("RGB", (32, 32), "white")
            draw(ImageDraw.Draw(picture), fill)
            name = f"pictures/{label}-{style}.png"
            picture.resize((size, size)).save(folder / name)
            held = (label, style) == ("disc", "red")
            rows.append({"file_name": name, "text": [f"a {style} {label}", label], "label": label, "style": style,
                         "split": "held_out" if held else "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
