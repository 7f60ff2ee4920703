"""What solvers of variance-exploding samples share (Karras et al. 2022): `x = x0 + sigma · noise`, and `dx/dsigma = noise`."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .betas import BetaScheduler
from .noise import Array, Levels
from .table import Row


def ve_levels(timesteps: Array, sigmas: Array, end: float = 0.0) -> Levels:
    """Levels at `sigmas`, then `end`. The model is told timesteps of single precision."""
    ends = np.append(sigmas, end)
    return Levels(timesteps.astype(np.float32).astype(np.float64), np.ones_like(ends), ends)


def interleaved(opening: Array, between: Array) -> Array:
    """`opening[0], between[0], opening[1], …`, for steps of two model calls; the last step has one: its end is clean."""
    calls = np.empty(2 * len(opening) - 1)
    calls[::2], calls[1::2] = opening, between
    return calls


def euler_row(levels: Levels, i: int) -> Row:
    """`x' = x + (sigma' - sigma) · noise`, for solvers that remember noise."""
    return Row(x={i: 1.0}, m={i: levels.sigma[i + 1] - levels.sigma[i]})


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
