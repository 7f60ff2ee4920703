"""Everything that the bundled checkpoints come from, by one command, which goes on where it was killed.

    python examples/emoji/train.py                     all parts, one after the other; a GPU is wanted
    python examples/emoji/train.py --only cats         the unconditional cats: an hour on a CPU

Pictures go to `data/`, runs to `runs/`. The parts: `cats` (unconditional, 64 px); `autoencoder`, then `text-to-image` (128 px);
and `evaluate`, which sets the new checkpoint beside the one that is bundled now.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PREPARE = [sys.executable, str(HERE / "prepare.py")]
CALOTYPE = [sys.executable, "-m", "calotype"]
TRAIN = [*CALOTYPE, "train"]
CATS = ["data/cats", "--size", "64", "--subgroups", "cat-face", "--labels", "cat face,cat,black cat"]
EVALUATE = ["runs/emoji", "calotype/emoji", "--data", "data/emoji", "--prompts", str(HERE / "evaluation_prompts.jsonl"),
            "--split", "held_out", "--pictures", "runs/evaluation", "--sheets", "runs/evaluation",
            "--output", "runs/evaluation.json"]
PARTS = {
    "cats": [[*PREPARE, *CATS], [*TRAIN, "unconditional", "--config", str(HERE / "cats.yaml")]],
    "autoencoder": [[*PREPARE, "data/emoji"], [*TRAIN, "autoencoder", "--config", str(HERE / "autoencoder.yaml")]],
    "text-to-image": [[*PREPARE, "data/emoji"], [*TRAIN, "text-to-image", "--config", str(HERE / "text_to_image.yaml")]],
    "evaluate": [[*CALOTYPE, "evaluate", *EVALUATE]],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given more than once")
    parser.add_argument("--packages", help="a folder with the npm packages, where npm cannot fetch them")
    given = parser.parse_args()
    for part in given.only or PARTS:
        for command in PARTS[part]:
            if given.packages and command[:2] == PREPARE:
                command = [*command, "--packages", given.packages]
            print("$", " ".join(command[1:]), flush=True)
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
