"""UniPC: a predictor, and a corrector that costs no model call (Zhao et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..config import register_to_config
from ..words import check_choice
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
        solver_p: not supported: another solver as the predictor.
    """

    placed_by = ()

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
        if solver_type in ("midpoint", "heun", "logrho"):
            self.register_to_config(solver_type="bh2")
        check_choice("solver_type", self.config.solver_type, ("bh1", "bh2"))
        if solver_p is not None:
            raise ValueError("solver_p is not supported by UniPCMultistepScheduler")
        self._integral = Integral("x0" if predict_x0 else "noise")
        self.memory = self._integral.of
        self._prepare()

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """Predict, and in the next row, whose model call is also of the level predicted, correct before going on.

        Both put a polynomial through the outputs; only the corrector's goes through the new one too. From the corrected
        sample `y` of row `i - 1`, of which the prediction made `x[i] = a y + Σ p_j m_j`, the corrector makes
        `a y + Σ c_j m_j`: that is `x[i] + Σ (c_j - p_j) m_j`.
        """
        times, rows = lambdas(levels), []
        predicted: Mapping[int, float] = {}  # the outputs' weights in the sample that enters the row
        nodes: list[int] = []
        for i in range(len(levels)):
            corrected = predicted
            if i and levels.begin + i - 1 not in self.config.disable_corrector and times[i] > times[i - 1]:
                corrected = self._go(levels, times, i - 1, [*nodes, i]).m
            nodes = usable(times, i + 1, range(i, max(i - self._order(len(levels) - i), -1), -1))
            row = self._go(levels, times, i, nodes)
            mixed = dict(row.m)
            for j in {*predicted, *corrected}:
                mixed[j] = mixed.get(j, 0.0) + row.x[i] * (corrected.get(j, 0.0) - predicted.get(j, 0.0))
            rows.append(Row(row.x, mixed))
            predicted = row.m
        return rows

    def _go(self, levels: Levels, times: Array, i: int, nodes: Sequence[int]) -> Row:
        """From level `i` to the next. The moments are exact, but for two nodes: there the first is half of `B(h)`."""
        h = float(times[i + 1] - times[i])
        moments = self._integral.moments(h, len(nodes))
        if len(nodes) == 2:
            moments[1] = (h if self.config.solver_type == "bh1" else moments[0]) / 2
        return self._integral.row(levels, i, i + 1, through(times, i, i + 1, nodes, moments))

    def _order(self, left: int) -> int:
        return min(self.config.solver_order, left) if self.config.lower_order_final else int(self.config.solver_order)
