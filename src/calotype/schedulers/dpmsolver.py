"""DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b), by several steps or within one, both ways; and DEIS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .entries import BETAS, RAMPS, THRESHOLD, takes
from .lambdas import Integral, LambdaScheduler, PolynomialSteps
from .noise import Array, Levels
from .table import Row

INTEGRALS = {
    "dpmsolver": Integral("noise"), "dpmsolver++": Integral("x0"),
    "sde-dpmsolver": Integral("noise", tau=1.0), "sde-dpmsolver++": Integral("x0", tau=1.0),
}


class MultistepRows(PolynomialSteps):
    """The multistep solver, for samples of any kind: a polynomial through the last `solver_order` outputs.

    `solver_type` takes the first moment as half of the zeroth, `"midpoint"`, or exactly, `"heun"`. `solver_order=3` is of second
    order in general: its quadratic term has half the weight of the integral's (all of it in stochastic steps), which was found by
    fitting the steps behind the pictures that people know. `UniPCMultistepScheduler` has a true third order.
    """

    _ends_clean: bool

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        return self._go(levels, i, i + 1, self._last(levels, i, self._order(levels, i)))

    def _moments(self, integral: Integral, h: float, nodes: Sequence[int]) -> list[float]:
        moments = integral.moments(h, len(nodes))
        if len(nodes) == 2 and self.config.solver_type == "midpoint":
            moments[1] = moments[0] / 2
        elif len(nodes) == 3 and not integral.tau:
            moments[2] /= 2
        return moments

    def _order(self, levels: Levels, i: int) -> int:
        config, left, few = self.config, len(levels) - i, levels.begin + len(levels) < 15
        if left == 1 and (config.euler_at_final or self._ends_clean or (config.lower_order_final and few)):
            return 1
        return min(config.solver_order, left) if config.lower_order_final and few else int(config.solver_order)


class DPMSolver(LambdaScheduler):
    """What DPM-Solvers share: the integral that `algorithm_type` names, which must be able to end as asked."""

    algorithm_types: ClassVar[tuple[str, ...]]

    def _prepare(self) -> None:
        self._settle("algorithm_type", *self.algorithm_types)
        self._settle("solver_type", "midpoint", "heun")
        self._integral = INTEGRALS[self.config.algorithm_type]
        self.memory = self._integral.of
        if self.memory == "noise" and self.config.get("final_sigmas_type") == "zero":
            raise ValueError(f"{self.config.algorithm_type} cannot end without noise: it takes final_sigmas_type='sigma_min'")
        super()._prepare()


@takes(**BETAS, solver_order=2, prediction_type="epsilon", **THRESHOLD, algorithm_type="dpmsolver++", solver_type="midpoint",
       lower_order_final=True, euler_at_final=False, **RAMPS, use_lu_lambdas=False, use_flow_sigmas=False, flow_shift=1.0,
       final_sigmas_type="zero", lambda_min_clipped=-math.inf, variance_type=None, timestep_spacing="linspace", steps_offset=0,
       rescale_betas_zero_snr=False, use_dynamic_shifting=False, time_shift_type="exponential")
class DPMSolverMultistepScheduler(MultistepRows, DPMSolver):
    """DPM-Solver++(2M) and its relatives (Lu et al. 2022b, algorithm 2). Order `solver_order`; for 3 see `MultistepRows`.

    Where a ramp's last level is also where the trajectory ends (`sigma_min`), the last step goes nowhere.
    """

    algorithm_types: ClassVar[tuple[str, ...]] = ("dpmsolver++", "dpmsolver", "sde-dpmsolver", "sde-dpmsolver++")

    def _prepare(self) -> None:
        super()._prepare()
        self._rounds = self._rounds and self.config.beta_schedule != "squaredcos_cap_v2"


@takes(**BETAS, solver_order=2, prediction_type="epsilon", **THRESHOLD, algorithm_type="dpmsolver++", solver_type="midpoint",
       lower_order_final=True, euler_at_final=False, **RAMPS, use_flow_sigmas=False, flow_shift=1.0, lambda_min_clipped=-math.inf,
       variance_type=None, timestep_spacing="linspace", steps_offset=0)
class DPMSolverMultistepInverseScheduler(DPMSolverMultistepScheduler):
    """Encodes a picture: the ODE of `DPMSolverMultistepScheduler` towards noise. `timesteps` rise. Order `solver_order`.

    It ends at the largest level of training, also where timesteps repeat. A way up has no fresh noise that the way down could
    know, so there are no stochastic ones.
    """

    placed_by = ()
    algorithm_types = ("dpmsolver++", "dpmsolver")

    def _prepare(self) -> None:
        if self.config.use_flow_sigmas:
            raise ValueError("use_flow_sigmas is not supported by DPMSolverMultistepInverseScheduler")
        super()._prepare()

    def _training(self) -> Levels:
        return self.noise_schedule.training_levels().turned()

    def _ramp_ends(self) -> tuple[float, float]:
        return self.noise_schedule.sigmas[0], self.noise_schedule.sigmas[-1]

    def _end(self) -> float:
        return float(self.noise_schedule.sigmas[self._unclipped() - 1])

    def _spaced(self, steps: int) -> Array:
        """One timestep more than asked, rising, without the last, which is the highest."""
        falling, spacing = super()._spaced(steps), self.config.timestep_spacing
        if spacing == "trailing":
            return falling[::-1]
        return np.append(self.config.steps_offset if spacing == "leading" else 0.0, falling[:0:-1])


@takes(**BETAS, solver_order=2, prediction_type="epsilon", **THRESHOLD, algorithm_type="dpmsolver++", solver_type="midpoint",
       lower_order_final=False, **RAMPS, use_flow_sigmas=False, flow_shift=1.0, final_sigmas_type="zero",
       lambda_min_clipped=-math.inf, variance_type=None, use_dynamic_shifting=False, time_shift_type="exponential")
class DPMSolverSinglestepScheduler(DPMSolver):
    """DPM-Solver-2S and -3S (Lu et al. 2022a, algorithms 1 and 2; 2022b, algorithm 1). Order `solver_order`.

    A step of order `k` takes `k` rows, all of which start from its first sample; each is of one order more. With
    `solver_type="midpoint"` order 2 takes the first moment as half of the zeroth, and order 3 puts a line through the first
    and the last output; with `"heun"` it is exact, and a parabola through all. The last row is of first order where the
    trajectory ends without noise, or, with `lower_order_final`, if the rows are a multiple of `solver_order`.
    """

    algorithm_types = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++")

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """The integral from the first sample of the step, with the polynomial through the step's outputs so far."""
        start = max(i - self._order(levels, i) + 1, 0)
        nodes = [start, i] if i - start == 2 and self.config.solver_type == "midpoint" else list(range(start, i + 1))
        return self._go(levels, start, i + 1, self._nodes(levels, i + 1, nodes))

    def _moments(self, integral: Integral, h: float, nodes: Sequence[int]) -> list[float]:
        moments = integral.moments(h, len(nodes))
        if len(nodes) == 2 and nodes[1] - nodes[0] == 1 and self.config.solver_type == "midpoint":
            moments[1] = moments[0] / 2
        return moments

    def _order(self, levels: Levels, i: int) -> int:
        """1, 2, … up to `solver_order`, again and again."""
        config, place, count = self.config, levels.begin + i, levels.begin + len(levels)
        few = self._ends_clean or (config.lower_order_final and count % config.solver_order == 0)
        return 1 if few and place == count - 1 else place % config.solver_order + 1


