"""DPM-Solver and DPM-Solver++ as multistep methods, along the ODE or with fresh noise (Lu et al. 2022a, 2022b)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from ..config import register_to_config
from .base import Scheduler
from .lambdas import Integral, LambdaScheduler, lambdas, through, usable
from .noise import Array, Levels
from .table import Row

INTEGRALS = {
    "dpmsolver": Integral("noise"), "dpmsolver++": Integral("x0"),
    "sde-dpmsolver": Integral("noise", tau=1.0), "sde-dpmsolver++": Integral("x0", tau=1.0),
}


def moments_taken(integral: Integral, h: float, solver_type: str, order: int) -> list[float]:
    """The moments of as many powers as `order` says, as DPM-Solver takes them."""
    if solver_type == "midpoint" and order == 2:
        (zeroth,) = integral.moments(h, 1)
        return [zeroth, zeroth / 2]
    return integral.moments(h, order)


class MultistepRows(Scheduler):
    """The steps of DPM-Solver, for samples of any kind."""

    _integral: Integral

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """The integral with the polynomial through the last `order` outputs, the moments taken by `moments_taken`."""
        times, rows = lambdas(levels), []
        for i in range(len(levels)):
            nodes = usable(times, i + 1, range(i, max(i - self._order(levels, i), -1), -1))
            moments = moments_taken(self._integral, float(times[i + 1] - times[i]), self.config.solver_type, len(nodes))
            if len(nodes) == 3 and not self._integral.tau:
                moments[2] /= 2
            rows.append(self._integral.row(levels, i, i + 1, through(times, i, i + 1, nodes, moments)))
        return rows

    def _order(self, levels: Levels, i: int) -> int:
        config, left, few = self.config, len(levels) - i, levels.begin + len(levels) < 15
        clean = config.get("final_sigmas_type") == "zero"
        if left == 1 and (config.euler_at_final or clean or (config.lower_order_final and few)):
            return 1
        return min(config.solver_order, left) if config.lower_order_final and few else int(config.solver_order)


class DPMSolver(LambdaScheduler):
    """What DPM-Solvers share, whatever they put together to a step."""

    _integral: Integral
    solver_types = ("midpoint", "heun")

    def _settle_integral(self, final_sigmas_type: str) -> None:
        """The end of every `__init__`: the integral that `algorithm_type` names, which must be able to end as asked."""
        self._settle_kinds()
        self._integral = INTEGRALS[self.config.algorithm_type]
        self.memory = self._integral.of
        if self.memory == "noise" and final_sigmas_type == "zero":
            raise ValueError(f"{self.config.algorithm_type} cannot end without noise: it takes final_sigmas_type='sigma_min'")
        self._prepare()


class DPMSolverMultistepScheduler(MultistepRows, DPMSolver):
    """DPM-Solver++(2M) and its relatives (Lu et al. 2022b, algorithm 2). Order `solver_order`; for 3 see below.

    `solver_order=3` is of second order in general: its quadratic term has half the weight of the integral's, which was found by
    fitting the steps behind the pictures that people know. `UniPCMultistepScheduler` has a true third order.
    Stochastic steps of order 3 have the whole weight: the peer's has the wrong sign in `sde-dpmsolver++` (it adds
    `-1/2` where the integral gives `+1/2`), and `sde-dpmsolver` crashes. Where a ramp's last level is also where the
    trajectory ends (`sigma_min`), the last step goes nowhere; the peer's `heun` and order 3 divide by its length.

    Args:
        solver_order: 1, 2 or 3: how many outputs a step mixes. 2 is good for guided generation.
        algorithm_type: integrate the clean sample, `"dpmsolver++"`, or the noise, `"dpmsolver"`; `sde-` draws fresh noise.
        solver_type: take the first moment as half of the zeroth, `"midpoint"`, or exactly, `"heun"`.
        lower_order_final: end with lower orders if there are fewer than 15 steps.
        euler_at_final: end with a step of first order.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas: place levels by a ramp; at most one.
        lambda_min_clipped: no level below this, for `squaredcos_cap_v2`.
        variance_type: `"learned"` or `"learned_range"`: a model whose output has a second half, which is passed over.
    """

    algorithm_types: ClassVar[tuple[str, ...]] = ("dpmsolver++", "dpmsolver", "sde-dpmsolver", "sde-dpmsolver++")

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint",
        lower_order_final: bool = True, euler_at_final: bool = False, use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, use_lu_lambdas: bool = False,
        use_flow_sigmas: bool = False, flow_shift: float = 1.0, final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -math.inf, variance_type: str | None = None, timestep_spacing: str = "linspace",
        steps_offset: int = 0, rescale_betas_zero_snr: bool = False, use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ):
        self._settle_integral(final_sigmas_type)

    def _whole(self, times: Array) -> Array:
        return np.floor(times) if self.config.beta_schedule == "squaredcos_cap_v2" else super()._whole(times)
