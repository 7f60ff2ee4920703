"""LCM and TCD: distilled models that say the clean sample at once; a few steps of noising and asking again refine it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..arguments import least_strength, whole_number
from ..randomness import Generators
from .base import SchedulerOutput
from .betas import BetaScheduler
from .entries import LATENT_BETAS, takes
from .noise import Array, Levels
from .prediction import Prediction
from .table import Row

_SIGMA_DATA = 0.5


class LCMSchedulerOutput(SchedulerOutput):
    """What a step of `LCMScheduler` returns: `prev_sample`, and `pred_original_sample`, also called `denoised`."""

    @property
    def denoised(self) -> Tensor | None:
        return self.pred_original_sample


@takes(**LATENT_BETAS | {"beta_schedule": "scaled_linear"}, original_inference_steps=50, clip_sample=False, clip_sample_range=1.0,
       set_alpha_to_one=True, steps_offset=0, prediction_type="epsilon", thresholding=False, dynamic_thresholding_ratio=0.995,
       sample_max_value=1.0, timestep_spacing="leading", timestep_scaling=10.0, rescale_betas_zero_snr=False)
class DistilledScheduler(BetaScheduler):
    """Base of the solvers whose models were distilled to the levels of a solver of `original_inference_steps` steps.

    `set_alpha_to_one`, `steps_offset` and `timestep_spacing` have no effect; they are kept for the configs that have them.
    """

    placed_by = ("timesteps",)
    ends_clean = True  # otherwise at training timestep 0

    def distilled_timesteps(self, steps: int, original_steps: int | None = None, strength: float = 1.0) -> Array:
        """`steps` of the timesteps on which the model was distilled, up to the share `strength` of training, falling."""
        count = whole_number("original_inference_steps", original_steps or self.config.original_inference_steps, 1,
                             self.noise_schedule.count, limit="the number of training timesteps")
        return self._some(self.noise_schedule.count // count * np.arange(1.0, int(count * strength) + 1) - 1, steps, count)

    def _some(self, rising: Array, steps: int, count: int) -> Array:
        """`steps` of these, which are the first of `count`, evenly from the last on."""
        if not len(rising):
            raise ValueError(f"strength leaves none of the {count} steps from which the model was distilled: at least "
                             f"{least_strength(count):g} leaves one")
        if not 1 <= steps <= len(rising):
            raise ValueError(f"num_inference_steps is {steps}, but must be from 1 to {len(rising)}, "
                             "the number of steps from which the model was distilled, times strength")
        return rising[::-1][np.linspace(0, len(rising), steps, endpoint=False).astype(int)]

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        times = self.distilled_timesteps(steps) if timesteps is None else timesteps
        return self.noise_schedule.vp_levels(times, 1.0 if self.ends_clean else self.noise_schedule.alphas_cumprod[0])

    def set_timesteps(self, num_inference_steps: int | None = None,  # type: ignore[override]
                      device: str | torch.device | None = None, original_inference_steps: int | None = None,
                      timesteps: Sequence[int] | None = None, strength: float = 1.0) -> None:
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
    """

    def boundary(self, timesteps: Any) -> tuple[Any, Any]:
        """`c_skip` and `c_out` at `timesteps`."""
        scaled = timesteps * self.config.timestep_scaling
        return _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2), scaled / np.hypot(scaled, _SIGMA_DATA)

    def _reading(self, levels: Levels) -> Prediction:
        """For the clean sample the consistency function; but not where that sample is clipped, which comes in between."""
        read, (skip, out) = self.prediction(levels), self.boundary(levels.timesteps)
        return read if self._clip else read._replace(x0_x=skip + out * read.x0_x, x0_out=out * read.x0_out)

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """`x' = alpha' · f + sigma' · fresh`."""
        alpha, (skip, out) = levels.alpha[i + 1], self.boundary(levels.timesteps[i]) if self._clip else (0.0, 1.0)
        return Row(x={i: alpha * skip}, m={i: alpha * out}, noise=levels.sigma[i + 1] if i < len(levels) - 1 else None)

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, generator: Generators = None,
             return_dict: bool = True, variance_noise: Tensor | None = None) -> Any:
        """The sample [B, …] at the next timestep, and the consistency function; without `return_dict`, as a tuple."""
        following, denoised = self._step(model_output, timestep, sample, generator, False, variance_noise)
        if self._clip:
            skip, out = map(float, self.boundary(self._times[self._row or 0]))
            denoised = (denoised * out).add_(sample, alpha=skip)
        return LCMSchedulerOutput(following, denoised) if return_dict else (following, denoised)


class TCDScheduler(DistilledScheduler):
    """Strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024, algorithm 4).

    Each step goes by DDIM beyond the next timestep, to `floor((1 - eta) · t')`, and back to `t'` by fresh noise. The
    trajectory ends at training timestep 0. (`eta` is the paper's gamma.) `timestep_scaling` has no effect: nothing is skipped.
    """

    ends_clean = False

    def distilled_timesteps(self, steps: int, original_steps: int | None = None, strength: float = 1.0) -> Array:
        """As in LCM; where `original_steps` are given, any timestep will do, and they only bound the number of steps."""
        if original_steps is None:
            return super().distilled_timesteps(steps, None, strength)
        if steps > original_steps:
            raise ValueError(f"num_inference_steps is {steps}, more than the {original_steps} original_inference_steps")
        count = self.noise_schedule.count
        return self._some(np.arange(float(int(count * strength))), steps, count)

    def row(self, levels: Levels, i: int, eta: float = 0.3, **options: Any) -> Row:
        """`x' = r · (alpha_s · x0 + sigma_s · noise) + sqrt(1 - r²) · fresh`, with `r = alpha' / alpha_s`."""
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}, but must be from 0 to 1")
        following = np.append(levels.timesteps, 0.0)[i + 1]
        beyond = self.noise_schedule.alphas_cumprod[int(np.float32(1 - eta) * np.float32(following))]  # 0.7 · 700 is 490
        remains = levels.alpha[i + 1] ** 2 / beyond
        fresh = math.sqrt(max(1 - remains, 0.0)) if eta > 0 and i < len(levels) - 1 else None
        return Row(x={}, m={i: levels.alpha[i + 1]}, raw_noise=math.sqrt(remains * (1 - beyond)), noise=fresh)

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, eta: float = 0.3,  # type: ignore[override]
             generator: Generators = None, return_dict: bool = True) -> Any:
        """The sample [B, …] at the next timestep. `eta` is the share of noise renewed: 0 is deterministic, 1 renews all."""
        return self._step(model_output, timestep, sample, generator, return_dict, eta=eta)
