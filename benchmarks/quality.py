"""How much quicker `quality="high"` and `"draft"` are, and how far their pictures are from exact ones.

Twelve prompts of the bundled checkpoint in one batch, each with its own seed: the time of the denoising (CPU time of one thread,
so that other work on the machine counts less), and the likeness of the pictures in decibels (PSNR), the mean and the least.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

import calotype
from calotype.pipelines.quality import QUALITIES

PROMPTS = [  # of `pictures.py`, but for the empty one: without a text, guidance adds nothing
    "An image of a squirrel in Picasso style", "a rocket in flat style", "a guitar", "red heart, noto style",
    "an apple in twemoji style", "a cat face", "a robot", "an emoji of a ghost", "a fire engine in fluent style", "a tree",
    "a star", "a house with a garden",
]
SCHEDULERS = ("PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler")


def pictures(pipe: Any, count: int, steps: int, quality: str) -> tuple[torch.Tensor, float]:
    """[B, 3, H, W] in [0, 1], and the seconds of CPU that their latents took."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    begun = time.thread_time()
    latents = pipe(PROMPTS[:count], num_inference_steps=steps, generator=generators, output_type="latent", quality=quality).images
    taken = time.thread_time() - begun
    with torch.no_grad():
        return (pipe.decode_latents(latents) / 2 + 0.5).clamp(0, 1), taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 20])
    parser.add_argument("--schedulers", nargs="+", default=SCHEDULERS)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = calotype.StableDiffusionPipeline.from_pretrained("calotype/emoji")
    pipe.set_progress_bar_config(disable=True)
    print("| scheduler | steps | quality | mean dB | least dB | times as quick |\n|---|---|---|---|---|---|")
    for name in options.schedulers:
        pipe.scheduler = getattr(calotype, name).from_config(pipe.scheduler.config)
        pictures(pipe, options.prompts, 2, "exact")  # a first call prepares weights
        for steps in options.steps:
            exact, whole = pictures(pipe, options.prompts, steps, "exact")
            for quality in QUALITIES[1:]:
                made, taken = pictures(pipe, options.prompts, steps, quality)
                likeness = -10 * torch.log10((made - exact).square().mean((1, 2, 3)))
                print(f"| {name} | {steps} | {quality} | {likeness.mean():.1f} | {likeness.min():.1f} | {whole / taken:.2f} |",
                      flush=True)


if __name__ == "__main__":
    main()
