"""Linear multistep methods: PNDM (Liu et al. 2022), with Runge-Kutta steps to begin with, IPNDM and LMS."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from .base import Scheduler
from .betas import BetaScheduler, VEScheduler
from .entries import BETAS, RAMPS, takes
from .lambdas import through
from .noise import Array, Levels
from .table import Row

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


@takes(**BETAS, skip_prk_steps=False, set_alpha_to_one=False, prediction_type="epsilon", timestep_spacing="leading",
       steps_offset=0)
class PNDMScheduler(BetaScheduler):
    """Pseudo numerical methods for diffusion models (Liu et al. 2022). Second order.

    Begins with three Runge-Kutta steps of four model calls each (equation 13), or, with `skip_prk_steps`, with one
    repeated call; goes on with linear multistep steps (equation 12). So there are more model calls than steps:
    `len(timesteps)` is the number of calls. Outputs are mixed as they are, then read.

    Entered midway (image-to-image), the first two calls open the trajectory in the same way, though the second is told the
    next timestep: from there on the sample lags a step behind what the model is told. It is the peer's choice.
    """

    memory = "output"
    tells_x0 = False

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        times = self.noise_schedule.spaced(self.config.timestep_spacing, steps, self.config.steps_offset).round()
        half = self.noise_schedule.count // steps // 2
        if self.config.skip_prk_steps or steps < 4 or not half:
            calls = np.concatenate([times[:1], times[1:2], times[1:]])
        else:  # three Runge-Kutta steps
            stages = [[start, end + half, end + half, end] for start, end in pairwise(times[:4])]
            calls = np.concatenate([*stages, times[3:]])
        return self.noise_schedule.vp_levels(calls, float(self.final_alpha_cumprod))

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """One row a model call; `past` are the rows whose outputs open a step, the latest first."""
        times, rows, past = levels.timesteps, list[Row](), list[int]()
        while (i := len(rows)) < len(levels):
            past, ahead = [i, *past][:4], times[i : i + 5]
            if len(ahead) == 5 and ahead[0] > ahead[1] == ahead[2] > ahead[3] == ahead[4]:  # start, middle twice, end, next
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
        """`x' = alpha'/alpha · x + (sigma' - alpha'/alpha · sigma) · noise` (equation 11), the mix read as noise at `start`."""
        scale = levels.alpha[end] / levels.alpha[start]
        along, read = levels.sigma[end] - scale * levels.sigma[start], self.prediction(levels)
        return Row(x={start: scale + along * read.noise_x[start]},
                   m={j: along * read.noise_out[start] * weight for j, weight in mix.items()})


@takes(num_train_timesteps=1000, trained_betas=None)
class IPNDMScheduler(Scheduler):
    """Linear multistep for models of `v` on trigonometric levels (Zhang & Chen 2023, "improved PNDM"). Second order.

    The levels are `sigma = sin²(π t / 2)` and `alpha² + sigma² = 1` for evenly spaced `t` from 1 to 0; the model is told their
    angle, `2/π · atan2(sigma, alpha)`, from 1 (noise) to 0. At 1, where there is no signal, the clean sample counts as 0,
    whatever the model says; but for a single step. The weights are those of even steps.
    """

    memory = "noise"
    tells_x0 = False
    timestep_dtype = np.float32
    prediction_types = ("v_prediction",)

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        given = self.config.trained_betas
        sigma = np.sin(np.linspace(1, 0, steps + 1) * np.pi / 2) ** 2 if given is None else np.asarray(given, dtype=np.float64)
        alpha = np.sqrt(1 - sigma**2)
        if len(alpha) == 2:
            alpha[0] = max(alpha[0], 2**-24)
        times = 2 / np.pi * np.arctan2(sigma, alpha)[:-1]
        return Levels(times.astype(np.float32).astype(np.float64), alpha, sigma)

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """`x' = alpha'/alpha · x + (sigma' - alpha'/alpha · sigma) · Σ_j w_j · noise_j`, `w` of Adams and Bashforth."""
        scale = levels.alpha[i + 1] / levels.alpha[i] if levels.alpha[i] > 0 else 0.0
        along, past = levels.sigma[i + 1] - scale * levels.sigma[i], range(i, max(i - 4, -1), -1)
        return Row(x={i: scale}, m={j: along * w for j, w in zip(past, ADAMS_BASHFORTH[len(past) - 1], strict=True)})


@takes(**BETAS, **RAMPS, prediction_type="epsilon", timestep_spacing="linspace", steps_offset=0)
class LMSDiscreteScheduler(VEScheduler):
    """Linear multistep (Adams-Bashforth) on `dx/dsigma = noise`, on the uneven levels as they are. Order 4 by default.

    A trajectory entered midway grows its history from there. Samples are variance-exploding: see `VEScheduler`.
    """

    memory = "noise"

    def row(self, levels: Levels, i: int, order: int = 4, **options: Any) -> Row:
        """`x' = x + ∫ noise dsigma`, by the polynomial in sigma through the noise of the last `order` rows."""
        if order < 1:
            raise ValueError(f"order is {order}, but must be 1 or more")
        past, h = range(i, max(i - order, -1), -1), levels.sigma[i + 1] - levels.sigma[i]
        return Row(x={i: 1.0}, m=through(levels.sigma, i, i + 1, past, [h / (k + 1) for k in range(len(past))]))

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, order: int = 4,  # type: ignore[override]
             return_dict: bool = True) -> Any:
        """The sample [B, …] at the next level, by a polynomial through the last `order` slopes."""
        return self._step(model_output, timestep, sample, None, return_dict, order=order)
