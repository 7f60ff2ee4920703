"""The same prompts and seeds before and after fine-tuning, one above the other: the pictures of `docs/training.md`.

    python examples/fine_tuning/before_after.py runs/beads runs/zib docs/images
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image

from calotype import DiffusionPipeline
from calotype.images.grids import contact_sheet

BEADS = ("a rocket in flat style", "a red heart in flat style", "a robot in flat style", "a green apple in flat style",
         "a guitar in flat style", "a ghost in flat style")
ZIB = ("an emoji of a zib monster",) * 4 + ("an emoji of a cat face", "a rocket in flat style")


def drawn(pipeline: DiffusionPipeline, prompts: tuple[str, ...]) -> list[Image.Image]:
    """A picture of each prompt; picture i has the seed i."""
    pipeline.set_progress_bar_config(disable=True)
    return [pipeline(prompt, num_inference_steps=30, guidance_scale=5.0, generator=torch.Generator().manual_seed(i)).images[0]
            for i, prompt in enumerate(prompts)]


def main(beads: str, zib: str, folder: str) -> None:
    pipeline = DiffusionPipeline.from_pretrained("calotype/emoji")
    before, before_zib = drawn(pipeline, BEADS), drawn(pipeline, ZIB)
    pipeline.load_lora_weights(beads)
    contact_sheet([*before, *drawn(pipeline, BEADS)], len(BEADS)).save(Path(folder) / "beads.png")
    after = drawn(DiffusionPipeline.from_pretrained(zib), ZIB)
    contact_sheet([*before_zib, *after], len(ZIB)).save(Path(folder) / "zib.png")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
