"""Solvers in time `lambda = log(alpha / sigma)`, the half logarithm of the signal-to-noise ratio (Lu et al. 2022a).

In this time the linear part of the reverse process is solved exactly, and what is left is an integral of the model's
output (`m`: the clean sample, or the noise) with an exponential weight:

    clean sample:      x' = sigma'/sigma · x         + alpha' ∫₀ʰ e^(s-h) m(s) ds
    and stochastic:    x' = sigma'/sigma · e^(-h) x  + 2 alpha' ∫₀ʰ e^(2s-2h) m(s) ds + sigma' √(1 - e^(-2h)) · fresh
    noise:             x' = alpha'/alpha · x         - sigma' ∫₀ʰ e^(h-s) m(s) ds
    and stochastic:    x' = alpha'/alpha · x         - 2 sigma' ∫₀ʰ e^(h-s) m(s) ds + sigma' √(e^(2h) - 1) · fresh

with `h = lambda' - lambda`. All solvers of this family put a polynomial through outputs that they have in place of `m(s)`;
they differ in which outputs these are, and in how exactly they take the moments `∫ e^… (s/h)^k ds` of its powers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ..words import check_choice
from .betas import BetaScheduler
from .ddpm import VARIANCE_TYPES
from .noise import Array, Levels, beta_ramp, exponential_ramp, karras_ramp
from .table import Memory, Row, State, Table

_RAMPS = {"use_karras_sigmas": karras_ramp, "use_lu_lambdas": exponential_ramp,
          "use_exponential_sigmas": exponential_ramp, "use_beta_sigmas": beta_ramp}
_LATER = ("use_flow_sigmas", "use_dynamic_shifting")


class LambdaScheduler(BetaScheduler):
    """Where solvers in `lambda` place their levels: at spaced timesteps, or by a ramp of the VE levels of training."""

    exposes_sigmas = True
    tells_x0 = False
    placed_by: ClassVar[tuple[str, ...]] = ("timesteps",)

    def _prepare(self, training: Levels | None = None, most_steps: int | None = None) -> None:
        config = self.config
        for name in _LATER:
            if config.get(name):
                raise ValueError(f"{name} is not supported by {type(self).__name__}")
        check_choice("solver_order", config.solver_order, (1, 2, 3))
        check_choice("final_sigmas_type", config.get("final_sigmas_type", "zero"), ("zero", "sigma_min"))
        check_choice("variance_type", config.get("variance_type"), (None, *VARIANCE_TYPES))
        used = [name for name in _RAMPS if config.get(name)]
        if len([name for name in used if name != "use_lu_lambdas"]) > 1:
            raise ValueError("use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas exclude each other")
        self._ramp = used[0] if used else None
        super()._prepare(training, most_steps)

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        training = self.noise_schedule.sigmas
        if timesteps is not None and self._ramp:
            raise ValueError("timesteps cannot be given where the config places the levels by a ramp")
        times = self._spaced(steps) if timesteps is None else timesteps
        if times[0] >= len(training):
            raise ValueError(f"the first timestep is {times[0]:g}, and training had {len(training)}: take a smaller steps_offset")
        ve = np.interp(times, np.arange(len(training)), training)
        if self._ramp:
            ve = _RAMPS[self._ramp](training[-1], training[0], len(times))
            times = self._whole(self.noise_schedule.timestep_of(ve))
        ve = np.append(ve, self._last(training))
        alpha = 1 / np.sqrt(1 + ve**2)
        return Levels(times, alpha, alpha * ve)

    def _spaced(self, steps: int) -> Array:
        """One timestep more than asked, without the last, which is 0; none so high that it is below `lambda_min_clipped`."""
        spacing, training = self.config.get("timestep_spacing", "linspace"), self.noise_schedule.sigmas
        count = int((-np.log(training) >= self.config.get("lambda_min_clipped", -math.inf)).sum())
        if spacing == "linspace":
            return np.linspace(0, count - 1, steps + 1).round()[:0:-1]
        if spacing == "leading":
            offset = self.config.get("steps_offset", 0)
            return np.arange(steps + 1, dtype=np.float64)[:0:-1] * (count // (steps + 1)) + offset
        return np.arange(count, 0, -len(training) / steps).round()[:steps] - 1

    def _whole(self, times: Array) -> Array:
        """Timesteps that a ramp places, as whole numbers: the nearest, or, for some ramps, the one below."""
        return times.round() if self._ramp in ("use_karras_sigmas", "use_lu_lambdas") else np.floor(times)

    def _tabulate(self, levels: Levels, options: dict[str, Any]) -> Table:
        table = super()._tabulate(levels, options)
        return _MeanAlone(table) if (self.config.get("variance_type") or "").startswith("learned") else table

    def _last(self, training: Array) -> float:
        """The VE level at which the trajectory ends."""
        return 0.0 if self.config.get("final_sigmas_type", "zero") == "zero" else float(training[0])


class _MeanAlone(Table):
    """A table for models that learn the variance, which is the output's second half and passed over."""

    def __init__(self, table: Table):
        self.__dict__.update(table.__dict__)

    def mean_output(self, output: Tensor) -> Tensor:
        return output.chunk(2, dim=1)[0]

    def step(self, i: int | Tensor, output: Tensor, x: Tensor, state: State, noise: Tensor | None = None) -> Tensor:
        return super().step(i, self.mean_output(output), x, state, noise)


