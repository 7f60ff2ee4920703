"""KDPM2: the midpoint method, with the middle in log(sigma), as it is or with ancestral noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..config import register_to_config
from .euler_ancestral import ancestral
from .noise import Array, Levels
from .table import Memory, Row
from .ve import VEScheduler, interleaved, starts_of_two, ve_levels


class KDPM2DiscreteScheduler(VEScheduler):
    """DPM-Solver-2 in sigma (Lu et al. 2022, algorithm 1; Karras et al. 2022). Second order, two model calls a step.

    `len(timesteps)` is the number of calls; the last step, to the clean sample, is one of Euler. `sigmas` lists where steps
    begin and end, and not their middles. Samples are variance-exploding: begin with noise times `init_noise_sigma` and
    call `scale_model_input`. Models of the clean sample (`"sample"`), which Diffusers refuses, work.

    Args:
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: place levels by a ramp of `noise`; at most one. With
            `use_karras_sigmas` the timesteps where steps begin are rounded.
    """

    order = 2
    memory: Memory = "noise"
    rounds_karras: ClassVar[bool] = True
    """With `use_karras_sigmas`, the timesteps where steps begin are whole numbers."""
    ends_listed: ClassVar[int] = 2
    """How many zeros stand in `sigmas` beside the one that is the end."""

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):
        self._prepare()

    def levels(
        self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None, num_train_timesteps: int | None = None
    ) -> Levels:
        times, sigmas = self.noise_schedule.spaced_sigmas(self.config, steps, timesteps, num_train_timesteps)
        if self.config.use_karras_sigmas and self.rounds_karras:
            times = times.round()
        middles = self._middles(sigmas)
        return ve_levels(interleaved(times, self.noise_schedule.timestep_of(middles)), interleaved(sigmas, middles))

    def _middles(self, sigmas: Array) -> Array:
        """The levels of second calls: the geometric means."""
        return np.sqrt(sigmas[:-1] * sigmas[1:])

    def timesteps_of(self, levels: Levels, device: torch.device | str | None = None) -> Tensor:
        times = super().timesteps_of(levels, device)
        return times if self.noise_schedule.ramp is None else times.double()

    def sigmas_of(self, levels: Levels) -> Array:
        """Each level twice, the highest but once, without the middles; and the end as often as the peer has it."""
        second = (np.arange(len(levels.sigma)) + levels.begin) % 2 == 1
        return np.append(np.where(second, np.append(levels.sigma[1:], 0.0), levels.sigma), [0.0] * self.ends_listed)

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """First `x₁ = x + (middle - sigma) · noise`, then `x' = x + (sigma' - sigma) · noise₁`."""
        starts = enumerate(starts_of_two(levels))
        return [Row({start: 1.0}, {i: levels.sigma[i + 1] - levels.sigma[start]}) for i, start in starts]


class KDPM2AncestralDiscreteScheduler(KDPM2DiscreteScheduler):
    """`KDPM2DiscreteScheduler` with ancestral noise: steps go down to `sigma'² / sigma`, and noise lifts them to `sigma'`.

    Stochastic. The middle in log(sigma) of a step's way down is the next level itself, so no others are visited.
    Arguments are those of `KDPM2DiscreteScheduler`.
    """

    def _middles(self, sigmas: Array) -> Array:
        return sigmas[1:]

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """First `x₁ = x + (middle - sigma) · noise`, then `x' = x + (down - sigma) · noise₁ + up · fresh`; see `ancestral`."""
        rows = []
        for i, start in enumerate(starts_of_two(levels)):
            down, up = (levels.sigma[i + 1], None) if start == i else ancestral(levels.sigma[start], levels.sigma[i + 1])
            rows.append(Row({start: 1.0}, {i: down - levels.sigma[start]}, noise=up))
        return rows
