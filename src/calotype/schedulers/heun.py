"""Solvers of two model calls a step, in sigma: Heun, the midpoint in log(sigma), and that along the SDE.

`len(timesteps)` is the number of calls; the last step, to the clean sample, is one of Euler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..randomness import Generators
from .betas import VEScheduler
from .brownian import BrownianTable
from .entries import LATENT_BETAS, RAMPS, takes
from .euler import ancestral
from .noise import Array, Levels, ve_levels
from .table import Memory, Row, Table


def interleaved(opening: Array, between: Array) -> Array:
    """`opening[0], between[0], opening[1], …`, for steps of two model calls; the last step has one: its end is clean."""
    calls = np.empty(2 * len(opening) - 1)
    calls[::2], calls[1::2] = opening, between
    return calls


def start_of_two(levels: Levels, i: int) -> int:
    """The row where the step of call `i` begins, in steps of two; entered at a second call, a step begins there."""
    return i - 1 if (levels.begin + i) % 2 and i else i


class TwoCallScheduler(VEScheduler):
    """Base: steps begin at the spaced levels, and the second calls are between."""

    order = 2
    memory: Memory = "noise"

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None,
               num_train_timesteps: int | None = None) -> Levels:
        times, sigmas = self._spaced(steps, timesteps, num_train_timesteps)
        second_times, second_sigmas = self._second_calls(times, sigmas)
        return ve_levels(interleaved(times, second_times), interleaved(sigmas, second_sigmas))

    def _second_calls(self, times: Array, sigmas: Array) -> tuple[Array, Array]:
        """Their timesteps and levels; one less than steps."""
        return times[1:], sigmas[1:]


@takes(**LATENT_BETAS, prediction_type="epsilon", **RAMPS, clip_sample=False, clip_sample_range=1.0,
       timestep_spacing="linspace", steps_offset=0)
class HeunDiscreteScheduler(TwoCallScheduler):
    """Heun's method on `dx/dsigma = noise` (Karras et al. 2022, algorithm 1). Second order."""

    placed_by = ("timesteps",)

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """First `x₁ = x + h · noise`, then `x' = x + h · (noise + noise₁) / 2`, where `h = sigma' - sigma`."""
        start = start_of_two(levels, i)
        calls = range(start, i + 1)
        return Row({start: 1.0}, dict.fromkeys(calls, (levels.sigma[i + 1] - levels.sigma[start]) / len(calls)))


@takes(**LATENT_BETAS, **RAMPS, prediction_type="epsilon", timestep_spacing="linspace", steps_offset=0)
class KDPM2DiscreteScheduler(TwoCallScheduler):
    """DPM-Solver-2 in sigma (Lu et al. 2022, algorithm 1; Karras et al. 2022). Second order.

    `sigmas` lists where steps begin and end, and not their middles.
    """

    rounds_karras: ClassVar[bool] = True  # with `use_karras_sigmas`, the timesteps where steps begin are whole numbers
    ends_listed: ClassVar[int] = 2  # how many zeros stand in `sigmas` beside the one that is the end

    def _prepare(self) -> None:
        self.timestep_dtype = np.float64 if any(self.config[ramp] for ramp in RAMPS) else self.timestep_dtype
        super()._prepare()

    def _spaced(self, steps: int, timesteps: Array | None = None, count: int | None = None) -> tuple[Array, Array]:
        times, sigmas = super()._spaced(steps, timesteps, count)
        return times.round() if self.config.use_karras_sigmas and self.rounds_karras else times, sigmas

    def _second_calls(self, times: Array, sigmas: Array) -> tuple[Array, Array]:
        """At the geometric means."""
        middles = np.sqrt(sigmas[:-1] * sigmas[1:])
        return self.noise_schedule.timestep_of(middles), middles

    def sigmas_of(self, levels: Levels) -> Array:
        """Each level twice, the highest but once, without the middles; and the end as often as the peer has it."""
        second = (np.arange(len(levels.sigma)) + levels.begin) % 2 == 1
        return np.append(np.where(second, np.append(levels.sigma[1:], 0.0), levels.sigma), [0.0] * self.ends_listed)

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """First `x₁ = x + (middle - sigma) · noise`, then `x' = x + (sigma' - sigma) · noise₁`."""
        start = start_of_two(levels, i)
        return Row({start: 1.0}, {i: levels.sigma[i + 1] - levels.sigma[start]})


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """`KDPM2DiscreteScheduler` with ancestral noise: steps go down to `sigma'² / sigma`, and noise lifts them to `sigma'`.

    Stochastic. The middle in log(sigma) of a step's way down is the next level itself, so no others are visited.
    """

    def _second_calls(self, times: Array, sigmas: Array) -> tuple[Array, Array]:
        return self.noise_schedule.timestep_of(sigmas[1:]), sigmas[1:]

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """First `x₁ = x + (middle - sigma) · noise`, then `x' = x + (down - sigma) · noise₁ + up · fresh`; see `ancestral`."""
        start = start_of_two(levels, i)
        down, up = (levels.sigma[i + 1], None) if start == i else ancestral(levels.sigma[start], levels.sigma[i + 1])
        return Row({start: 1.0}, {i: down - levels.sigma[start]}, noise=up)


