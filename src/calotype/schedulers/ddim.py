"""DDIM: the deterministic (or, with `eta`, partly stochastic) solver of Song, Meng & Ermon 2021, both ways and in parallel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..randomness import Generators
from .base import Scheduler
from .betas import BetaScheduler
from .entries import BETAS, takes
from .noise import Array, Levels
from .table import Row


@takes(**BETAS, clip_sample=True, set_alpha_to_one=True, steps_offset=0, prediction_type="epsilon", thresholding=False,
       dynamic_thresholding_ratio=0.995, clip_sample_range=1.0, sample_max_value=1.0, timestep_spacing="leading",
       rescale_betas_zero_snr=False)
class DDIMScheduler(BetaScheduler):
    """Denoising diffusion implicit models (Song, Meng & Ermon 2021), equation 12. First order.

    Each step goes to the next entry of `timesteps`, whatever the spacing, and the last one to `final_alpha_cumprod`.
    """

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        times = self.noise_schedule.spaced(self.config.timestep_spacing, steps, self.config.steps_offset).round()
        return self.noise_schedule.vp_levels(times, float(self.final_alpha_cumprod))

    def row(self, levels: Levels, i: int, eta: float = 0.0, use_clipped_model_output: bool = False, **options: Any) -> Row:
        """Equation 12: `x' = alpha' · x0 + sqrt(sigma'² - s²) · noise + s · fresh`, with `s` by equation 16."""
        (alpha, following), (sigma, sigma_following) = levels.alpha[i : i + 2], levels.sigma[i : i + 2]
        spread = eta * sigma_following / sigma * np.sqrt(1 - (alpha / following) ** 2)
        direction = np.sqrt(np.maximum(sigma_following**2 - spread**2, 0))
        fresh = spread if eta > 0 else None
        if not use_clipped_model_output:
            return Row(x={}, m={i: following}, raw_noise=direction, noise=fresh)
        along = direction / sigma  # the noise that goes with the clipped x0: (x - alpha · x0) / sigma
        return Row(x={i: along}, m={i: following - along * alpha}, noise=fresh)

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, eta: float = 0.0,  # type: ignore[override]
             use_clipped_model_output: bool = False, generator: Generators = None, variance_noise: Tensor | None = None,
             return_dict: bool = True) -> Any:
        """The sample [B, …] at the next timestep.

        Args:
            eta: 0 is deterministic, 1 has the noise of DDPM.
            use_clipped_model_output: take the noise from the clipped clean sample instead of the model's output.
            variance_noise: [B, …] the fresh noise, instead of a draw from `generator`.
        """
        return self._step(model_output, timestep, sample, generator, return_dict, variance_noise,
                          eta=eta, use_clipped_model_output=use_clipped_model_output)


def batch_step(scheduler: Scheduler, output: Tensor, timesteps: Tensor, sample: Tensor, **options: Any) -> Tensor:
    """One step without fresh noise, each sample of the batch by the row of its own timestep."""
    table = scheduler._table_from(0, options)
    rows = torch.tensor([scheduler.index_for_timestep(t) for t in timesteps.tolist()], device=sample.device)
    return table.step(rows, output, sample, table.new_state())


class DDIMParallelScheduler(DDIMScheduler):
    """`DDIMScheduler`, and `batch_step_no_noise` for Picard iterations over a window of timesteps (Shih et al. 2023)."""

    def batch_step_no_noise(self, model_output: Tensor, timesteps: Tensor, sample: Tensor, eta: float = 0.0,
                            use_clipped_model_output: bool = False) -> Tensor:
        """The mean of each sample's next [B, …], at its own of `timesteps` [B], in any order; the noise of `eta` is left out."""
        return batch_step(self, model_output, timesteps, sample, eta=eta, use_clipped_model_output=use_clipped_model_output)


@takes(**BETAS, clip_sample=True, set_alpha_to_one=True, steps_offset=0, prediction_type="epsilon", clip_sample_range=1.0,
       timestep_spacing="leading", rescale_betas_zero_snr=False)
class DDIMInverseScheduler(DDIMScheduler):
    """Encodes a clean sample: the ODE of DDIM towards noise (Song, Meng & Ermon 2021, equation 14 reversed). First order.

    Visits the levels of DDIM in the opposite order. `timesteps` rise, and a call is told the timestep that its step goes to
    (the model is asked at the noisier end, as Mokady et al. 2023 do for null-text inversion).

    A model of the clean sample says nothing about noise where there is none, so with `prediction_type="sample"` the first
    sample counts as one at training timestep 0.
    """

    step = Scheduler.step  # type: ignore[assignment]  # without `eta`

    def _training(self) -> Levels:
        return self.noise_schedule.training_levels().turned()

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        falling = super().levels(steps)
        alpha, sigma = falling.alpha[::-1].copy(), falling.sigma[::-1].copy()
        if self.config.prediction_type == "sample":
            kept = self.noise_schedule.alphas_cumprod[0]
            alpha[0], sigma[0] = kept**0.5, (1 - kept) ** 0.5
        return Levels(falling.timesteps[::-1].copy(), alpha, sigma)

    def row(self, levels: Levels, i: int, **options: Any) -> Row:  # type: ignore[override]
        """`x' = alpha' · x0 + sigma' · noise`."""
        return Row(x={}, m={i: levels.alpha[i + 1]}, raw_noise=levels.sigma[i + 1])