def lambdas(levels: Levels) -> Array:
    """`log(alpha / sigma)` of all levels; infinite where there is no noise."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(levels.alpha) - np.log(levels.sigma))


@dataclass(frozen=True)
class Integral:
    """One of the four integrals above."""

    of: Memory
    stochastic: bool = False

    def moments(self, h: float, count: int) -> list[float]:
        """`∫₀ʰ e^(rate (h - s)) (s/h)^k ds` for `k < count`, with a factor of 2 where stochastic: `h k! phi_(k+1)`."""
        rate = 1.0 if self.of == "noise" else -2.0 if self.stochastic else -1.0
        factor = 2.0 if self.stochastic else 1.0
        if abs(rate * h) < 1:  # the closed form cancels
            return [factor * h * sum((rate * h) ** j * math.factorial(k) / math.factorial(j + k + 1) for j in range(20))
                    for k in range(count)]
        found = [math.expm1(rate * h) / rate]
        for k in range(1, count):
            found.append((k / h * found[-1] - 1) / rate)
        return [factor * moment for moment in found]

    def row(self, levels: Levels, start: int, end: int, weights: dict[int, float]) -> Row:
        """From the sample of row `start` to the level of row `end`, with `weights` of outputs in place of the integral."""
        alpha, sigma = levels.alpha, levels.sigma
        h = max(float(lambdas(levels)[end] - lambdas(levels)[start]), 0.0)
        if self.of == "noise":
            kept = alpha[end] / alpha[start]
            if sigma[end] == 0:  # the limit, in which the one output's weight is infinite: its noise is taken away
                return Row({start: kept}, dict.fromkeys(weights, -kept * sigma[start]))
            spread = sigma[end] * math.sqrt(math.expm1(2 * h)) if self.stochastic else None
            return Row({start: kept}, {j: -sigma[end] * w for j, w in weights.items()}, noise=spread)
        spread = sigma[end] * math.sqrt(-math.expm1(-2 * h)) if self.stochastic else None
        kept = sigma[end] / sigma[start] * (math.exp(-h) if self.stochastic else 1.0)
        return Row({start: kept}, {j: alpha[end] * w for j, w in weights.items()}, noise=spread)


def through(times: Array, start: int, end: int, nodes: Sequence[int], moments: Sequence[float]) -> dict[int, float]:
    """The weights of the outputs of rows `nodes` if a polynomial goes through them whose powers have these moments.

    They solve `Σ_j w_j u_j^k = moments[k]`, where `u` is 0 at `start` and 1 at `end`.
    """
    if len(nodes) == 1:
        return {nodes[0]: moments[0]}
    places = [(times[j] - times[start]) / (times[end] - times[start]) for j in nodes]
    weights = np.linalg.solve(np.vander(places, increasing=True).T, moments[: len(nodes)])
    return dict(zip(nodes, weights.tolist(), strict=True))


def usable(times: Array, end: int, nodes: Sequence[int]) -> list[int]:
    """Those of `nodes` (the latest first) that a polynomial can go through: one each level, and one if `end` is infinite."""
    distinct = [j for k, j in enumerate(nodes) if times[j] not in times[list(nodes[:k])]]
    return distinct if np.isfinite(times[end]) and times[end] != times[nodes[0]] else distinct[:1]
