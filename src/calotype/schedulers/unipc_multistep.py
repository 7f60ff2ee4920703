"""UniPC: a predictor, and a corrector that costs no model call (Zhao et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config import register_to_config
from .correctors import corrected
from .deis_multistep import DEISMultistepScheduler
from .dpmsolver_multistep import MultistepRows
from .lambdas import Integral, LambdaScheduler, lambdas, through, usable
from .noise import Array, Levels
from .table import Row


class UniPCMultistepScheduler(LambdaScheduler):
    """Unified predictor-corrector (Zhao et al. 2023, algorithms 5 to 8). Order `solver_order`, and one more where corrected.

    Args:
        solver_order: 1, 2 or 3: how many outputs a prediction mixes. 2 is good for guided generation.
        predict_x0: integrate the clean sample; otherwise the noise.
        solver_type: the paper's `B(h)`: `"bh1"`, which is `h`, or `"bh2"`, which is `e^h - 1`.
        lower_order_final: end with lower orders.
        disable_corrector: rows whose result is left uncorrected.
        solver_p: another scheduler as the predictor, a `DPMSolverMultistepScheduler` or a `DEISMultistepScheduler`: its formula
            on the levels of this one. It sees the corrected samples. A saved config cannot bring it back.
        sigma_min, sigma_max: the ramp's ends (default: those of training).
    """

    placed_by = ("sigmas",)
    sigmas_name_the_end = False
    solver_types = ("bh2", "bh1")

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, predict_x0: bool = True, solver_type: str = "bh2", lower_order_final: bool = True,
        disable_corrector: Sequence[int] = [], solver_p: Any = None, use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, use_flow_sigmas: bool = False,
        flow_shift: float = 1.0, timestep_spacing: str = "linspace", steps_offset: int = 0, final_sigmas_type: str = "zero",
        rescale_betas_zero_snr: bool = False, use_dynamic_shifting: bool = False, time_shift_type: str = "exponential",
        sigma_min: float | None = None, sigma_max: float | None = None, shift_terminal: float | None = None,
    ):
        self._settle_kinds()
        if shift_terminal and not use_flow_sigmas:
            raise ValueError("shift_terminal needs use_flow_sigmas")
        self._integral = Integral("x0" if predict_x0 else "noise")
        self.memory = self._integral.of
        self._predictor = solver_p
        if solver_p is not None and not (isinstance(solver_p, MultistepRows | DEISMultistepScheduler) and
                                         solver_p.memory == self.memory and not solver_p._integral.tau):
            raise ValueError(f"solver_p must be a DPMSolverMultistepScheduler or a DEISMultistepScheduler that mixes "
                             f"{self.memory} and draws no noise, and is {type(solver_p).__name__}")
        self._prepare()

    def _ramp_ends(self, training: Array) -> tuple[float, float]:
        largest, smallest = super()._ramp_ends(training)
        return self.config.sigma_max or largest, self.config.sigma_min or smallest

    def _even(self, steps: int) -> Array:
        return np.linspace(1, 1 / self.noise_schedule.count, steps + 1)[:-1]

    def _last(self, training: Array) -> float:
        return 0.0 if self.config.final_sigmas_type == "zero" else self._ramp_ends(training)[1] if self._ramp else training[0]

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """Polynomials through the outputs: for the corrector also through the new one."""
        times, predictions, corrections = lambdas(levels), list[Row](), list[Mapping[int, float] | None]()
        for i in range(len(levels)):
            nodes = usable(times, i + 1, range(i, max(i - self._order(len(levels) - i), -1), -1))
            corrects = i + 1 < len(levels) and levels.begin + i not in self.config.disable_corrector and times[i + 1] > times[i]
            predictions.append(self._go(levels, times, i, nodes))
            corrections.append(self._go(levels, times, i, [*nodes, i + 1]).m if corrects else None)
        if self._predictor is None:
            return corrected(predictions, corrections)
        read = self.prediction(levels)
        return corrected(self._predictor.rows(levels), corrections, (read.x0_x if self.memory == "x0" else read.noise_x).tolist())

    def _go(self, levels: Levels, times: Array, i: int, nodes: Sequence[int]) -> Row:
        """From level `i` to the next. The moments are exact, but for two nodes: there the first is half of `B(h)`."""
        h = float(times[i + 1] - times[i])
        moments = self._integral.moments(h, len(nodes))
        if len(nodes) == 2:
            moments[1] = (h if self.config.solver_type == "bh1" else moments[0]) / 2
        return self._integral.row(levels, i, i + 1, through(times, i, i + 1, nodes, moments))

    def _order(self, left: int) -> int:
        return min(self.config.solver_order, left) if self.config.lower_order_final else int(self.config.solver_order)