@dataclass(frozen=True)
class _PathLevels(Levels):
    """Levels that remember, also when entered midway, between which ones (the last not counted) the whole trajectory goes."""

    ends: tuple[float, float] = (0.0, 0.0)

    def asked(self) -> list[float]:
        """The levels as the seed's path is asked at them.

        A path is as rough as the root of a distance, and moves visibly between two neighbours in single precision. So
        pictures are repeated only if the rounding is: of logarithms, and of the middle between two of them.
        """
        log = torch.from_numpy(self.sigma).float().log()
        for i in range(len(self)):
            if (start := start_of_two(self, i)) < i:
                log[i] = log[start] + 0.5 * (log[i + 1] - log[start])
        return log.exp().tolist()


@takes(**LATENT_BETAS, prediction_type="epsilon", **RAMPS, noise_sampler_seed=None, timestep_spacing="linspace", steps_offset=0)
class DPMSolverSDEScheduler(KDPM2DiscreteScheduler):
    """SDE-DPM-Solver++ (2S) with a middle in log(sigma) (Lu et al. 2022b; k-diffusion's `dpmpp_sde`).

    The noise of a step and of its way to the middle are increments of one Brownian path, which `torchsde` makes
    (`pip install 'calotype[sde]'`), so that more steps with the same seed come closer to one picture.
    """

    ends_listed = 0
    memory = "x0"
    rounds_karras = False
    timestep_dtype = np.float64

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None,
               num_train_timesteps: int | None = None) -> Levels:
        levels = super().levels(steps, timesteps, sigmas, num_train_timesteps)
        return _PathLevels(levels.timesteps, levels.alpha, levels.sigma, ends=(levels.sigma[-2], levels.sigma[0]))

    def row(self, levels: Levels, i: int, s_noise: float = 1.0, **options: Any) -> Row:
        """`x' = down/sigma · x + (1 - down/sigma) · x0 + up · fresh`, to the middle, and with its `x0` from `x` to the end."""
        start = start_of_two(levels, i)
        down, up = ancestral(levels.sigma[start], levels.sigma[i + 1])
        kept = down / levels.sigma[start]
        return Row(x={start: kept}, m={i: 1 - kept}, noise=s_noise * up if up > 0 else None)

    def _tabulate(self, levels: Levels, options: dict[str, Any]) -> Table:
        assert isinstance(levels, _PathLevels)
        path = levels.asked()
        spans = [(path[start_of_two(levels, i)], path[i + 1]) for i in range(len(levels))]
        return BrownianTable(super()._tabulate(levels, options), spans, levels.ends, self.config.noise_sampler_seed)

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor,  # type: ignore[override]
             return_dict: bool = True, s_noise: float = 1.0, generator: Generators = None) -> Any:
        """The sample [B, …] for the next call.

        `s_noise` is the deviation of the fresh noise. `generator` (one, or one for each sample) seeds the path where there is no
        `noise_sampler_seed`, once, as a trajectory begins.
        """
        return self._step(model_output, timestep, sample, generator, return_dict, s_noise=s_noise)
