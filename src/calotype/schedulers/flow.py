"""What solvers of flow models share: `x = (1 - sigma) · x0 + sigma · noise` (Lipman et al. 2023; Liu et al. 2023).

A level is its share of noise `sigma`, and the model is told `sigma · num_train_timesteps`. The more values a picture has, the
more noise it takes to hide it; so levels are shifted towards noise (Esser et al. 2024, equation 23).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .base import Scheduler
from .noise import Array, Levels, chosen_ramp
from .prediction import Prediction, read_prediction
from .table import Row

_Levels = TypeVar("_Levels", Array, Tensor)


def shifted(sigmas: _Levels, factor: float) -> _Levels:
    """`factor · sigma / (1 + (factor - 1) · sigma)`, which has `factor` times the ratio of noise to picture."""
    return factor * sigmas / (1 + (factor - 1) * sigmas)


def flow_levels(timesteps: Array, sigmas: Array, end: float = 0.0) -> Levels:
    """Levels at `sigmas`, then `end`, of single precision: near pure noise, pictures depend on what it makes of `1 - sigma`."""
    ends = np.append(sigmas, end).astype(np.float32).astype(np.float64)
    return Levels(timesteps, 1 - ends, ends)


class FlowLevels(Scheduler):
    """Base of the schedulers whose levels are, or may be (`_flow`), shares of noise."""

    _flow = True
    _shift = 1.0

    def _prepare(self) -> None:
        self._time_shift = self.config.get("time_shift_type", "exponential")
        self._dynamic, self._terminal = bool(self.config.get("use_dynamic_shifting")), self.config.get("shift_terminal")
        super()._prepare()

    def _shifted(self, sigmas: Array, mu: float | None) -> Array:
        factor = self._shift
        if self._dynamic and mu is not None:
            factor = math.exp(mu) if self._time_shift == "exponential" else mu
        if not 0 <= sigmas[-1] <= sigmas[0] <= 1:
            raise ValueError(f"sigmas must lie in [0, 1], and are {sigmas.tolist()}")
        sigmas = shifted(sigmas, factor)
        if not self._terminal or sigmas[-1] >= 1:  # at which there is no picture yet
            return sigmas
        return 1 - (1 - sigmas) / ((1 - sigmas[-1]) / (1 - self._terminal))  # so that the last level is that

    def sigmas_of(self, levels: Levels) -> Array:
        return levels.sigma if self._flow else super().sigmas_of(levels)

    def _trained_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        sigma = timesteps / len(self)
        return (1 - sigma, sigma) if self._flow else super()._trained_levels(timesteps)


class FlowMatchScheduler(FlowLevels):
    """Base of the schedulers for models that were trained on `x = (1 - sigma) · x0 + sigma · noise` to say `noise - x0`."""

    exposes_sigmas = True
    tells_x0 = False
    sigmas_name_the_end = False
    timestep_dtype = np.float32

    def _prepare(self) -> None:
        config = self.config
        self._shift, self._ramp, self._inverted = config.shift, chosen_ramp(config), config.get("invert_sigmas", False)
        super()._prepare()
        self.sigmas = self.sigmas[:-1]

    def _training(self) -> Levels:
        sigmas = np.arange(len(self), 0.0, -1) / len(self)
        sigmas = sigmas if self._dynamic else shifted(sigmas, self._shift)
        self.sigma_max, self.sigma_min = float(sigmas[0]), float(sigmas[-1])
        return self._told(sigmas)

    def _told(self, sigmas: Array, told: Sequence[float] | None = None) -> Levels:
        """Levels at `sigmas`, of which the model is told the share of noise, or of picture, unless it is `told` other numbers."""
        times = len(self) * (1 - sigmas if self._inverted else sigmas) if told is None else np.asarray(told, dtype=np.float64)
        if len(times) != len(sigmas):
            raise ValueError(f"there are {len(sigmas)} sigmas, but {len(times)} timesteps")
        return flow_levels(times, sigmas)

    @property
    def highest_timestep(self) -> float:
        return float(len(self))

    @property
    def shift(self) -> float:
        """The factor of the shift: the config's, or that of `set_shift`."""
        return float(self._shift)

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None, mu: float | None = None,
               told: Sequence[float] | None = None) -> Levels:
        """Evenly spaced between the shifted ends of training, and shifted; so are a caller's `sigmas`, but not `timesteps`.

        `told`, beside `sigmas`, is what the model is told in place of their levels.
        """
        if timesteps is not None and (self._ramp or self._inverted):
            raise ValueError("timesteps cannot be given where the config places the levels by a ramp, or inverts them")
        if timesteps is not None:
            return flow_levels(timesteps, timesteps / len(self))
        if self._dynamic and mu is None:
            raise ValueError("use_dynamic_shifting needs mu, a number, which says by how much")
        sigmas = self._shifted(np.linspace(self.sigma_max, self.sigma_min, steps) if sigmas is None else sigmas, mu)
        return self._told(self._ramp(sigmas[0], sigmas[-1], len(sigmas)) if self._ramp else sigmas, told)

    def prediction(self, levels: Levels) -> Prediction:
        read = read_prediction("flow_prediction", levels)
        return Prediction(read.x0_x, -read.x0_out, read.noise_x, -read.noise_out) if self._inverted else read

    def sigmas_of(self, levels: Levels) -> Array:
        return levels.alpha if self._inverted else levels.sigma

    def _trained_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = super()._trained_levels(timesteps)
        return (sigma, alpha) if self._inverted else (alpha, sigma)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Take clean samples [B, …] to the level of `timestep` ([B] or one): `(1 - sigma) · sample + sigma · noise`.

        Any timestep is allowed: one that is not in the list has the level `timestep / num_train_timesteps`.
        """
        return self.add_noise(sample, noise, timestep)


class ShiftedScheduler(FlowMatchScheduler):
    """Base of those whose shift can be chosen later, and whose levels a caller can place."""

    placed_by = ("timesteps", "sigmas")

    def set_shift(self, shift: float) -> None:
        """Replace the config's `shift`, from the next `set_timesteps` or `table` on. The ends of training stay."""
        self._shift = shift

    def set_timesteps(self, num_inference_steps: int | None = None,  # type: ignore[override]
                      device: torch.device | str | None = None, sigmas: Sequence[float] | None = None, mu: float | None = None,
                      timesteps: Sequence[float] | None = None) -> None:
        """Choose the levels, and start again at the first.

        Args:
            sigmas: the levels at which the model is asked, falling, before they are shifted; the end, 0, is not among them.
            mu: what `use_dynamic_shifting` shifts by.
            timesteps: what the model is told; with `sigmas`, in place of their levels, and else `timestep / num_train_timesteps`
                is the level, which is not shifted again.
        """
        given = sigmas if sigmas is not None else timesteps
        if given is not None and num_inference_steps not in (None, len(given)):
            raise ValueError(f"num_inference_steps is {num_inference_steps}, but there are {len(given)} levels")
        told = timesteps if sigmas is not None else None
        super().set_timesteps(num_inference_steps if given is None else None, device, timesteps if told is None else None, sigmas,
                              mu=mu, told=told)

    def _renoised(self, levels: Levels, i: int) -> Row:
        """`x' = (1 - sigma') · x0 + sigma' · fresh`, for schedulers that remember the clean sample."""
        return Row(x={i: 0.0}, m={i: levels.alpha[i + 1]}, noise=levels.sigma[i + 1])
