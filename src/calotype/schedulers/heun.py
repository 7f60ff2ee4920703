"""Heun: a step of Euler, corrected by the slope at its end (Karras et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import register_to_config
from .noise import Array, Levels
from .table import Row
from .ve import VEScheduler, euler_row, interleaved, ve_levels


class HeunDiscreteScheduler(VEScheduler):
    """Heun's method on `dx/dsigma = noise` (Karras et al. 2022, algorithm 1). Second order, two model calls a step.

    `len(timesteps)` is the number of calls; the last step, to the clean sample, is one of Euler. Samples are
    variance-exploding: begin with noise times `init_noise_sigma` and call `scale_model_input`.

    Args:
        num_train_timesteps: length of the training process.
        beta_start, beta_end, beta_schedule, trained_betas: its noise; see `noise.make_betas`.
        prediction_type: `"epsilon"`, `"sample"` or `"v_prediction"`.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: place levels by a ramp of `noise`; at most one.
        clip_sample, clip_sample_range: clip the predicted clean sample.
        timestep_spacing: `"linspace"`, `"leading"` or `"trailing"`.
        steps_offset: added to the timesteps of `leading` spacing.
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

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        times, sigmas = self.noise_schedule.spaced_sigmas(self.config, steps, timesteps)
        return ve_levels(interleaved(times, times[1:]), interleaved(sigmas, sigmas[1:]))

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """First `x₁ = x + h · noise`, then `x' = x + h · (noise + noise₁) / 2`, where `h = sigma' - sigma`."""
        rows = []
        for i in range(len(levels)):
            if (levels.begin + i) % 2 and i:
                half = (levels.sigma[i] - levels.sigma[i - 1]) / 2
                rows.append(Row(x={i - 1: 1.0}, m={i - 1: half, i: half}))
            else:  # opens a step; or the trajectory is entered at a second call, whose level is that of the next
                rows.append(euler_row(levels, i))
        return rows

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose the levels by their number or by timesteps, and start again at the first."""
        self._set_timesteps(num_inference_steps, device, timesteps)

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """The sample [B, …] for the next model call."""
        return self._step(model_output, timestep, sample, None, return_dict)
