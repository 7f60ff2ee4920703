"""What solvers of flow models share: `x = (1 - sigma) · x0 + sigma · noise` (Lipman et al. 2023; Liu et al. 2023).

A level is its share of noise `sigma`, and the model is told `sigma · num_train_timesteps`. The more values a picture has, the
more noise it takes to hide it; so levels are shifted towards noise (Esser et al. 2024, equation 23).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..words import check_choice
from .base import Scheduler
from .noise import Array, Levels, chosen_ramp
from .prediction import Prediction, read_prediction
from .table import Row


def shifted(sigmas: Array, factor: float) -> Array:
    """`factor · sigma / (1 + (factor - 1) · sigma)`, which has `factor` times the ratio of noise to picture."""
    return factor * sigmas / (1 + (factor - 1) * sigmas)


def stretched(sigmas: Array, terminal: float | None) -> Array:
    """The shares of picture scaled so that the last level is `terminal`; not where it is `None`, or there is no picture yet."""
    return sigmas if not terminal or sigmas[-1] >= 1 else 1 - (1 - sigmas) / ((1 - sigmas[-1]) / (1 - terminal))


def flow_levels(timesteps: Array, sigmas: Array, end: float = 0.0) -> Levels:
    """Levels at `sigmas`, then `end`, of single precision: near pure noise, pictures depend on what it makes of `1 - sigma`."""
    ends = np.append(sigmas, end).astype(np.float32).astype(np.float64)
    return Levels(timesteps, 1 - ends, ends)


class FlowLevels(Scheduler):
    """Base of the schedulers whose levels are, or may be (`_flow`), shares of noise.

    Config entries:

        shift, or flow_shift    the factor of the shift
        use_dynamic_shifting    take it from `mu`, a number that `set_timesteps` and `table` are given, in place of that:
        time_shift_type         `"exponential"`, `e^mu`, or `"linear"`, `mu` itself
        shift_terminal          stretch the levels so that the last is this
    """

    _flow = True
    _shift = 1.0

    def _prepare(self, training: Levels | None = None, most_steps: int | None = None) -> None:
        self._time_shift = self.config.get("time_shift_type", "exponential")
        check_choice("time_shift_type", self._time_shift, ("exponential", "linear"))
        self._dynamic, self._terminal = bool(self.config.get("use_dynamic_shifting")), self.config.get("shift_terminal")
        super()._prepare(training, most_steps)  # type: ignore[arg-type]

    def _shifted(self, sigmas: Array, mu: float | None) -> Array:
        factor = self._shift
        if self._dynamic and mu is not None:
            factor = math.exp(mu) if self._time_shift == "exponential" else mu
        if not 0 <= sigmas[-1] <= sigmas[0] <= 1:
            raise ValueError(f"sigmas must lie in [0, 1], and are {sigmas.tolist()}")
        return stretched(shifted(sigmas, factor), self._terminal)

    def sigmas_of(self, levels: Levels) -> Array:
        return levels.sigma if self._flow else super().sigmas_of(levels)

    def _levels_at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """`alpha` and `sigma`, shaped to multiply `like` [B, …]: a row's, or `sigma = timestep / num_train_timesteps`."""
        if not self._flow:
            return super()._levels_at(timesteps, like)
        at = timesteps.detach().to(like.device, torch.float64).reshape(-1)
        known = torch.from_numpy(np.stack([self._current.timesteps, self._current.sigma[:-1]])).to(like.device)
        away, row = (at[:, None] - known[0]).abs().min(dim=1)
        sigma = torch.where(away < 1e-3, known[1, row], self._sigma_of(at)).reshape(-1, *[1] * (like.ndim - 1))
        return (1 - sigma).to(like.dtype), sigma.to(like.dtype)

    def _sigma_of(self, timesteps: Tensor) -> Tensor:
        return timesteps / self.config.num_train_timesteps


