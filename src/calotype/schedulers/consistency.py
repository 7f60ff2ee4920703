"""Consistency models: the model says the clean sample at once; a few steps of noising and asking again refine it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Scheduler
from .entries import takes
from .noise import Array, Levels, karras_ramp
from .prediction import Prediction, read_preconditioned
from .table import Row


@takes(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, s_noise=1.0, rho=7.0, clip_denoised=True)
class CMStochasticIterativeScheduler(Scheduler):
    """Multistep consistency sampling (Song et al. 2023, algorithm 1). Its levels are some of a ramp of Karras et al. 2022.

    The consistency function is `c_skip · x + c_out · F` with `c_skip = d² / ((sigma - sigma_min)² + d²)`,
    `c_out = d (sigma - sigma_min) / sqrt(sigma² + d²)` and `d = sigma_data` (appendix C). The model is told
    `250 log(sigma)`. Begin with noise times `init_noise_sigma`, and call `scale_model_input`.

    The ramp has `num_train_timesteps` levels; a caller's timestep `k`, of a falling list, is for its place `k`, counted from the
    noisy end, and the lowest comes first.
    """

    input_is_ve = True
    tells_x0 = False
    bounded = True
    placed_by = ("timesteps",)
    timestep_dtype = np.float64

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        config, count = self.config, len(self)
        places = np.arange(steps) * (count // steps) if timesteps is None else timesteps[::-1].astype(int)
        sigmas = karras_ramp(config.sigma_max, config.sigma_min, count, config.rho)[places]
        ends = np.append(sigmas, config.sigma_min)
        return Levels(250 * np.log(sigmas), np.ones_like(ends), ends)

    def prediction(self, levels: Levels) -> Prediction:
        return read_preconditioned(levels.sigma[:-1], self.config.sigma_data, sigma_min=self.config.sigma_min)

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """`x' = x0 + s_noise · sqrt(sigma'² - sigma_min²) · fresh`; nothing is drawn if there is one step in all."""
        spread = self.config.s_noise * math.sqrt(max(levels.sigma[i + 1] ** 2 - self.config.sigma_min**2, 0))
        return Row(x={}, m={i: 1.0}, noise=None if levels.begin + len(levels) == 1 else spread)

    def initial_noise_scale(self, levels: Levels) -> float:
        return float(self.config.sigma_max)


@takes(num_train_timesteps=1000, prediction_type="trigflow", sigma_data=0.5)
class SCMScheduler(Scheduler):
    """Multistep consistency sampling on trigonometric flow (Lu & Song 2024), as SANA-Sprint has it.

    A sample at timestep `t`, an angle from 0 to π/2, is `cos(t) · x0 + sin(t) · sigma_data · noise`, and the clean sample is
    `cos(t) · x - sin(t) · F`. Begin with noise times `sigma_data`. `timesteps` has one entry more than there are model calls:
    the end.
    """

    prediction_types: ClassVar[tuple[str, ...]] = ("trigflow",)
    bounded = True
    placed_by = ("timesteps",)
    timestep_dtype = np.float32
    highest_timestep = 1.5708
    middle: ClassVar[float] = 1.3

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None,
               max_timesteps: float = highest_timestep, intermediate_timesteps: float = middle) -> Levels:
        if not 0 < max_timesteps <= self.highest_timestep:
            raise ValueError(f"max_timesteps is {max_timesteps}, but must be above 0 and at most {self.highest_timestep}")
        if timesteps is None and steps == 2 and intermediate_timesteps:
            timesteps = np.array([max_timesteps, intermediate_timesteps, 0.0])
            if not 0 < intermediate_timesteps < max_timesteps:
                raise ValueError(f"intermediate_timesteps is {intermediate_timesteps}, and not between 0 and {max_timesteps}")
        elif timesteps is None:
            if intermediate_timesteps not in (0, self.middle):
                raise ValueError(f"intermediate_timesteps is of two steps, and these are {steps}")
            timesteps = np.linspace(max_timesteps, 0, steps + 1)
        if len(timesteps) < 2:
            raise ValueError(f"timesteps must name the end too, usually 0, and are {timesteps.tolist()}")
        told = timesteps.astype(np.float32).astype(np.float64)
        return Levels(told[:-1], np.cos(told), self.config.sigma_data * np.sin(told))

    def prediction(self, levels: Levels) -> Prediction:
        cos, sin = np.cos(levels.timesteps), np.sin(levels.timesteps)
        return Prediction(cos, -sin, sin / self.config.sigma_data, cos / self.config.sigma_data)

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """`x' = cos(t') · x0 + sin(t') · sigma_data · fresh`; drawn in the last step too."""
        return Row(x={}, m={i: levels.alpha[i + 1]}, noise=levels.sigma[i + 1])

    def _place(self, levels: Levels, device: torch.device | str | None) -> None:
        super()._place(levels, device)
        end = math.atan2(levels.sigma[-1] / self.config.sigma_data, levels.alpha[-1])
        self.timesteps = torch.cat([self.timesteps, self.timesteps.new_tensor([end])])

    def set_timesteps(self, num_inference_steps: int, timesteps: Sequence[float] | Tensor | None = None,  # type: ignore[override]
                      device: str | torch.device | None = None, max_timesteps: float | None = highest_timestep,
                      intermediate_timesteps: float | None = middle) -> None:
        """Choose the timesteps, and start again at the first.

        Args:
            timesteps: `num_inference_steps + 1` of them, falling: the last is the end, usually 0.
            max_timesteps: the first, where they are not given.
            intermediate_timesteps: the second, where there are two steps; `None` spaces them evenly.
        """
        if timesteps is None:
            super().set_timesteps(num_inference_steps, device, max_timesteps=max_timesteps,
                                  intermediate_timesteps=intermediate_timesteps or 0.0)
        elif len(timesteps) != num_inference_steps + 1:
            raise ValueError(f"timesteps are {len(timesteps)}, but must be num_inference_steps + 1, {num_inference_steps + 1}")
        else:
            super().set_timesteps(None, device, timesteps)
