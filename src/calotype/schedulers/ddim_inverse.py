"""DDIM backwards: from a picture to the noise that gives it back (Song et al. 2021, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config import register_to_config
from .base import Scheduler
from .ddim import DDIMScheduler
from .noise import Array, Levels
from .table import Row


class DDIMInverseScheduler(DDIMScheduler):
    """Encodes a clean sample: the ODE of DDIM towards noise (Song, Meng & Ermon 2021, equation 14 reversed). First order.

    Visits the levels of DDIM in the opposite order. `timesteps` rise, and a call is told the timestep that its step goes to
    (the model is asked at the noisier end, as Mokady et al. 2023 do for null-text inversion).

    A model of the clean sample says nothing about noise where there is none, so with `prediction_type="sample"` the first
    sample counts as one at training timestep 0. (The peer divides by zero there, and steps from `t - 1000 // n` even where
    that is not the level reached; it refuses `linspace`.)

    Args:
        set_alpha_to_one: begin at a clean sample; otherwise at training timestep 0.
    """

    step = Scheduler.step  # type: ignore[assignment]  # without `eta`

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, clip_sample: bool = True,
        set_alpha_to_one: bool = True, steps_offset: int = 0, prediction_type: str = "epsilon",
        clip_sample_range: float = 1.0, timestep_spacing: str = "leading", rescale_betas_zero_snr: bool = False,
    ):
        self._prepare()
        self._place(self.noise_schedule.training_levels(ve=False).turned(0), None)

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        falling = super().levels(steps)
        alpha, sigma = falling.alpha[::-1].copy(), falling.sigma[::-1].copy()
        if self.config.prediction_type == "sample":
            kept = self.noise_schedule.alphas_cumprod[0]
            alpha[0], sigma[0] = kept**0.5, (1 - kept) ** 0.5
        return Levels(falling.timesteps[::-1].copy(), alpha, sigma)

    def rows(self, levels: Levels, **options: Any) -> list[Row]:  # type: ignore[override]
        """`x' = alpha' · x0 + sigma' · noise`."""
        ends = zip(levels.alpha[1:], levels.sigma[1:], strict=True)
        return [Row(x={}, m={i: alpha}, raw_noise=sigma) for i, (alpha, sigma) in enumerate(ends)]