@takes(**BETAS, solver_order=2, prediction_type="epsilon", **THRESHOLD, algorithm_type="deis", solver_type="logrho",
       lower_order_final=True, **RAMPS, use_flow_sigmas=False, flow_shift=1.0, timestep_spacing="linspace", steps_offset=0,
       use_dynamic_shifting=False, time_shift_type="exponential")
class DEISMultistepScheduler(LambdaScheduler):
    """Diffusion exponential integrator sampler in log rho (Zhang & Chen 2023, equation 14). Order `solver_order`.

    `x' = alpha'/alpha · x + alpha' ∫ ε̂(rho) drho` with the polynomial in `log rho` through the last `solver_order` outputs, where
    `rho = sigma / alpha`; since `log rho = -lambda`, this is the noise integral of `lambdas`, all moments exact. It ends at
    the smallest training level.
    """

    memory = "noise"
    placed_by = ()
    _integral = Integral("noise")

    def _prepare(self) -> None:
        self._settle("algorithm_type", "deis")
        self._settle("solver_type", "logrho")
        super()._prepare()

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        few, most = self.config.lower_order_final and levels.begin + len(levels) < 15, self.config.solver_order
        return self._go(levels, i, i + 1, self._last(levels, i, min(most, len(levels) - i) if few else most))
