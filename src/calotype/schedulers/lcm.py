"""LCM: a consistency model says the clean sample at once; a few steps of noising and asking again refine it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import register_to_config
from ..randomness import Generators
from .base import SchedulerOutput
from .betas import BetaScheduler
from .noise import Array, Levels
from .table import Row, weighted_sum

_SIGMA_DATA = 0.5


class LCMSchedulerOutput(SchedulerOutput):
    """What a step of `LCMScheduler` returns: `prev_sample`, and `pred_original_sample`, also called `denoised`."""

    @property
    def denoised(self) -> Tensor | None:
        return self.pred_original_sample


class DistilledScheduler(BetaScheduler):
    """Base of the solvers whose models were distilled to the levels of a solver of `original_inference_steps` steps."""

    placed_by = ("timesteps",)

    def distilled_timesteps(self, steps: int, original_steps: int | None = None, strength: float = 1.0) -> Array:
        """`steps` of the timesteps on which the model was distilled, up to the share `strength` of training, falling."""
        count = original_steps or self.config.original_inference_steps
        return self._some(self.noise_schedule.count // count * np.arange(1.0, int(count * strength) + 1) - 1, steps)

    def _some(self, rising: Array, steps: int) -> Array:
        """`steps` of these, evenly from the last on."""
        if not 1 <= steps <= len(rising):
            raise ValueError(f"num_inference_steps is {steps}, but must be from 1 to {len(rising)}, "
                             "the number of steps from which the model was distilled, times strength")
        return rising[::-1][np.linspace(0, len(rising), steps, endpoint=False).astype(int)]

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None,
        original_inference_steps: int | None = None, timesteps: Sequence[int] | None = None, strength: float = 1.0,
    ) -> None:
        """Choose the timesteps by their number or one by one, and start again at the first.

        Args:
            original_inference_steps: instead of the config's.
            strength: enter late, for image-to-image: the steps share that part of training (or, of `timesteps`, only the
                last ones are left).
        """
        if not 0 < strength <= 1:
            raise ValueError(f"strength is {strength}, but must be above 0 and at most 1")
        if timesteps is not None and strength < 1:
            timesteps = timesteps[len(timesteps) - max(int(len(timesteps) * strength), 1) :]
        elif num_inference_steps is not None and timesteps is None and (original_inference_steps or strength < 1):
            chosen = self.distilled_timesteps(num_inference_steps, original_inference_steps, strength)
            num_inference_steps, timesteps = None, chosen.tolist()
        super().set_timesteps(num_inference_steps, device, timesteps)


class LCMScheduler(DistilledScheduler):
    """Multistep consistency sampling of latent consistency models (Luo et al. 2023, algorithm 3).

    Each step denoises wholly and adds fresh noise of the next level; the last adds none. The consistency function (equation 9) is
    `f = c_skip · x + c_out · x0`, with `c_skip = s² / (τ² + s²)`, `c_out = τ / sqrt(τ² + s²)`, `s = 0.5` and `τ` the
    timestep times `timestep_scaling`: the sample itself at timestep 0, and the model's clean sample elsewhere.

    Args:
        original_inference_steps: steps of the solver from which the model was distilled; `timesteps` are some of its.
        set_alpha_to_one, steps_offset, timestep_spacing: without effect; kept for the configs that have them.
        timestep_scaling: how quickly `c_skip` vanishes.
    """

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "scaled_linear", trained_betas: Sequence[float] | None = None,
        original_inference_steps: int = 50, clip_sample: bool = False, clip_sample_range: float = 1.0,
        set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon", thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0, timestep_spacing: str = "leading",
        timestep_scaling: float = 10.0, rescale_betas_zero_snr: bool = False,
    ):
        self._prepare()

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        return self.noise_schedule.vp_levels(self.distilled_timesteps(steps) if timesteps is None else timesteps, 1.0)

    def boundary(self, timestep: float) -> tuple[float, float]:
        """`c_skip` and `c_out` at `timestep`."""
        scaled = timestep * self.config.timestep_scaling
        return _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2), scaled / math.hypot(scaled, _SIGMA_DATA)

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """`x' = alpha' · (c_skip · x + c_out · x0) + sigma' · fresh`."""
        rows = []
        for i, timestep in enumerate(levels.timesteps):
            skip, out = self.boundary(timestep)
            alpha, last = levels.alpha[i + 1], i == len(levels) - 1
            rows.append(Row(x={i: alpha * skip}, m={i: alpha * out}, noise=None if last else levels.sigma[i + 1]))
        return rows

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, generator: Generators = None,
        return_dict: bool = True, variance_noise: Tensor | None = None,
    ) -> Any:
        """The sample [B, …] at the next timestep, and the consistency function; without `return_dict`, as a tuple."""
        output = self._step(model_output, timestep, sample, generator, True, variance_noise)
        skip, out = self.boundary(float(self._current.timesteps[self._row or 0]))
        pair = (output.prev_sample, weighted_sum([(skip, sample), (out, output.pred_original_sample)]))
        return LCMSchedulerOutput(*pair) if return_dict else pair
