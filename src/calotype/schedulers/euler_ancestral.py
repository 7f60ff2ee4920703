"""Euler with ancestral noise: each step goes further down than the next level, and noise brings it back up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..config import register_to_config
from .noise import Levels
from .table import Row
from .ve import VEScheduler


def ancestral(sigma: float, following: float) -> tuple[float, float]:
    """The level to go down to, and the noise that then lifts the sample to level `following`.

    The posterior of DDPM's ancestral sampling (Ho et al. 2020, equation 7) in VE form: `down = following² / sigma` and
    `up² = following² - down²`.
    """
    down = following**2 / sigma
    return down, math.sqrt(following**2 - down**2)


class EulerAncestralDiscreteScheduler(VEScheduler):
    """Ancestral sampling by Euler steps (Karras et al. 2022, with the noise of Ho et al. 2020). Stochastic, first order.

    Samples are variance-exploding: begin with noise times `init_noise_sigma` and call `scale_model_input`. Models of the
    clean sample (`"sample"`), which Diffusers refuses, work.
    """

    memory = "noise"

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace", steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
    ):
        self._prepare()

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """`x' = x + (down - sigma) · noise + up · fresh`; see `ancestral`."""
        rows = []
        for i in range(len(levels)):
            down, up = ancestral(levels.sigma[i], levels.sigma[i + 1])
            rows.append(Row(x={i: 1.0}, m={i: down - levels.sigma[i]}, noise=up))
        return rows
