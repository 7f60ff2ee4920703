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
from .betas import BetaScheduler
from .ddpm import VARIANCE_TYPES, MeanAlone
from .flow import FlowLevels, flow_levels
from .noise import Array, Levels, beta_ramp, exponential_ramp, karras_ramp
from .table import Memory, Row, Table

_RAMPS = {"use_karras_sigmas": karras_ramp, "use_lu_lambdas": exponential_ramp,
          "use_exponential_sigmas": exponential_ramp, "use_beta_sigmas": beta_ramp}
_KINDS = {"algorithm_type": ("deis", "dpmsolver", "dpmsolver++"), "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2")}


class LambdaScheduler(FlowLevels, BetaScheduler):
    """Where solvers in `lambda` place their levels: at spaced timesteps, or by a ramp of the VE levels of training.

    With `use_flow_sigmas`, for flow models, evenly from noise to picture, and shifted; or by a ramp `s`, as `s / (1 + s)`.
    """

    exposes_sigmas = True
    tells_x0 = False
    placed_by: ClassVar[tuple[str, ...]] = ("timesteps",)
    algorithm_types: ClassVar[tuple[str, ...]] = ()
    solver_types: ClassVar[tuple[str, ...]] = ()
    """What these config entries may be, if there is a choice. What another class calls its own stands for the first."""

    def _settle_kinds(self) -> None:
        for name, allowed in (("algorithm_type", self.algorithm_types), ("solver_type", self.solver_types)):
            if allowed and self.config[name] in _KINDS[name] and self.config[name] not in allowed:
                self.register_to_config(**{name: allowed[0]})
            if allowed:
                check_choice(name, self.config[name], allowed)

    def _prepare(self, training: Levels | None = None, most_steps: int | None = None) -> None:
        config = self.config
        self._flow, self._shift = config.get("use_flow_sigmas", False), config.get("flow_shift", 1.0)
        if self._flow:
            times = np.arange(config.num_train_timesteps - 1.0, -1, -1)
            training = flow_levels(times, times / config.num_train_timesteps)
        check_choice("solver_order", config.get("solver_order", 1), (1, 2, 3))
        check_choice("final_sigmas_type", config.get("final_sigmas_type", "zero"), ("zero", "sigma_min"))
        check_choice("variance_type", config.get("variance_type"), (None, *VARIANCE_TYPES))
        used = [name for name in _RAMPS if config.get(name)]
        self._ramp = used[0] if used else None
        super()._prepare(training, most_steps)

    def levels(
        self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None, mu: float | None = None
    ) -> Levels:
        training = self.noise_schedule.sigmas
        if timesteps is not None and (self._ramp or self._flow):
            raise ValueError("timesteps cannot be given where the config places the levels by a ramp or use_flow_sigmas")
        if sigmas is not None and (self._ramp or not self._flow):
            raise ValueError("sigmas can be given only with use_flow_sigmas, and without a ramp")
        if self._flow:
            return self._flow_levels(steps, sigmas, mu)
        times = self._spaced(steps) if timesteps is None else timesteps
        if times.max() >= len(training):
            raise ValueError(f"the highest timestep is {times.max():g}, and training had {len(training)}: "
                             "take a smaller steps_offset")
        ve = np.interp(times, np.arange(len(training)), training)
        if self._ramp:
            ve = _RAMPS[self._ramp](*self._ramp_ends(training), len(times))
            times = self._whole(self.noise_schedule.timestep_of(ve))
        ve = np.append(ve, self._last(training))
        alpha = 1 / np.sqrt(1 + ve**2)
        return Levels(times, alpha, alpha * ve)

    def _flow_levels(self, steps: int, sigmas: Array | None, mu: float | None) -> Levels:
        """The model is told whole timesteps. The end is that of `final_sigmas_type`, if it is below the other levels."""
        training, count = self.noise_schedule.sigmas, self.noise_schedule.count
        if self._ramp:
            shares = 1 - 1 / (1 + _RAMPS[self._ramp](*self._ramp_ends(training), steps))
        else:
            shares = self._shifted(self._even(steps) if sigmas is None else sigmas, mu)
        shares = np.minimum(shares, 1 - 1e-6)  # where lambda is finite
        return flow_levels(np.floor(shares * count), shares, min(self._last(training), float(shares[-1])))

    def _even(self, steps: int) -> Array:
        """Evenly spaced shares of noise, from just below 1."""
        return 1 - np.linspace(1 / self.noise_schedule.count, 1, steps + 1)[:-1]

    def _spaced(self, steps: int) -> Array:
        """One timestep more than asked, without the last, which is 0; none so high that it is below `lambda_min_clipped`."""
        spacing, count = self.config.get("timestep_spacing", "linspace"), self._unclipped()
        if spacing == "linspace":
            return np.linspace(0, count - 1, steps + 1).round()[:0:-1]
        if spacing == "leading":
            offset = self.config.get("steps_offset", 0)
            return np.arange(steps + 1, dtype=np.float64)[:0:-1] * (count // (steps + 1)) + offset
        return np.arange(count, 0, -self.noise_schedule.count / steps).round()[:steps] - 1

    def _unclipped(self) -> int:
        """How many training levels there are below `lambda_min_clipped`."""
        return int((-np.log(self.noise_schedule.sigmas) >= self.config.get("lambda_min_clipped", -math.inf)).sum())

    def _whole(self, times: Array) -> Array:
        """Timesteps that a ramp places, as whole numbers: the nearest, or, for some ramps, the one below."""
        return times.round() if self._ramp in ("use_karras_sigmas", "use_lu_lambdas") else np.floor(times)

    def _tabulate(self, levels: Levels, options: dict[str, Any]) -> Table:
        table = super()._tabulate(levels, options)
        return MeanAlone(table) if (self.config.get("variance_type") or "").startswith("learned") else table

    def _ramp_ends(self, training: Array) -> tuple[float, float]:
        """Where a ramp begins and ends."""
        return float(training[-1]), float(training[0])

    def _last(self, training: Array) -> float:
        """The VE level at which the trajectory ends."""
        return 0.0 if self.config.get("final_sigmas_type", "zero") == "zero" else float(training[0])


def lambdas(levels: Levels) -> Array:
    """`log(alpha / sigma)` of all levels; infinite where there is no noise."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(levels.alpha) - np.log(levels.sigma))


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
            spread = self.tau * sigma[end] * math.sqrt(math.expm1(2 * h)) if self.tau else None
            return Row({start: kept}, {j: -sigma[end] * w for j, w in weights.items()}, noise=spread)
        spread = sigma[end] * math.sqrt(-math.expm1(-2 * self.tau**2 * h)) if self.tau else None
        kept = sigma[end] / sigma[start] * (math.exp(-self.tau**2 * h) if self.tau else 1.0)
        return Row({start: kept}, {j: alpha[end] * w for j, w in weights.items()}, noise=spread)


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


def usable(times: Array, end: int, nodes: Sequence[int]) -> list[int]:
    """Those of `nodes` (the latest first) that a polynomial can go through: one each level, and one if `end` is infinite."""
    distinct = [j for k, j in enumerate(nodes) if all(times[j] != times[earlier] for earlier in nodes[:k])]
    return distinct if math.isfinite(times[end]) and times[end] != times[nodes[0]] else distinct[:1]
