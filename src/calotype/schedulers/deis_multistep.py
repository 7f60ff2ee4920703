"""DEIS: an exponential integrator with polynomials in the logarithm of the level (Zhang & Chen 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config import register_to_config
from .lambdas import Integral, LambdaScheduler, lambdas, through, usable
from .noise import Array, Levels
from .table import Row


class DEISMultistepScheduler(LambdaScheduler):
    """Diffusion exponential integrator sampler in log rho (Zhang & Chen 2023, equation 14). Order `solver_order`.

    It ends at the smallest training level.

    Args:
        solver_order: 1, 2 or 3: how many outputs a step mixes. 2 is good for guided generation.
        algorithm_type, solver_type: `"deis"` and `"logrho"`.
        lower_order_final: end with lower orders if there are fewer than 15 steps.
    """

    memory = "noise"
    placed_by = ()
    _integral = Integral("noise")
    algorithm_types = ("deis",)
    solver_types = ("logrho",)

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "deis", solver_type: str = "logrho",
        lower_order_final: bool = True, use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False, use_flow_sigmas: bool = False, flow_shift: float = 1.0,
        timestep_spacing: str = "linspace", steps_offset: int = 0, use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
    ):
        self._settle_kinds()
        self._prepare()

    def _last(self, training: Array) -> float:
        return float(training[0])

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """`x' = alpha'/alpha · x + alpha' ∫ ε̂(rho) drho` with the polynomial in `log rho` through the last `order` outputs.

        `rho = sigma / alpha`; since `log rho = -lambda`, this is the noise integral of `lambdas`, all moments exact.
        """
        times, rows = lambdas(levels), []
        for i in range(len(levels)):
            few = self.config.lower_order_final and levels.begin + len(levels) < 15
            order = min(self.config.solver_order, len(levels) - i) if few else self.config.solver_order
            nodes = usable(times, i + 1, range(i, max(i - order, -1), -1))
            moments = self._integral.moments(float(times[i + 1] - times[i]), len(nodes))
            rows.append(self._integral.row(levels, i, i + 1, through(times, i, i + 1, nodes, moments)))
        return rows
