"""Draw the emoji that the bundled checkpoints are trained from: `python examples/emoji/prepare.py data/emoji --size 128`."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captions import captions_of, shares_of
from labels import Emoji, icon_name, read_emoji, select, svg_of
from packages import STYLES, WORDS, Package, archive_of, read_member
from PIL import Image
from splits import held_out_style

from calotype.files import read_json, staged_file, write_json


@dataclass(frozen=True)
class Picture:
    """One picture to draw: the emoji, its style, the SVG."""

    emoji: Emoji
    style: str
    svg: str

    @property
    def file_name(self) -> str:
        return f"pictures/{self.style}/{self.emoji.name}.png"


def draw(svg: str, path: Path) -> None:
    """Draw an SVG on white; the PNG appears whole or not at all."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, background="white", skip_system_fonts=True))
    with Image.open(io.BytesIO(png)) as picture, staged_file(path) as scratch:
        picture.convert("RGB").save(scratch)


def pictures_of(emoji: list[Emoji], archives: Mapping[str, Path], size: int) -> list[Picture]:
    """Every emoji in every style that has it, in the order of the emoji."""
    icons = {style: read_member(archive, "icons.json") for style, archive in archives.items()}
    characters = {style: read_member(archive, "chars.json") for style, archive in archives.items()}
    lent = {"fluent": "flat"}  # a set without characters, whose names are those of the other
    found = []
    for one in emoji:
        for style, known in icons.items():
            name = icon_name(one, known, characters[style], characters.get(lent.get(style, style), {}))
            if name is not None:
                found.append(Picture(one, style, svg_of(name, known, size)))
    return found


def rows_of(pictures: list[Picture], everything: list[Emoji]) -> list[dict[str, Any]]:
    """The lines of metadata.jsonl. `everything` is all emoji, chosen or not: what is a rare word does not change with the choice."""
    shares = shares_of(everything)
    styles: dict[str, list[str]] = {}
    for picture in pictures:
        styles.setdefault(picture.emoji.label, []).append(picture.style)
    return [{"file_name": picture.file_name, "text": captions_of(picture.emoji, picture.style, shares), "label": picture.emoji.label,
             "style": picture.style, "tags": list(picture.emoji.tags), "group": picture.emoji.group,
             "subgroup": picture.emoji.subgroup,
             "split": "held_out" if held_out_style(picture.emoji.label, styles[picture.emoji.label]) == picture.style else "train"}
            for picture in pictures]


def prepare(folder: Path, size: int = 128, packages: Path | None = None, *, styles: Mapping[str, Package] = STYLES,
            words: Package = WORDS, groups: list[str] | None = None, subgroups: list[str] | None = None,
            labels: list[str] | None = None, workers: int | None = None) -> list[dict[str, Any]]:
    """Write `pictures/STYLE/NAME.png` and `metadata.jsonl` into `folder`; a run that was killed is gone on with.

    Raises:
        ValueError: the folder holds pictures of another preparation.
    """
    archives = {style: archive_of(package, packages or folder / "packages") for style, package in styles.items()}
    archive = archive_of(words, packages or folder / "packages")
    everything = read_emoji(read_member(archive, "en/data.json"), read_member(archive, "en/messages.json"))
    chosen = select(everything, groups or (), subgroups or (), labels or ())
    settings = {"size": size, "groups": groups or [], "subgroups": subgroups or [], "labels": labels or [],
                "packages": {package.name: package.version for package in (*styles.values(), words)}}
    _check_settings(folder / "settings.json", settings)
    pictures = pictures_of(chosen, archives, size)
    missing = [picture for picture in pictures if not (folder / picture.file_name).exists()]
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(draw, [one.svg for one in missing], [folder / one.file_name for one in missing], chunksize=16))
    rows = rows_of(pictures, everything)
    with staged_file(folder / "metadata.jsonl") as scratch:
        scratch.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return rows


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    if not path.exists():
        write_json(path, settings)
    earlier = read_json(path)
    changed = [key for key, value in settings.items() if earlier.get(key) != value]
    if changed:
        raise ValueError(f"{str(path.parent)!r} holds pictures of another preparation: its {', '.join(changed)} are "
                         f"{', '.join(repr(earlier.get(key)) for key in changed)}. Give another folder, or remove it")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    words = {"type": lambda text: text.split(","), "default": [], "metavar": "WORD,..."}
    parser.add_argument("folder", type=Path, help="where pictures/ and metadata.jsonl go")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side (128)")
    parser.add_argument("--packages", type=Path, help="a folder with the packages' .tgz files (FOLDER/packages, filled by npm)")
    parser.add_argument("--groups", help="only these groups: animals-nature,food-drink", **words)
    parser.add_argument("--subgroups", help="only these subgroups: cat-face,animal-mammal", **words)
    parser.add_argument("--labels", help="only these labels, * stands for anything: rocket,*cat*", **words)
    parser.add_argument("--workers", type=int, help="how many processes draw (one a core)")
    given = parser.parse_args(arguments)
    try:
        rows = prepare(**vars(given))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    held_out = sum(row["split"] == "held_out" for row in rows)
    print(f"{len(rows)} pictures of {len({row['label'] for row in rows})} emoji in {given.folder}, {held_out} of them held out")


if __name__ == "__main__":
    main()
