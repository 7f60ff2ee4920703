"""PNDM: pseudo numerical methods, the Runge-Kutta and linear multistep solver of Liu et al. 2022."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..config import register_to_config
from .betas import BetaScheduler
from .noise import Array, Levels
from .table import Row

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def _opens_runge_kutta(times: Array) -> bool:
    """Whether the next calls are at the start, the middle twice, and the end, where the step after begins."""
    return len(times) == 5 and times[0] > times[1] == times[2] > times[3] == times[4]


class PNDMScheduler(BetaScheduler):
    """Pseudo numerical methods for diffusion models (Liu et al. 2022). Second order.

    Begins with three Runge-Kutta steps of four model calls each (equation 13), or, with `skip_prk_steps`, with one
    repeated call; goes on with linear multistep steps (equation 12). So there are more model calls than steps:
    `len(timesteps)` is the number of calls.

    Entered midway (image-to-image), the first two calls open the trajectory in the same way, though the second is told the
    next timestep: from there on the sample lags a step behind what the model is told. It is the peer's choice, and its
    pictures depend on it; with many steps it matters little.

    Args:
        skip_prk_steps: begin without Runge-Kutta steps.
        set_alpha_to_one: end at a clean sample; otherwise at training timestep 0.
        prediction_type: `"epsilon"` or `"v_prediction"` (outputs are mixed as they are, then read), or `"sample"`.
    """

    memory = "output"
    tells_x0 = False

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False, prediction_type: str = "epsilon", timestep_spacing: str = "leading",
        steps_offset: int = 0,
    ):
        self._prepare()

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        times = self.noise_schedule.spaced(self.config.timestep_spacing, steps, self.config.steps_offset).round()
        half = self.noise_schedule.count // steps // 2
        if self.config.skip_prk_steps or steps < 4 or not half:
            calls = np.concatenate([times[:1], times[1:2], times[1:]])
        else:  # three Runge-Kutta steps: start, middle, middle, end
            stages = [[start, end + half, end + half, end] for start, end in pairwise(times[:4])]
            calls = np.concatenate([*stages, times[3:]])
        final = 1.0 if self.config.set_alpha_to_one else self.noise_schedule.alphas_cumprod[0]
        return self.noise_schedule.vp_levels(calls, final)

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """One row a model call; `past` are the rows whose outputs open a step, the latest first."""
        times = levels.timesteps
        rows: list[Row] = []
        past: list[int] = []
        while len(rows) < len(levels):
            i = len(rows)
            past = [i, *past][:4]
            if _opens_runge_kutta(times[i : i + 5]):
                mixes = ({i: 1.0}, {i + 1: 1.0}, {i + 2: 1.0}, dict(zip(range(i, i + 4), _RUNGE_KUTTA, strict=True)))
                ends = (i + 1, i + 1, i + 3, i + 3)
                rows += [self._transfer(levels, i, end, mix) for end, mix in zip(ends, mixes, strict=True)]
            elif i == 0 and len(times) > 1 and (levels.begin or (len(times) > 2 and times[1] == times[2])):
                # go, ask again there, and go once more by the mean
                repeated = int(times[0] == times[1])
                rows += [self._transfer(levels, 0, 1 + repeated, {0: 1.0}),
                         self._transfer(self._a_step_above(levels) if repeated else levels, 0, 1, {0: 0.5, 1: 0.5})]
            else:
                mix = dict(zip(past, ADAMS_BASHFORTH[len(past) - 1], strict=True))
                rows.append(self._transfer(levels, i, i + 1, mix))
        return rows

    def _a_step_above(self, levels: Levels) -> Levels:
        """`levels`, beginning a step earlier: for a trajectory entered at the repeated call."""
        steps = levels.begin + len(levels) - 1
        above = min(levels.timesteps[0] + self.noise_schedule.count // steps, self.highest_timestep)
        kept = self.noise_schedule.alphas_cumprod[int(above)]
        alpha, sigma = levels.alpha.copy(), levels.sigma.copy()
        alpha[0], sigma[0] = kept**0.5, (1 - kept) ** 0.5
        return replace(levels, alpha=alpha, sigma=sigma)

    def _transfer(self, levels: Levels, start: int, end: int, mix: dict[int, float]) -> Row:
        """From the sample of row `start` to the level of row `end` by a mix of outputs (equation 11).

        The equation is `x' = alpha'/alpha · x + (sigma' - alpha'/alpha · sigma) · noise`; the mixed outputs are read as
        noise at the level of `start`.
        """
        alpha, sigma = levels.alpha, levels.sigma
        scale = alpha[end] / alpha[start]
        along = sigma[end] - scale * sigma[start]
        reading_x, reading_out = {
            "epsilon": (0.0, 1.0),
            "v_prediction": (sigma[start], alpha[start]),
            "sample": (1 / sigma[start], -alpha[start] / sigma[start]),
            "flow_prediction": (1 / (alpha[start] + sigma[start]), alpha[start] / (alpha[start] + sigma[start])),
        }[self.config.prediction_type]
        return Row(x={start: scale + along * reading_x}, m={j: along * reading_out * w for j, w in mix.items()})
