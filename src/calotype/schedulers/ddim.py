"""DDIM: the deterministic (or, with `eta`, partly stochastic) solver of Song et al. 2021."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..config import register_to_config
from ..randomness import Generators
from .betas import BetaScheduler
from .noise import Array, Levels
from .table import Row


class DDIMScheduler(BetaScheduler):
    """Denoising diffusion implicit models (Song, Meng & Ermon 2021), equation 12. First order.

    Each step goes to the next entry of `timesteps`, whatever the spacing, and the last one to `final_alpha_cumprod`.

    Args:
        set_alpha_to_one: end at a clean sample; otherwise at training timestep 0.
    """

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, clip_sample: bool = True,
        set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
        thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0, timestep_spacing: str = "leading", rescale_betas_zero_snr: bool = False,
    ):
        self._prepare()

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        times = self.noise_schedule.spaced(self.config.timestep_spacing, steps, self.config.steps_offset).round()
        final = 1.0 if self.config.set_alpha_to_one else self.noise_schedule.alphas_cumprod[0]
        return self.noise_schedule.vp_levels(times, final)

    def rows(self, levels: Levels, eta: float = 0.0, use_clipped_model_output: bool = False, **options: Any) -> list[Row]:
        """Equation 12: `x' = alpha' · x0 + sqrt(sigma'² - s²) · noise + s · fresh`, with `s` by equation 16."""
        alpha, sigma = levels.alpha, levels.sigma
        rows = []
        for i in range(len(levels)):
            kept = (alpha[i] / alpha[i + 1]) ** 2
            spread = eta * sigma[i + 1] / sigma[i] * np.sqrt(1 - kept)
            direction = np.sqrt(np.maximum(sigma[i + 1] ** 2 - spread**2, 0))
            fresh = spread if eta > 0 else None
            if use_clipped_model_output:  # the noise that goes with the clipped x0: (x - alpha · x0) / sigma
                along = direction / sigma[i]
                rows.append(Row(x={i: along}, m={i: alpha[i + 1] - along * alpha[i]}, noise=fresh))
            else:
                rows.append(Row(x={}, m={i: alpha[i + 1]}, raw_noise=direction, noise=fresh))
        return rows

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, eta: float = 0.0,
        use_clipped_model_output: bool = False, generator: Generators = None, variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample [B, …] at the next timestep.

        Args:
            eta: 0 is deterministic, 1 has the noise of DDPM.
            use_clipped_model_output: take the noise from the clipped clean sample instead of the model's output.
            variance_noise: [B, …] the fresh noise, instead of a draw from `generator`.
        """
        return self._step(model_output, timestep, sample, generator, return_dict, variance_noise,
                          eta=eta, use_clipped_model_output=use_clipped_model_output)
