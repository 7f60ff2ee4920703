"""Solvers in time `lambda = log(alpha / sigma)`, the half logarithm of the signal-to-noise ratio (Lu et al. 2022a).

In this time the linear part of the reverse process is solved exactly, and what is left is an integral of the model's
output (`m`: the clean sample, or the noise) with an exponential weight:

    clean sample:  x' = sigma'/sigma · e^(-τ²h) x  + alpha' ∫₀ʰ (1+τ²) e^((1+τ²)(s-h)) m(s) ds + sigma' √(1 - e^(-2τ²h)) · fresh
    noise:         x' = alpha'/alpha · x           - sigma' ∫₀ʰ (1+τ²) e^(h-s) m(s) ds         + sigma' τ √(e^(2h) - 1) · fresh

with `h = lambda' - lambda`, and `τ` the share of fresh noise (Xue et al. 2023): 0 is the ODE, 1 has the noise of DDPM. All
solvers of this family put a polynomial through outputs that they have in place of `m(s)`; they differ in which outputs these
are, and in how exactly they take the moments `∫ e^… (s/h)^k ds` of its powers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar

import numpy as np

from ..words import check_choice
from .base import Scheduler
from .betas import BetaScheduler
from .ddpm import VARIANCE_TYPES, MeanAlone
from .flow import FlowLevels, flow_levels
from .noise import Array, Levels
from .table import Memory, Row, Table


@dataclass(frozen=True)
class Integral:
    """One of the two integrals above."""

    of: Memory
    tau: float = 0.0

    def moments(self, h: float, count: int) -> list[float]:
        """`∫₀ʰ e^(rate (h - s)) (s/h)^k ds` for `k < count`, times `1 + tau²`: `h k! phi_(k+1)`."""
        factor = 1.0 + self.tau**2
        rate = 1.0 if self.of == "noise" else -factor
        if abs(rate * h) < 1:  # the recursion cancels, and is stable backwards: the last is a series
            found = [sum(accumulate(range(count + 1, count + 19), lambda term, j: term * rate * h / j, initial=h / count))]
            for k in range(count - 1, 0, -1):
                found.insert(0, h / k * (1 + rate * found[0]))
        else:
            found = [math.expm1(rate * h) / rate]
            for k in range(1, count):
                found.append((k / h * found[-1] - 1) / rate)
        return [factor * moment for moment in found]

    def row(self, levels: Levels, start: int, end: int, weights: dict[int, float]) -> Row:
        """From the sample of row `start` to the level of row `end`, with `weights` of outputs in place of the integral."""
        alpha, sigma = levels.alpha, levels.sigma
        h = max(math.log(alpha[end] / alpha[start] * sigma[start] / sigma[end]), 0.0) if sigma[end] else math.inf
        if self.of == "noise":
            kept = alpha[end] / alpha[start]
            if sigma[end] == 0:  # the limit, in which the one output's weight is infinite: its noise is taken away
                return Row({start: kept}, dict.fromkeys(weights, -kept * sigma[start]))
            scale, fresh = -sigma[end], self.tau * math.sqrt(math.expm1(2 * h)) if self.tau else None
        else:
            kept = sigma[end] / sigma[start] * (math.exp(-self.tau**2 * h) if self.tau else 1.0)
            scale, fresh = alpha[end], math.sqrt(-math.expm1(-2 * self.tau**2 * h)) if self.tau else None
        noise = None if fresh is None else sigma[end] * fresh
        return Row({start: kept}, {j: scale * weight for j, weight in weights.items()}, noise=noise)


def through(times: Array, start: int, end: int, nodes: Sequence[int], moments: Sequence[float]) -> dict[int, float]:
    """The weights of the outputs of rows `nodes` if a polynomial goes through them whose powers have these moments.

    They solve `Σ_j w_j u_j^k = moments[k]`, where `u` is 0 at `start` and 1 at `end`.
    """
    count, weights = len(nodes), [float(moment) for moment in moments[: len(nodes)]]
    places = [float((times[j] - times[start]) / (times[end] - times[start])) for j in nodes] if count > 1 else [0.0]
    for k in range(count - 1):  # Björck and Pereyra 1970: a Vandermonde system, without its matrix
        for i in range(count - 1, k, -1):
            weights[i] -= places[k] * weights[i - 1]
    for k in range(count - 1, 0, -1):
        weights[k:] = [weights[i] / (places[i] - places[i - k]) for i in range(k, count)]
        for i in range(k - 1, count - 1):
            weights[i] -= weights[i + 1]
    return dict(zip(nodes, weights, strict=True))


_ELSEWHERE = {"algorithm_type": ("deis", "dpmsolver", "dpmsolver++"), "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2")}


class PolynomialSteps(Scheduler):
    """Steps that take one of the integrals with a polynomial through outputs, for samples of any kind."""

    _integral: Integral

    def _settle(self, name: str, *allowed: str) -> None:
        """Config entry `name` is one of `allowed`; what another class calls its own stands for the first."""
        if self.config[name] in _ELSEWHERE[name] and self.config[name] not in allowed:
            self.register_to_config(**{name: allowed[0]})
        check_choice(name, self.config[name], allowed)

    def _nodes(self, levels: Levels, end: int, nodes: Sequence[int]) -> list[int]:
        """Those of `nodes` (the latest first) that a polynomial can go through: one each level, and one if `end` is infinite."""
        times = levels.lambdas
        distinct = [j for k, j in enumerate(nodes) if all(times[j] != times[earlier] for earlier in nodes[:k])]
        return distinct if math.isfinite(times[end]) and times[end] != times[nodes[0]] else distinct[:1]

    def _last(self, levels: Levels, i: int, order: int) -> list[int]:
        """The last `order` outputs at row `i`, the latest first, as far as there are so many and they can be used."""
        return self._nodes(levels, i + 1, range(i, max(i - order, -1), -1))

    def _go(self, levels: Levels, start: int, end: int, nodes: Sequence[int], integral: Integral | None = None) -> Row:
        """From the sample of row `start` to the level of row `end`, by the outputs of rows `nodes`."""
        times, integral = levels.lambdas, integral or self._integral
        moments = self._moments(integral, float(times[end] - times[start]), nodes)
        return integral.row(levels, start, end, through(times, start, end, nodes, moments))

    def _moments(self, integral: Integral, h: float, nodes: Sequence[int]) -> list[float]:
        """Of as many powers as there are nodes, as the solver takes them: here exactly."""
        return integral.moments(h, len(nodes))


class LambdaScheduler(PolynomialSteps, FlowLevels, BetaScheduler):
    """Where solvers in `lambda` place their levels: at spaced timesteps, or by a ramp of the VE levels of training.

    With `use_flow_sigmas`, for flow models, evenly from noise to picture, and shifted; or by a ramp `s`, as `s / (1 + s)`.
    """

    exposes_sigmas = True
    tells_x0 = False
    placed_by: ClassVar[tuple[str, ...]] = ("timesteps",)

    def _prepare(self) -> None:
        config = self.config
        check_choice("variance_type", config.get("variance_type"), (None, *VARIANCE_TYPES))
        self._flow, self._shift = config.get("use_flow_sigmas", False), config.get("flow_shift", 1.0)
        self._ends_clean = config.get("final_sigmas_type") == "zero"
        self._rounds = config.get("use_karras_sigmas") or config.get("use_lu_lambdas")
        super()._prepare()

    def _training(self) -> Levels:
        times = np.arange(len(self) - 1.0, -1, -1)
        return flow_levels(times, times / len(self)) if self._flow else super()._training()

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None, mu: float | None = None) -> Levels:
        training = self.noise_schedule
        if timesteps is not None and (self._ramp or self._flow):
            raise ValueError("timesteps cannot be given where the config places the levels by a ramp or use_flow_sigmas")
        if sigmas is not None and (self._ramp or not self._flow):
            raise ValueError("sigmas can be given only with use_flow_sigmas, and without a ramp")
        if self._flow:
            return self._flow_levels(steps, sigmas, mu)
        times = self._spaced(steps) if timesteps is None else timesteps
        if times.max() >= training.count:
            raise ValueError(f"the highest timestep is {times.max():g}, and training had {training.count}: "
                             "take a smaller steps_offset")
        ve = training.sigmas_at(times)
        if self._ramp:
            ve = self._ramp(*self._ramp_ends(), steps)
            times = training.timestep_of(ve)
            times = times.round() if self._rounds else np.floor(times)
        ve = np.append(ve, self._end())
        alpha = 1 / np.sqrt(1 + ve**2)
        return Levels(times, alpha, alpha * ve)

    def _flow_levels(self, steps: int, sigmas: Array | None, mu: float | None) -> Levels:
        """The model is told whole timesteps. The end is that of `final_sigmas_type`, if it is below the other levels."""
        if self._ramp:
            shares = 1 - 1 / (1 + self._ramp(*self._ramp_ends(), steps))
        else:
            shares = self._shifted(self._even(steps) if sigmas is None else sigmas, mu)
        shares = np.minimum(shares, 1 - 1e-6)  # where lambda is finite
        return flow_levels(np.floor(shares * self.noise_schedule.count), shares, min(self._end(), float(shares[-1])))

    def _even(self, steps: int) -> Array:
        """Evenly spaced shares of noise, from just below 1."""
        return 1 - np.linspace(1 / self.noise_schedule.count, 1, steps + 1)[:-1]

    def _spaced(self, steps: int) -> Array:
        """One timestep more than asked, without the last, which is 0; none so high that it is below `lambda_min_clipped`."""
        spacing, count = self._own.get("timestep_spacing", "linspace"), self._unclipped()
        if spacing == "linspace":
            return np.linspace(0, count - 1, steps + 1).round()[:0:-1]
        if spacing == "leading":
            return np.arange(steps + 1, dtype=np.float64)[:0:-1] * (count // (steps + 1)) + self.config.steps_offset
        return np.arange(count, 0, -self.noise_schedule.count / steps).round()[:steps] - 1

    def _unclipped(self) -> int:
        """How many training levels are above `lambda_min_clipped`."""
        return int((-np.log(self.noise_schedule.sigmas) >= self._own.get("lambda_min_clipped", -math.inf)).sum())

    def _ramp_ends(self) -> tuple[float, float]:
        return self.noise_schedule.sigmas[-1], self.noise_schedule.sigmas[0]

    def _end(self) -> float:
        """The VE level at which the trajectory ends."""
        return 0.0 if self._ends_clean else float(self.noise_schedule.sigmas[0])

    def _tabulate(self, levels: Levels, options: dict[str, Any]) -> Table:
        table = super()._tabulate(levels, options)
        return MeanAlone(table) if (self._own.get("variance_type") or "").startswith("learned") else table
