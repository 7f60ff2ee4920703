"""DDIM and DDPM for sampling in parallel (Shih et al. 2023, ParaDiGMS): many timesteps of a trajectory in one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Scheduler
from .ddim import DDIMScheduler
from .ddpm import DDPMScheduler


def _batch_step(scheduler: Scheduler, output: Tensor, timesteps: Tensor, sample: Tensor, **options: Any) -> Tensor:
    """One step without fresh noise, each sample of the batch by the row of its own timestep."""
    table = scheduler._table_from(0, options)
    rows = torch.tensor([scheduler.index_for_timestep(t) for t in timesteps.tolist()], device=sample.device)
    return table.step(rows, output, sample, table.new_state())


class DDIMParallelScheduler(DDIMScheduler):
    """`DDIMScheduler`, and `batch_step_no_noise` for Picard iterations over a window of timesteps (Shih et al. 2023)."""

    def batch_step_no_noise(
        self, model_output: Tensor, timesteps: Tensor, sample: Tensor, eta: float = 0.0, use_clipped_model_output: bool = False
    ) -> Tensor:
        """The mean of each sample's next, at its own timestep.

        Args:
            model_output: [B, …]
            timesteps: [B] of the trajectory, in any order.
            sample: [B, …]
            eta, use_clipped_model_output: as of `step`; the noise that `eta` calls for is left out.
        """
        return _batch_step(
            self, model_output, timesteps, sample, eta=eta, use_clipped_model_output=use_clipped_model_output)


class DDPMParallelScheduler(DDPMScheduler):
    """`DDPMScheduler`, and `batch_step_no_noise` for Picard iterations over a window of timesteps (Shih et al. 2023)."""

    def batch_step_no_noise(self, model_output: Tensor, timesteps: Tensor, sample: Tensor) -> Tensor:
        """The mean of each sample's next, at its own timestep.

        Args:
            model_output: [B, …], or [B, 2C, …] where the variance is learned.
            timesteps: [B] of the trajectory, in any order.
            sample: [B, …]
        """
        return _batch_step(self, model_output, timesteps, sample)
