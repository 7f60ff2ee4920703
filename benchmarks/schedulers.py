"""What a scheduler costs beside the model: all steps of a generation on a 1 x 4 x 64 x 64 sample, beside Diffusers.

For each scheduler the library's own shell (`set_timesteps`, `scale_model_input`, `step`) is timed in turns with the peer's, and
the pure table, which the library's loop uses, with it. Medians of several rounds, in milliseconds for the whole generation.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import diffusers
import torch

import calotype.schedulers as ours

NAMES = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
         "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
         "LCMScheduler")
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def shell(library: object, name: str, steps: int) -> Callable[[], None]:
    scheduler = getattr(library, name)(**CONFIG)
    x, output = torch.randn(1, 4, 64, 64), torch.randn(1, 4, 64, 64)

    def run() -> None:
        scheduler.set_timesteps(steps)
        sample = x
        for t in scheduler.timesteps:
            scheduler.scale_model_input(sample, t)
            sample = scheduler.step(output, t, sample, return_dict=False)[0]

    return run


def table(name: str, steps: int) -> Callable[[], None]:
    scheduler = getattr(ours, name)(**CONFIG)
    x, output = torch.randn(1, 4, 64, 64), torch.randn(1, 4, 64, 64)

    def run() -> None:
        rows = scheduler.table(steps)
        sample, state = x, rows.new_state()
        for row in range(len(rows)):
            _ = sample * rows.input_scale[row] if rows.input_scale[row] != 1 else sample
            noise = torch.randn_like(sample) if rows.draws_noise(row) else None
            sample = rows.step(row, output, sample, state, noise)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(f"{options.steps} steps, milliseconds{'':<20} table   shell   diffusers   shell: ratio   table: ratio")
    for name in [name for name in NAMES if hasattr(ours, name)]:
        runs = (table(name, options.steps), shell(ours, name, options.steps), shell(diffusers, name, options.steps))
        taken: tuple[list[float], ...] = ([], [], [])
        for _ in range(options.rounds):
            for run, figures in zip(runs, taken, strict=True):
                started = time.perf_counter()
                run()
                figures.append((time.perf_counter() - started) * 1e3)
        pure, own, theirs = (statistics.median(figures) for figures in taken)
        print(f"{name:<34} {pure:9.2f} {own:7.2f} {theirs:11.2f} {theirs / own:14.2f} {theirs / pure:14.2f}", flush=True)


if __name__ == "__main__":
    main()