class FlowMatchScheduler(FlowLevels):
    """Base of the schedulers for models that were trained on `x = (1 - sigma) · x0 + sigma · noise` to say `noise - x0`.

    Config entries, besides those of `FlowLevels`:

        num_train_timesteps                   what the model is told of pure noise
        base_shift, max_shift                 the `mu` of pictures of `base_image_seq_len` and `max_image_seq_len` tokens;
                                              for pipelines, which choose `mu` between them
        invert_sigmas                         the model is told, and `sigmas` are, the share of picture, and it says `x0 - noise`
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas    as of other schedulers, between the shifted ends
    """

    exposes_sigmas = True
    tells_x0 = False
    sigmas_name_the_end = False

    def _prepare(self, training: Levels | None = None, most_steps: int | None = None) -> None:
        config = self.config
        self._shift, self._ramp, self._inverted = config.shift, chosen_ramp(config), config.get("invert_sigmas", False)
        count = config.num_train_timesteps
        sigmas = np.arange(count, 0.0, -1) / count
        if not config.get("use_dynamic_shifting"):
            sigmas = shifted(sigmas, self._shift)
        self.sigma_max, self.sigma_min = float(sigmas[0]), float(sigmas[-1])
        super()._prepare(flow_levels(count * (1 - sigmas if self._inverted else sigmas), sigmas), most_steps)
        self.sigmas = self.sigmas[:-1]

    @property
    def highest_timestep(self) -> float:
        return float(self.config.num_train_timesteps)

    @property
    def shift(self) -> float:
        """The factor of the shift: the config's, or that of `set_shift`."""
        return float(self._shift)

    def levels(
        self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None, mu: float | None = None,
        told: Sequence[float] | None = None,
    ) -> Levels:
        """Evenly spaced between the shifted ends of training, and shifted; so are a caller's `sigmas`, but not `timesteps`.

        `told`, beside `sigmas`, is what the model is told in place of their levels.
        """
        count = self.config.num_train_timesteps
        if timesteps is not None and (self._ramp or self._inverted):
            raise ValueError("timesteps cannot be given where the config places the levels by a ramp, or inverts them")
        if timesteps is not None:
            return flow_levels(timesteps, timesteps / count)
        if self._dynamic and mu is None:
            raise ValueError("use_dynamic_shifting needs mu, a number, which says by how much")
        sigmas = self._shifted(np.linspace(self.sigma_max, self.sigma_min, steps) if sigmas is None else sigmas, mu)
        sigmas = self._ramp(sigmas) if self._ramp else sigmas
        times = count * (1 - sigmas if self._inverted else sigmas) if told is None else np.asarray(told, dtype=np.float64)
        if len(times) != len(sigmas):
            raise ValueError(f"there are {len(sigmas)} sigmas, but {len(times)} timesteps")
        return flow_levels(times, sigmas)

    def prediction(self, levels: Levels) -> Prediction:
        read = read_prediction("flow_prediction", levels)
        return Prediction(read.x0_x, -read.x0_out, read.noise_x, -read.noise_out) if self._inverted else read

    def timesteps_of(self, levels: Levels, device: torch.device | str | None = None) -> Tensor:
        return torch.from_numpy(levels.timesteps.astype(np.float32)).to(device)

    def sigmas_of(self, levels: Levels) -> Array:
        return levels.alpha if self._inverted else levels.sigma

    def _sigma_of(self, timesteps: Tensor) -> Tensor:
        return 1 - super()._sigma_of(timesteps) if self._inverted else super()._sigma_of(timesteps)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Take clean samples [B, …] to the level of `timestep` ([B] or one): `(1 - sigma) · sample + sigma · noise`.

        Any timestep is allowed: one that is not in the list has the level `timestep / num_train_timesteps`.
        """
        return self.add_noise(sample, noise, timestep)

    def _renoised(self, levels: Levels) -> list[Row]:
        """`x' = (1 - sigma') · x0 + sigma' · fresh`, for schedulers that remember the clean sample."""
        return [Row(x={i: 0.0}, m={i: levels.alpha[i + 1]}, noise=levels.sigma[i + 1]) for i in range(len(levels))]

    def _straight(self, levels: Levels) -> list[Row]:
        """`x' = x + (sigma' - sigma) · output`, for schedulers that remember the output."""
        along = np.diff(levels.alpha if self._inverted else levels.sigma)
        return [Row(x={i: 1.0}, m={i: along[i]}) for i in range(len(levels))]


class ShiftedScheduler(FlowMatchScheduler):
    """Base of those whose shift can be chosen later, and whose levels a caller can place."""

    placed_by = ("timesteps", "sigmas")

    def set_shift(self, shift: float) -> None:
        """Replace the config's `shift`, from the next `set_timesteps` or `table` on. The ends of training stay."""
        self._shift = shift

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None, mu: float | None = None, timesteps: Sequence[float] | None = None,
    ) -> None:
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
