"""What steps of several solvers are made of: churn, ancestral noise, and two model calls a step."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
from torch import Tensor

from ..randomness import Generators
from .base import Scheduler
from .noise import Array, Levels


def ancestral(sigma: float, following: float) -> tuple[float, float]:
    """The level to go down to, and the noise that then lifts the sample to level `following`.

    The posterior of DDPM's ancestral sampling (Ho et al. 2020, equation 7) in VE form: `down = following² / sigma` and
    `up² = following² - down²`.
    """
    down = following**2 / sigma
    return down, math.sqrt(following**2 - down**2)


def interleaved(opening: Array, between: Array) -> Array:
    """`opening[0], between[0], opening[1], …`, for steps of two model calls; the last step has one: its end is clean."""
    calls = np.empty(2 * len(opening) - 1)
    calls[::2], calls[1::2] = opening, between
    return calls


def start_of_two(levels: Levels, i: int) -> int:
    """The row where the step of call `i` begins, in steps of two; entered at a second call, a step begins there."""
    return i - 1 if (levels.begin + i) % 2 and i else i


def churned(
    levels: Levels, i: int, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
) -> tuple[float, float | None]:
    """The level to which fresh noise lifts row `i` before its step, and how much noise, or `None` (algorithm 2, lines 4 to 6)."""
    sigma = float(levels.sigma[i])
    churn = min(s_churn / (levels.begin + len(levels)), math.sqrt(2) - 1) if s_tmin <= sigma <= s_tmax else 0.0
    return sigma * (1 + churn), s_noise * sigma * math.sqrt((1 + churn) ** 2 - 1) if churn > 0 else None


class ChurnedStep(Scheduler):
    """Solvers whose `step` may mix in fresh noise; the options of their rows are those of `churned`."""

    @classmethod
    def step_options(cls) -> set[str]:
        return {*inspect.signature(churned).parameters} - {"levels", "i"}

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
