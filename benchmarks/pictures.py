"""How far pictures of the bundled checkpoint are from Diffusers', seed for seed; and how far Diffusers is from itself.

Twelve prompts, four schedulers, two guidance scales. For each: the share of values (of 3 x 128 x 128 a picture) that are another
grey level, the largest difference in levels, and the same for Diffusers making each picture alone and all in one batch.
"""

from __future__ import annotations

import argparse
from typing import Any

import diffusers
import numpy as np
import torch

import calotype

PROMPTS = [
    "An image of a squirrel in Picasso style", "a rocket in flat style", "a guitar", "red heart, noto style",
    "an apple in twemoji style", "a cat face", "a robot", "an emoji of a ghost", "a fire engine in fluent style", "a tree", "",
    "a house with a garden",
]
SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "PNDMScheduler")


def levels(pipe: Any, seeds: range, steps: int, guidance: float) -> np.ndarray:
    """[B, H, W, 3] grey levels of the prompts `seeds`, each with its own seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    made = pipe([PROMPTS[seed] for seed in seeds], num_inference_steps=steps, guidance_scale=guidance, generator=generators,
                output_type="np").images
    return (made * 255).round()


def away(one: np.ndarray, other: np.ndarray) -> str:
    difference = np.abs(one - other)
    return f"{(difference > 0).mean():8.3%} {difference.max():3.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(
        calotype.hub.BUNDLED["calotype/emoji"], torch_dtype=torch.float32, safety_checker=None)
    ours = calotype.StableDiffusionPipeline.from_pretrained("calotype/emoji")
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    print(f"{options.steps} steps; share of values that differ, largest difference in grey levels")
    print(f"{'':<26} guidance   ours, fast     ours, plain    Diffusers alone / in a batch")
    for name in SCHEDULERS:
        for guidance in (3.0, 7.5):
            theirs.scheduler = getattr(diffusers, name).from_config(theirs.scheduler.config)
            ours.scheduler = getattr(calotype, name).from_config(ours.scheduler.config)
            together = levels(theirs, range(12), options.steps, guidance)
            alone = np.concatenate([levels(theirs, range(i, i + 1), options.steps, guidance) for i in range(12)])
            shown = []
            for ours.fast in (True, False):
                shown.append(away(levels(ours, range(12), options.steps, guidance), together))
            print(f"{name:<26} {guidance:8.1f} {shown[0]:>13} {shown[1]:>15} {away(alone, together):>15}", flush=True)


if __name__ == "__main__":
    main()
