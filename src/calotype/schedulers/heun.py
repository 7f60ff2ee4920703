"""Heun: a step of Euler, corrected by the slope at its end (Karras et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config import register_to_config
from .noise import Array, Levels
from .table import Row
from .ve import VEScheduler, interleaved, starts_of_two, ve_levels


class HeunDiscreteScheduler(VEScheduler):
    """Heun's method on `dx/dsigma = noise` (Karras et al. 2022, algorithm 1). Second order, two model calls a step.

    `len(timesteps)` is the number of calls; the last step, to the clean sample, is one of Euler. Samples are
    variance-exploding: begin with noise times `init_noise_sigma` and call `scale_model_input`.
    """

    order = 2
    memory = "noise"
    placed_by = ("timesteps",)

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False,
        clip_sample: bool = False, clip_sample_range: float = 1.0, timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):
        self._prepare()

    def levels(
        self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None, num_train_timesteps: int | None = None
    ) -> Levels:
        times, sigmas = self.noise_schedule.spaced_sigmas(self.config, steps, timesteps, num_train_timesteps)
        return ve_levels(interleaved(times, times[1:]), interleaved(sigmas, sigmas[1:]))

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """First `x₁ = x + h · noise`, then `x' = x + h · (noise + noise₁) / 2`, where `h = sigma' - sigma`."""
        rows = []
        for i, start in enumerate(starts_of_two(levels)):
            calls = range(start, i + 1)
            rows.append(Row({start: 1.0}, dict.fromkeys(calls, (levels.sigma[i + 1] - levels.sigma[start]) / len(calls))))
        return rows
