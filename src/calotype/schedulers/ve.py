"""What solvers of variance-exploding samples share (Karras et al. 2022): `x = x0 + sigma · noise`, and `dx/dsigma = noise`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..randomness import Generators
from .base import Scheduler
from .betas import BetaScheduler
from .noise import Array, Levels


def ve_levels(timesteps: Array, sigmas: Array, end: float = 0.0) -> Levels:
    """Levels at `sigmas`, then `end`. The model is told timesteps of single precision."""
    ends = np.append(sigmas, end)
    return Levels(timesteps.astype(np.float32).astype(np.float64), np.ones_like(ends), ends)


def interleaved(opening: Array, between: Array) -> Array:
    """`opening[0], between[0], opening[1], …`, for steps of two model calls; the last step has one: its end is clean."""
    calls = np.empty(2 * len(opening) - 1)
    calls[::2], calls[1::2] = opening, between
    return calls


def starts_of_two(levels: Levels) -> list[int]:
    """For each call, in steps of two, the row where its step begins; entered at a second call, a step begins there."""
    return [i - 1 if (levels.begin + i) % 2 and i else i for i in range(len(levels))]


def churned(
    levels: Levels, i: int, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> tuple[float, float | None]:
    """The level to which fresh noise lifts row `i` before its step, and how much noise, or `None` (algorithm 2, lines 4 to 6)."""
    sigma = float(levels.sigma[i])
    churn = min(s_churn / (levels.begin + len(levels)), math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
    return sigma * (1 + churn), s_noise * sigma * math.sqrt((1 + churn) ** 2 - 1) if churn > 0 else None


class ChurnedStep(Scheduler):
    """Solvers whose `step` may mix in fresh noise."""

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = math.inf, s_noise: float = 1.0, generator: Generators = None, return_dict: bool = True,
    ) -> Any:
        """The sample [B, …] at the next level.

        Args:
            s_churn: how much fresh noise is mixed in, over all steps; 0 is deterministic.
            s_tmin, s_tmax: only at levels between these.
            s_noise: the standard deviation of the fresh noise.
        """
        return self._step(model_output, timestep, sample, generator, return_dict,
                          s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)


class VEScheduler(BetaScheduler):
    """Base of solvers of variance-exploding samples: begin with noise times `init_noise_sigma`, and call `scale_model_input`."""

    input_is_ve = True

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        return ve_levels(*self.noise_schedule.spaced_sigmas(self.config, steps, timesteps))

    def timesteps_of(self, levels: Levels, device: torch.device | str | None = None) -> Tensor:
        return torch.from_numpy(levels.timesteps.astype(np.float32)).to(device)

    def initial_noise_scale(self, levels: Levels) -> float:
        highest = float(levels.sigma.max())
        return highest if self.config.timestep_spacing in ("linspace", "trailing") else math.hypot(highest, 1)
