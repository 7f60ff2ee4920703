"""DPM-Solver and DPM-Solver++ as singlestep methods, in the manner of Runge and Kutta (Lu et al. 2022a, 2022b)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..config import register_to_config
from .dpmsolver_multistep import DPMSolver, moments_taken
from .lambdas import lambdas, through, usable
from .noise import Levels
from .table import Row


class DPMSolverSinglestepScheduler(DPMSolver):
    """DPM-Solver-2S and -3S (Lu et al. 2022a, algorithms 1 and 2; 2022b, algorithm 1). Order `solver_order`.

    A step of order `k` takes `k` rows, all of which start from its first sample; each is of one order more.

    Args:
        solver_order: 1, 2 or 3. 2 is good for guided generation.
        algorithm_type: integrate the clean sample, `"dpmsolver++"`, or the noise, `"dpmsolver"`; `"sde-dpmsolver++"`
            draws fresh noise.
        solver_type: order 2: take the first moment as half of the zeroth, `"midpoint"`, or exactly, `"heun"`. Order 3: put
            a line through the first and the last output, `"midpoint"`, or a parabola through all, `"heun"`.
        lower_order_final: end with a row of first order, also if the rows are a multiple of `solver_order`. Always so
            where the trajectory ends without noise.
        lambda_min_clipped: no level below this, for `squaredcos_cap_v2`.
        variance_type: `"learned"` or `"learned_range"`: a model whose output has a second half, which is passed over.
    """

    algorithm_types = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++")

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint",
        lower_order_final: bool = False, use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False, use_flow_sigmas: bool = False, flow_shift: float = 1.0,
        final_sigmas_type: str = "zero", lambda_min_clipped: float = -math.inf, variance_type: str | None = None,
        use_dynamic_shifting: bool = False, time_shift_type: str = "exponential",
    ):
        self._settle_integral(final_sigmas_type)

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """The integral from the first sample of the step, with the polynomial through the step's outputs so far."""
        times, rows = lambdas(levels), []
        for i, order in enumerate(self._orders(levels.begin + len(levels))[levels.begin :]):
            start = max(i - order + 1, 0)
            nodes = list(range(start, i + 1))
            if len(nodes) == 3 and self.config.solver_type == "midpoint":
                nodes = [start, i]
            exact_line = len(nodes) < i - start + 1
            nodes = usable(times, i + 1, nodes)
            h = float(times[i + 1] - times[start])
            moments = moments_taken(self._integral, h, "heun" if exact_line else self.config.solver_type, len(nodes))
            rows.append(self._integral.row(levels, start, i + 1, through(times, start, i + 1, nodes, moments)))
        return rows

    def _orders(self, count: int) -> list[int]:
        """The order of each row: 1, 2, … up to `solver_order`, again and again."""
        most = self.config.solver_order
        orders = [i % most + 1 for i in range(count)]
        if self.config.final_sigmas_type == "zero" or (self.config.lower_order_final and count % most == 0):
            orders[-1] = 1
        return orders
