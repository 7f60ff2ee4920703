"""Draw the emoji that the bundled checkpoints are trained from: `python examples/emoji/prepare.py data/emoji --size 128`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captions import Vocabulary, captions_of, words_of
from drawing import check_renderer, draw_all, draw_sheet
from labels import Emoji, icon_name, read_emoji, select, svg_of
from packages import STYLES, WORDS, Package, archive_of, read_member
from splits import split_of

from calotype.files import read_json, staged_file, write_json

SHORT_NAMES = ("github", "emojibase", "iamcal")
"""Lists of what people type for an emoji. Those left out have more codes than words."""

SAME_NAMES = {"fluent": "flat"}
"""A set without a list of its characters, and the one that has the same icons and such a list."""


def prepare(folder: Path, size: int = 128, packages: Path | None = None, *, groups: Sequence[str] = (),
            subgroups: Sequence[str] = (), labels: Sequence[str] = (), workers: int | None = None,
            styles: Mapping[str, Package] = STYLES, words: Package = WORDS) -> list[dict[str, Any]]:
    """Write `pictures/STYLE/NAME.png` and, in the end, `metadata.jsonl` into `folder`. A run that was killed is gone on with.

    Args:
        size: pixels of a side.
        packages: where the packages' archives are, or are fetched to; `folder/packages` by default.
        groups, subgroups, labels: only emoji of any of these; `*` stands for anything.
        workers: how many processes draw; one a core by default.

    Returns:
        The rows of `metadata.jsonl`.

    Raises:
        ValueError: a word that selects nothing, a damaged package, or a folder with pictures of another preparation.
        RuntimeError: resvg-py, or a package and npm, are missing.
    """
    if size < 8:
        raise ValueError(f"size is {size}, but must be 8 pixels or more")
    check_renderer()
    archives = {style: archive_of(package, packages or folder / "packages") for style, package in styles.items()}
    archive = archive_of(words, packages or folder / "packages")
    everything = read_emoji(read_member(archive, "en/data.json"), read_member(archive, "en/messages.json"),
                            [read_member(archive, f"en/shortcodes/{name}.json") for name in SHORT_NAMES])
    chosen = select(everything, groups, subgroups, labels)
    _check_settings(folder / "settings.json", {
        "size": size, "groups": list(groups), "subgroups": list(subgroups), "labels": list(labels),
        "packages": {package.name: package.version for package in (*styles.values(), words)}})
    svgs = _svgs(chosen, archives, size)
    rows = _rows(chosen, svgs, Vocabulary(everything))
    draw_all([svgs[row["label"]][row["style"]] for row in rows], [folder / row["file_name"] for row in rows], workers)
    with staged_file(folder / "metadata.jsonl") as scratch:
        scratch.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return rows


def _svgs(emoji: Sequence[Emoji], archives: Mapping[str, Path], size: int) -> dict[str, dict[str, str]]:
    """Label -> style -> SVG, of every style that has the emoji."""
    icons = {style: read_member(archive, "icons.json") for style, archive in archives.items()}
    characters = {style: read_member(archive, "chars.json") for style, archive in archives.items()}
    found: dict[str, dict[str, str]] = {one.label: {} for one in emoji}
    for one in emoji:
        for style, known in icons.items():
            name = icon_name(one, known, characters[style], characters.get(SAME_NAMES.get(style, style), {}))
            if name is not None:
                found[one.label][style] = svg_of(name, known, size)
    return found


def _rows(emoji: Sequence[Emoji], svgs: Mapping[str, Mapping[str, str]], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    return [{"file_name": f"pictures/{style}/{one.name}.png", "text": captions_of(one, style, vocabulary), "label": one.label,
             "style": style, "tags": list(one.tags), **words_of(one, vocabulary),
             "group": one.group, "subgroup": one.subgroup, "split": split_of(one.label, style, list(svgs[one.label]))}
            for one in emoji for style in svgs[one.label]]


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Keep two preparations from mixing their pictures in one folder."""
    if not path.exists():
        write_json(path, settings)
    earlier = read_json(path)
    changed = [key for key, value in settings.items() if earlier.get(key) != value]
    if changed:
        raise ValueError(f"{str(path.parent)!r} holds pictures of another preparation, whose "
                         f"{' and '.join(f'{key} is {earlier.get(key)!r}' for key in changed)}. Give another folder or remove it")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    words: dict[str, Any] = {"type": lambda text: text.split(","), "default": [], "metavar": "WORD,..."}
    parser.add_argument("folder", type=Path, help="where pictures/ and metadata.jsonl go")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side (128)")
    parser.add_argument("--packages", type=Path, help="a folder with the packages' .tgz files (FOLDER/packages, filled by npm)")
    parser.add_argument("--groups", help="only these groups: animals-nature,food-drink", **words)
    parser.add_argument("--subgroups", help="only these subgroups: cat-face,animal-mammal", **words)
    parser.add_argument("--labels", help="only these labels, * stands for anything: 'rocket,*cat*'", **words)
    parser.add_argument("--workers", type=int, help="how many processes draw (one a core)")
    parser.add_argument("--sheet", type=Path, help="also write one picture that shows them all")
    given = vars(parser.parse_args(arguments))
    sheet = given.pop("sheet")
    try:
        rows = prepare(**given)
        if sheet is not None:
            draw_sheet(rows, given["folder"], sheet)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(rows)} pictures of {len({row['label'] for row in rows})} emoji in {given['folder']}, "
          f"{sum(row['split'] == 'held_out' for row in rows)} of them held out")


if __name__ == "__main__":
    main()
