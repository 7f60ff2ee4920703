"""Schedulers of models that were trained at a list of noise levels, as DDPM's betas give it; and such of VE samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Scheduler
from .noise import Array, Levels, NoiseSchedule, chosen_ramp, ve_levels


class BetaScheduler(Scheduler):
    """Base of the schedulers over betas: the training process, and levels at its timesteps."""

    bounded = True

    def _prepare(self) -> None:
        self.noise_schedule = NoiseSchedule(self.config, least_signal=2**-24 if self.input_is_ve or self.exposes_sigmas else 0.0)
        self._ramp = chosen_ramp(self.config)
        self.alphas_cumprod = torch.from_numpy(self.noise_schedule.alphas_cumprod).float()
        self.betas = torch.from_numpy(self.noise_schedule.betas).float()
        self.alphas = 1 - self.betas
        super()._prepare()

    def _training(self) -> Levels:
        return self.noise_schedule.training_levels(self.input_is_ve)

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """[] the level at which trajectories end: 1 is a clean sample."""
        return torch.tensor(1.0) if self._own.get("set_alpha_to_one", True) else self.alphas_cumprod[0]

    def __len__(self) -> int:
        return self.noise_schedule.count

    def _trained_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Fractions of timesteps interpolate."""
        known = torch.from_numpy(self.noise_schedule.alphas_cumprod).to(timesteps)
        below = timesteps.floor().long().clamp(0, len(known) - 1)
        kept = torch.lerp(known[below], known[(below + 1).clamp(max=len(known) - 1)], timesteps - timesteps.floor())
        return (torch.ones_like(kept), ((1 - kept) / kept).sqrt()) if self.input_is_ve else (kept.sqrt(), (1 - kept).sqrt())

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of `v_prediction` training: `alpha · noise - sigma · x0` (Salimans & Ho 2022), of VP levels."""
        alpha, sigma = self._levels_at(timesteps, sample)
        size = torch.hypot(alpha, sigma)
        return (alpha / size).to(noise) * noise - (sigma / size).to(sample) * sample


class VEScheduler(BetaScheduler):
    """Base of solvers of variance-exploding samples, `x = x0 + sigma · noise`, and so `dx/dsigma = noise` (Karras et al. 2022).

    Begin with noise times `init_noise_sigma`, and call `scale_model_input`.
    """

    input_is_ve = True
    timestep_dtype: Any = np.float32

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        return ve_levels(*self._spaced(steps, timesteps))

    def _spaced(self, steps: int, timesteps: Array | None = None, count: int | None = None) -> tuple[Array, Array]:
        """Timesteps and VE levels: of the config's spacing (below `count`) or the given timesteps, or by its ramp."""
        if timesteps is not None and self._ramp:
            raise ValueError("timesteps cannot be given where the config places the levels by a ramp")
        config, training = self.config, self.noise_schedule
        times = training.spaced(config.timestep_spacing, steps, config.steps_offset, count) if timesteps is None else timesteps
        sigmas = training.sigmas_at(times)
        if self._ramp is None:
            return times, sigmas
        sigmas = self._ramp(sigmas[0], sigmas[-1], steps)
        return training.timestep_of(sigmas), sigmas

    def initial_noise_scale(self, levels: Levels) -> float:
        highest = float(levels.sigma.max())
        return highest if self.config.timestep_spacing in ("linspace", "trailing") else math.hypot(highest, 1)
