"""What a model of emoji is evaluated with: `python examples/emoji/prompts.py data/emoji` writes evaluation_*.jsonl."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from phrases import spoken, with_article

from calotype.files import staged_file

FILE = Path(__file__).with_name("evaluation_prompts.jsonl")
WORDS = Path(__file__).with_name("evaluation_words.jsonl")

STYLES = ("noto", "fluent", "flat", "twemoji")

LABELS = (
    "rocket", "guitar", "red heart", "red apple", "cat face", "robot", "ghost", "chipmunk", "grinning face", "star",
    "dog face", "fox", "lion", "panda", "frog", "penguin", "owl", "octopus", "whale", "butterfly", "lady beetle", "turtle",
    "unicorn", "sunflower", "cactus", "mushroom", "evergreen tree", "banana", "strawberry", "watermelon", "carrot", "pizza",
    "hamburger", "doughnut", "birthday cake", "hot beverage", "house", "castle", "automobile", "bicycle", "locomotive",
    "airplane", "sailboat", "umbrella", "snowman", "rainbow", "full moon", "sun with face", "fire", "soccer ball", "basketball",
    "trophy", "teddy bear", "balloon", "crown", "top hat", "glasses", "key", "hammer", "light bulb", "camera", "television",
    "open book", "pencil", "scissors", "bell", "alarm clock", "violin", "smiling face with sunglasses", "crying face",
    "thumbs up", "skull", "alien", "firefighter", "astronaut", "ninja", "check mark button", "stop sign")
"""What people ask for, from all groups; each is asked for in every style. The squirrel is called a chipmunk."""

CALLED = {"chipmunk": "squirrel", "cat face": "cat", "dog face": "dog", "automobile": "car", "red apple": "apple"}
"""Labels that are also asked for by another name, in every style."""


def prompts_of(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The prompts for the rows of a `metadata.jsonl`, always the same; `seed` is of the noise of each.

    First the labels above, so ordered that any first few have all styles and many labels; then every held-out picture.
    """
    split = {(row["label"], row["style"]): row["split"] for row in rows}
    known = [label for label in LABELS if (label, STYLES[0]) in split]
    turns = [(label, STYLES[(place + turn) % len(STYLES)]) for turn in range(len(STYLES)) for place, label in enumerate(known)]
    asked = [(with_article(spoken(label)), label, style) for label, style in turns]
    asked += [(with_article(CALLED[label]), label, style) for label, style in turns if label in CALLED]
    asked += [(with_article(spoken(label)), label, style) for (label, style), part in split.items()
              if part == "held_out" and label not in LABELS]
    return [{"prompt": f"{what} in {style} style", "label": label, "style": style, "seed": seed, "split": split[label, style]}
            for seed, (what, label, style) in enumerate(entry for entry in asked if entry[1:] in split)]


def words_of(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Prompts of a word or two and no more, as a newcomer types them: what the labels above are called. Any emoji that has the
    word is right: "car" may be the automobile or a railway car."""
    rows = {row["label"]: row for row in rows}.values()
    called = {row["label"]: row["called"] for row in rows}
    asked = dict.fromkeys(word for label in LABELS for word in (
        *called.get(label, ()), *(word for one, word in CALLED.items() if one == label and one in called)))
    return [{"prompt": word, "label": [row["label"] for row in rows if word in row["words"]], "seed": seed}
            for seed, word in enumerate(asked)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what prepare.py wrote, of all emoji")
    lines = (parser.parse_args().folder / "metadata.jsonl").read_text(encoding="utf-8").strip().split("\n")
    rows = [json.loads(line) for line in lines]
    for file, prompts in ((FILE, prompts_of(rows)), (WORDS, words_of(rows))):
        with staged_file(file) as scratch:
            scratch.write_text("".join(json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in prompts), encoding="utf-8")
        print(f"{len(prompts)} prompts in {file}, {sum(one.get('split') == 'held_out' for one in prompts)} of held-out pictures")


if __name__ == "__main__":
    main()
