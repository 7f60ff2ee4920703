"""UniPC and SA-Solver: predictors with a corrector that costs no model call (Zhao et al. 2023; Xue et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..words import check_choice
from .dpmsolver import DEISMultistepScheduler, MultistepRows
from .entries import BETAS, RAMPS, THRESHOLD, takes
from .lambdas import Integral, LambdaScheduler
from .noise import Array, Levels
from .table import Row


def corrected(predictions: Sequence[Row], corrections: Sequence[Mapping[int, float] | None],
              readings: Sequence[float] = ()) -> list[Row]:
    """Rows that predict, and after the next model call, which is also of the level predicted, correct before going on.

    `predictions[i]` goes on from the corrected sample `y` of row `i`, to `a y + Σ p_j m_j`; `corrections[i]` are the weights
    `c_j` of the outputs, also of the next one, that take the place of `p_j`, if any. The corrected sample of row `i + 1`
    is then its sample `+ Σ (c_j - p_j) m_j`. With `readings`, the weights of samples in their `m`, predictions mix outputs as
    read with the corrected samples.
    """
    rows, lacks = [], [dict[int, float]()]  # what the sample of each row lacks of the corrected one
    for row, correction in zip(predictions, corrections, strict=True):
        (kept,), mixed = row.x.values(), row.m
        for j, weight in row.m.items() if readings else ():
            mixed = _sum(mixed, weight * readings[j], lacks[j])
        rows.append(Row(row.x, _sum(mixed, kept, lacks[-1]), noise=row.noise))
        lacks.append({} if correction is None else _sum(correction, -1.0, mixed))
    return rows


def _sum(weights: Mapping[int, float], factor: float, others: Mapping[int, float]) -> dict[int, float]:
    """`weights + factor · others`."""
    return {j: weights.get(j, 0.0) + factor * others.get(j, 0.0) for j in {**weights, **others}}


@takes(**BETAS, solver_order=2, prediction_type="epsilon", **THRESHOLD, predict_x0=True, solver_type="bh2",
       lower_order_final=True, disable_corrector=[], solver_p=None, **RAMPS, use_flow_sigmas=False, flow_shift=1.0,
       timestep_spacing="linspace", steps_offset=0, final_sigmas_type="zero", rescale_betas_zero_snr=False,
       use_dynamic_shifting=False, time_shift_type="exponential", sigma_min=None, sigma_max=None, shift_terminal=None)
class UniPCMultistepScheduler(LambdaScheduler):
    """Unified predictor-corrector (Zhao et al. 2023, algorithms 5 to 8). Order `solver_order`, and one more where corrected.

    `solver_type` is the paper's `B(h)`: `"bh1"`, which is `h`, or `"bh2"`, which is `e^h - 1`. `solver_p` is a
    `DPMSolverMultistepScheduler` or a `DEISMultistepScheduler` as the predictor: its formula on the levels of this one. It sees
    the corrected samples. A saved config cannot bring it back.
    """

    placed_by = ("sigmas",)
    sigmas_name_the_end = False

    def _prepare(self) -> None:
        config, predictor = self.config, self.config.solver_p
        self._settle("solver_type", "bh2", "bh1")
        if config.shift_terminal and not config.use_flow_sigmas:
            raise ValueError("shift_terminal needs use_flow_sigmas")
        self._integral = Integral("x0" if config.predict_x0 else "noise")
        self.memory, self._predictor = self._integral.of, predictor
        if predictor is not None and not (isinstance(predictor, MultistepRows | DEISMultistepScheduler) and
                                          predictor.memory == self.memory and not predictor._integral.tau):
            raise ValueError(f"solver_p must be a DPMSolverMultistepScheduler or a DEISMultistepScheduler that mixes "
                             f"{self.memory} and draws no noise, and is {type(predictor).__name__}")
        super()._prepare()

    def _even(self, steps: int) -> Array:
        return np.linspace(1, 1 / self.noise_schedule.count, steps + 1)[:-1]

    def _end(self) -> float:
        at_ramps_end = self._ramp and not self._ends_clean and self.config.sigma_min
        return float(self.config.sigma_min) if at_ramps_end else super()._end()

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """Polynomials through the outputs: for the corrector also through the new one."""
        config, times, predictions, corrections = self.config, levels.lambdas, list[Row](), list[Mapping[int, float] | None]()
        for i in range(len(levels)):
            order = min(config.solver_order, len(levels) - i) if config.lower_order_final else config.solver_order
            nodes = self._last(levels, i, order)
            predictions.append(self._go(levels, i, i + 1, nodes))
            corrects = i + 1 < len(levels) and levels.begin + i not in config.disable_corrector and times[i + 1] > times[i]
            corrections.append(self._go(levels, i, i + 1, [*nodes, i + 1]).m if corrects else None)
        if self._predictor is None:
            return corrected(predictions, corrections)
        read = self.prediction(levels)
        return corrected(self._predictor.rows(levels), corrections, (read.x0_x if self.memory == "x0" else read.noise_x).tolist())

    def _moments(self, integral: Integral, h: float, nodes: Sequence[int]) -> list[float]:
        """Exactly, but for two nodes: there the first is half of `B(h)`."""
        moments = integral.moments(h, len(nodes))
        if len(nodes) == 2:
            moments[1] = (h if self.config.solver_type == "bh1" else moments[0]) / 2
        return moments


@takes(**BETAS, predictor_order=2, corrector_order=2, prediction_type="epsilon", tau_func=None, **THRESHOLD,
       algorithm_type="data_prediction", lower_order_final=True, **RAMPS, use_flow_sigmas=False, flow_shift=1.0,
       lambda_min_clipped=-math.inf, variance_type=None, timestep_spacing="linspace", steps_offset=0)
class SASolverScheduler(LambdaScheduler):
    """Stochastic Adams method (Xue et al. 2023, algorithm 1): a predictor, and a corrector that costs no model call.

    Both put a polynomial through the outputs, and both use the same fresh noise. It ends at the smallest training level.
    """

    placed_by = ()

    def _prepare(self) -> None:
        check_choice("algorithm_type", self.config.algorithm_type, ("data_prediction", "noise_prediction"))
        for name in ("predictor_order", "corrector_order"):
            if not self.config[name] >= 1:
                raise ValueError(f"{name} is {self.config[name]!r}, but must be 1 or more")
        self.memory = "x0" if self.config.algorithm_type == "data_prediction" else "noise"
        super()._prepare()

    def tau(self, timestep: float) -> float:
        """The share of fresh noise of the step from `timestep`: by default 1 from 200 to 800 and 0 elsewhere."""
        return float(self.config.tau_func(timestep) if self.config.tau_func else 200 <= timestep <= 800)

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """Noise is drawn in every step, also where `tau` is 0."""
        config, times, predictions, corrections = self.config, levels.lambdas, list[Row](), list[Mapping[int, float] | None]()
        for i, timestep in enumerate(levels.timesteps.tolist()):
            integral, left = Integral(self.memory, self.tau(timestep)), len(levels) - (i if config.lower_order_final else 0)
            predicted = self._go(levels, i, i + 1, self._last(levels, i, min(config.predictor_order, left)), integral)
            predictions.append(Row(predicted.x, predicted.m, noise=predicted.noise or 0.0))
            order = min(config.corrector_order, left + 1)
            nodes = [i + 1, *(self._last(levels, i, order - 1) if order > 1 else ())]
            corrects = i + 1 < len(levels) and times[i + 1] > times[i]
            corrections.append(self._go(levels, i, i + 1, nodes, integral).m if corrects else None)
        return corrected(predictions, corrections)

    def _moments(self, integral: Integral, h: float, nodes: Sequence[int]) -> list[float]:
        """Exactly, but for two clean samples: there the first is that of a flat weight."""
        moments = integral.moments(h, len(nodes))
        if len(nodes) == 2 and integral.of == "x0":
            moments[1] = (1 + integral.tau**2) * h / 2
        return moments
