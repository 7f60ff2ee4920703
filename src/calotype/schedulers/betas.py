"""Schedulers of models that were trained at a list of noise levels, as DDPM's betas give it.

Config entries that most of them take:

    num_train_timesteps                       length of the training process
    beta_start, beta_end, beta_schedule       its noise, and `trained_betas`: see `noise.make_betas`
    rescale_betas_zero_snr                    make the last training timestep (almost) pure noise: `noise.zero_terminal_snr`
    prediction_type                           what the model predicts: see `prediction.read_prediction`
    timestep_spacing                          `"linspace"`, `"leading"` or `"trailing"`: see `NoiseSchedule.spaced`
    steps_offset                              added to the timesteps of `leading` spacing
    use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas    place the levels by a ramp of `noise`; at most one
    final_sigmas_type                         end at `"zero"` or at the smallest training level, `"sigma_min"`
    clip_sample, clip_sample_range            clip the predicted clean sample to ±`clip_sample_range`; for models of pixels
    thresholding                              and `dynamic_thresholding_ratio`, `sample_max_value`: `prediction.dynamic_threshold`
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..words import check_choice
from .base import Scheduler
from .noise import SPACINGS, Levels, NoiseSchedule


class BetaScheduler(Scheduler):
    """Base of the schedulers over betas: the training process, and levels at its timesteps."""

    def _prepare(self, training: Levels | None = None, most_steps: int | None = None) -> None:
        check_choice("timestep_spacing", self.config.get("timestep_spacing", "linspace"), SPACINGS)
        self.noise_schedule = NoiseSchedule(self.config, least_signal=2**-24 if self.input_is_ve or self.exposes_sigmas else 0.0)
        self.alphas_cumprod = torch.from_numpy(self.noise_schedule.alphas_cumprod).float()
        self.betas = torch.from_numpy(self.noise_schedule.betas).float()
        self.alphas = 1 - self.betas
        super()._prepare(training or self.noise_schedule.training_levels(ve=self.input_is_ve), len(self.betas))

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """[] the level at which trajectories end: 1 is a clean sample."""
        ends_clean = self.config.get("set_alpha_to_one", True)
        return torch.tensor(1.0) if ends_clean else self.alphas_cumprod[0]

    @property
    def highest_timestep(self) -> float:
        return self.noise_schedule.count - 1.0

    def __len__(self) -> int:
        return self.noise_schedule.count

    def _levels_at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """`alpha` and `sigma` (VP) at training timesteps (fractions interpolate), shaped to multiply `like` [B, …]."""
        known, current = self.noise_schedule.alphas_cumprod, self._current
        at = timesteps.detach().to(like.device, torch.float64).reshape(-1)
        kept = torch.from_numpy(known).to(like.device)
        below = at.floor().long().clamp(0, len(kept) - 1)
        kept = torch.lerp(kept[below], kept[(below + 1).clamp(max=len(kept) - 1)], at - at.floor())
        # a timestep of the trajectory has the level of its row, which need not be that of the training timestep
        away, row = (at[:, None] - torch.from_numpy(current.timesteps.copy()).to(like.device)).abs().min(dim=1)
        share = current.alpha**2 / (current.alpha**2 + current.sigma**2)
        kept = torch.where(away < 1e-3, torch.from_numpy(share).to(like.device)[row], kept)
        shape = (-1, *[1] * (like.ndim - 1))
        return kept.sqrt().reshape(shape).to(like.dtype), (1 - kept).sqrt().reshape(shape).to(like.dtype)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Take clean samples to the level of `timesteps` ([B] or one): `alpha · x0 + sigma · noise`.

        Solvers with variance-exploding samples get `x0 + sigma · noise`.
        """
        alpha, sigma = self._levels_at(timesteps, original_samples)
        return original_samples + sigma / alpha * noise if self.input_is_ve else alpha * original_samples + sigma * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of `v_prediction` training: `alpha · noise - sigma · x0` (Salimans & Ho 2022)."""
        alpha, sigma = self._levels_at(timesteps, sample)
        return alpha * noise - sigma * sample
