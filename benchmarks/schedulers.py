"""What a scheduler costs beside the model: all steps of a generation on a 1 x 4 x 64 x 64 sample, beside Diffusers.

For each scheduler the library's own shell (`set_timesteps`, `scale_model_input`, `step`) is timed in turns with the peer's, and
the pure table, which the library's loop uses, with it. CPU time of one thread, the least of several rounds, in milliseconds for
the whole generation. Drawing noise is the same work for all: it is timed too, and the ratios are of what is left without it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import diffusers
import torch

import calotype.schedulers as ours

NAMES = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
         "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
         "LCMScheduler")
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (1, 4, 64, 64)


def shell(library: object, name: str, steps: int) -> Callable[[], None]:
    scheduler = getattr(library, name)(**CONFIG)
    x, output = torch.randn(SHAPE), torch.randn(SHAPE)

    def run() -> None:
        scheduler.set_timesteps(steps)
        sample = x
        for t in scheduler.timesteps:
            scheduler.scale_model_input(sample, t)
            sample = scheduler.step(output, t, sample, return_dict=False)[0]

    return run


def table(name: str, steps: int) -> Callable[[], None]:
    scheduler = getattr(ours, name)(**CONFIG)
    x, output = torch.randn(SHAPE), torch.randn(SHAPE)

    def run() -> None:
        rows = scheduler.table(steps)
        sample, state = x, rows.new_state()
        for row in range(len(rows)):
            _ = sample * rows.input_scale[row] if rows.input_scale[row] != 1 else sample
            noise = torch.randn_like(sample) if rows.draws_noise(row) else None
            sample = rows.step(row, output, sample, state, noise)

    return run


def noise(name: str, steps: int) -> Callable[[], None]:
    rows = getattr(ours, name)(**CONFIG).table(steps)
    draws = sum(rows.draws_noise(row) for row in range(len(rows)))

    def run() -> None:
        for _ in range(draws):
            torch.randn(SHAPE)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", nargs="*", default=NAMES)
    options = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(f"| {options.steps} steps, ms of CPU | noise | table | shell | Diffusers | Diffusers / shell | Diffusers / table |")
    print("|---|---|---|---|---|---|---|")
    for name in options.only:
        runs = [noise(name, options.steps), table(name, options.steps), shell(ours, name, options.steps),
                shell(diffusers, name, options.steps)]
        taken: list[list[float]] = [[] for _ in runs]
        for _ in range(options.rounds):
            for run, figures in zip(runs, taken, strict=True):
                started = time.thread_time()
                run()
                figures.append((time.thread_time() - started) * 1e3)
        drawing, pure, own, theirs = (min(figures) for figures in taken)
        print(f"| {name} | {drawing:.1f} | {pure:.1f} | {own:.1f} | {theirs:.1f} | {(theirs - drawing) / (own - drawing):.2f} "
              f"| {(theirs - drawing) / (pure - drawing):.2f} |", flush=True)


if __name__ == "__main__":
    main()
