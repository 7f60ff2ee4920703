"""SA-Solver: a stochastic Adams predictor and corrector (Xue et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..config import register_to_config
from ..words import check_choice
from .correctors import corrected
from .lambdas import Integral, LambdaScheduler, lambdas, through, usable
from .noise import Array, Levels
from .table import Row


class SASolverScheduler(LambdaScheduler):
    """Stochastic Adams method (Xue et al. 2023, algorithm 1): a predictor, and a corrector that costs no model call.

    Both put a polynomial through the outputs, and both use the same fresh noise. It ends at the smallest training level.

    Args:
        predictor_order, corrector_order: how many outputs each mixes, 1 or more; the corrector's first is the new one.
        tau_func: the share of fresh noise at a timestep, from 0 (the ODE) to 1 (the noise of DDPM) and beyond; by default 1 from
            200 to 800 and 0 elsewhere.
        algorithm_type: integrate the clean sample, `"data_prediction"`, or the noise, `"noise_prediction"`.
        lower_order_final: end with lower orders.
        lambda_min_clipped, variance_type: as of `DPMSolverMultistepScheduler`.
    """

    placed_by = ()

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, predictor_order: int = 2,
        corrector_order: int = 2, prediction_type: str = "epsilon", tau_func: Callable[[float], float] | None = None,
        thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
        algorithm_type: str = "data_prediction", lower_order_final: bool = True, use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, use_flow_sigmas: bool = False,
        flow_shift: float = 1.0, lambda_min_clipped: float = -math.inf, variance_type: str | None = None,
        timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):
        check_choice("algorithm_type", algorithm_type, ("data_prediction", "noise_prediction"))
        for name in ("predictor_order", "corrector_order"):
            if not self.config[name] >= 1:
                raise ValueError(f"{name} is {self.config[name]!r}, but must be 1 or more")
        self.memory = "x0" if algorithm_type == "data_prediction" else "noise"
        self._prepare()

    def _last(self, training: Array) -> float:
        return float(training[0])

    def tau(self, timestep: float) -> float:
        """The share of fresh noise of the step from `timestep`."""
        if self.config.tau_func is not None:
            return float(self.config.tau_func(timestep))
        return 1.0 if 200 <= timestep <= 800 else 0.0

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """Noise is drawn in every step, also where `tau` is 0."""
        times, predictions, corrections = lambdas(levels), list[Row](), list[Mapping[int, float] | None]()
        for i in range(len(levels)):
            left = len(levels) - i if self.config.lower_order_final else len(levels)
            order = min(self.config.predictor_order, left)
            predicted = self._go(levels, times, i, usable(times, i + 1, range(i, max(i - order, -1), -1)))
            predictions.append(Row(predicted.x, predicted.m, noise=predicted.noise or 0.0))
            order = min(self.config.corrector_order, left + 1)
            nodes = [i + 1, *usable(times, i + 1, range(i, max(i + 1 - order, -1), -1))] if order > 1 else [i + 1]
            corrects = i + 1 < len(levels) and times[i + 1] > times[i]
            corrections.append(self._go(levels, times, i, nodes).m if corrects else None)
        return corrected(predictions, corrections)

    def _go(self, levels: Levels, times: Array, i: int, nodes: Sequence[int]) -> Row:
        """From level `i` to the next. Moments are exact, but for two clean samples: there the first is that of a flat weight."""
        integral = Integral(self.memory, self.tau(float(levels.timesteps[i])))
        h = float(times[i + 1] - times[i])
        moments = integral.moments(h, len(nodes))
        if len(nodes) == 2 and self.memory == "x0":
            moments[1] = (1 + integral.tau**2) * h / 2
        return integral.row(levels, i, i + 1, through(times, i, i + 1, nodes, moments))
