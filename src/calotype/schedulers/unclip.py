"""UnCLIP: the ancestral sampling of DALL-E 2, whose step may go to any earlier timestep."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from torch import Tensor

from ..config import register_to_config
from ..randomness import Generators
from ..words import check_choice
from .ddpm import VARIANCE_TYPES, DDPMScheduler
from .noise import Array, Levels


class UnCLIPScheduler(DDPMScheduler):
    """DDPM between any two timesteps (Ramesh et al. 2022, appendix C; Ho et al. 2020, equation 7, with the levels respaced).

    Timesteps are evenly spaced and include the last and the first of training; one step starts from the last.

    Without `prev_timestep` a step goes to the next of `timesteps`. (The peer's goes to `t - 1`, whatever the number of
    steps, so that its own pipelines always say where. It knows only the cosine schedule, and no `v_prediction`.)

    Args:
        variance_type: the posterior's variance (`"fixed_small_log"`) or `"learned_range"`, and the others of `DDPMScheduler`.
    """

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, variance_type: str = "fixed_small_log", clip_sample: bool = True,
        clip_sample_range: float = 1.0, prediction_type: str = "epsilon", beta_schedule: str = "squaredcos_cap_v2",
    ):
        check_choice("variance_type", variance_type, VARIANCE_TYPES)
        self._prepare()

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        times = timesteps
        if times is None:
            last = self.noise_schedule.count - 1
            times = np.round(np.arange(steps)[::-1] * (last / (steps - 1))) if steps > 1 else np.array([float(last)])
        return self.noise_schedule.vp_levels(times, 1.0)

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, prev_timestep: int | Tensor | None = None,
        generator: Generators = None, return_dict: bool = True,
    ) -> Any:
        """The sample [B, C, …] at the next timestep, or at `prev_timestep`.

        `model_output` is [B, 2C, …] where the variance is learned.
        """
        if prev_timestep is None:
            return self._step(model_output, timestep, sample, generator, return_dict)
        kept = np.append(self.noise_schedule.alphas_cumprod, 1.0)[int(prev_timestep)]  # timestep -1 is the clean sample
        jump = copy.copy(self)
        jump._place(self.noise_schedule.vp_levels(np.array([float(timestep)]), kept), None)
        return jump._step(model_output, timestep, sample, generator, return_dict)
