"""What the tests of objectives share: clean samples, seeds, and samplers that draw what is wanted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calotype.schedulers.noise import Levels

CLEAN = 0.4 * torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0)) + 0.1
KINDS = ("epsilon", "sample", "v_prediction")
TIMES = torch.tensor([0, 7, 250, 500, 900, 998])
ZERO_SNR = {"rescale_betas_zero_snr": True}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at(*positions: float, sigmas: bool = False) -> Any:
    """A sampler that draws these positions, or sigmas, over and over."""
    def draw(n: int, generator: Any, device: Any) -> Tensor:
        return torch.tensor(positions, dtype=torch.float64, device=device).repeat(n // len(positions))
    draw.draws_sigmas = sigmas  # type: ignore[attr-defined]
    return draw


STEPS = at(*((TIMES + 0.5) / 1000).tolist())
"""Draws `TIMES`."""


def said(scheduler: Any, x: Tensor, x0: Tensor, alpha: float, sigma: float) -> Tensor:
    """The output of a network that says `x0` of a sample `x` at a level, as the scheduler reads it."""
    read = scheduler.prediction(Levels(np.zeros(1), np.full(2, alpha), np.full(2, sigma)))
    return (x0 - float(read.x0_x[0]) * x) / float(read.x0_out[0])


def best(scheduler: Any, x: Tensor, alpha: float, sigma: float, spread: float, mean: float = 0.0) -> Tensor:
    """What the best network says of clean samples that are normal: `mean`, and a deviation of `spread`."""
    x0 = mean + alpha * spread**2 / math.hypot(alpha * spread, sigma) ** 2 * (x - alpha * mean)
    return said(scheduler, x, x0, alpha, sigma)
