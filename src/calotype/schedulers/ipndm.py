"""IPNDM: linear multistep on trigonometric levels (Zhang & Chen 2023, "improved PNDM"; Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import register_to_config
from .base import Scheduler
from .noise import Array, Levels
from .pndm import ADAMS_BASHFORTH
from .prediction import Prediction, read_prediction
from .table import Row


class IPNDMScheduler(Scheduler):
    """Linear multistep for models of `v` on trigonometric levels. Second order: its four weights are of even steps.

    The levels are `sigma = sin²(π t / 2)` and `alpha² + sigma² = 1` for evenly spaced `t` from 1 to 0; the model is told their
    angle, `2/π · atan2(sigma, alpha)`, from 1 (noise) to 0. At 1, where there is no signal, the clean sample counts as 0,
    whatever the model says; but for a single step, which (unlike the peer's) is what the model says.

    Args:
        num_train_timesteps: the number of levels before `set_timesteps`.
        trained_betas: [n + 1] these `sigma` instead, the last the one at which the trajectory ends; for any number of steps.
    """

    memory = "noise"
    tells_x0 = False

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, trained_betas: Sequence[float] | None = None):
        self._prepare(self.levels(num_train_timesteps))

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        given = self.config.trained_betas
        sigma = np.sin(np.linspace(1, 0, steps + 1) * np.pi / 2) ** 2 if given is None else np.asarray(given, dtype=np.float64)
        alpha = np.sqrt(1 - sigma**2)
        if len(alpha) == 2:
            alpha[0] = max(alpha[0], 2**-24)
        times = 2 / np.pi * np.arctan2(sigma, alpha)[:-1]
        return Levels(times.astype(np.float32).astype(np.float64), alpha, sigma)

    def prediction(self, levels: Levels) -> Prediction:
        return read_prediction("v_prediction", levels)

    def timesteps_of(self, levels: Levels, device: torch.device | str | None = None) -> Tensor:
        return torch.from_numpy(levels.timesteps).to(device, torch.float32)

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """`x' = alpha'/alpha · x + (sigma' - alpha'/alpha · sigma) · Σ_j w_j · noise_j`, `w` of Adams and Bashforth."""
        rows = []
        for i in range(len(levels)):
            scale = levels.alpha[i + 1] / levels.alpha[i] if levels.alpha[i] > 0 else 0.0
            along, past = levels.sigma[i + 1] - scale * levels.sigma[i], range(i, max(i - 4, -1), -1)
            weights = ADAMS_BASHFORTH[len(past) - 1]
            rows.append(Row(x={i: scale}, m={j: along * w for j, w in zip(past, weights, strict=True)}))
        return rows
