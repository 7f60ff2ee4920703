"""Flow matching: Euler, Heun and consistency steps along `dx/dsigma = noise - x0`, which is what the model says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..randomness import Generators
from ..words import check_choice
from .base import SchedulerOutput
from .entries import RAMPS, takes
from .euler import ChurnedStep, churned
from .flow import FlowMatchScheduler, ShiftedScheduler, flow_levels
from .heun import interleaved
from .noise import Array, Levels
from .table import Row, Table

UPSCALE_MODES = ("nearest", "linear", "bilinear", "bicubic", "trilinear", "area", "nearest-exact")


@takes(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
       max_image_seq_len=4096, invert_sigmas=False, shift_terminal=None, **RAMPS, time_shift_type="exponential",
       stochastic_sampling=False)
class FlowMatchEulerDiscreteScheduler(ShiftedScheduler):
    """Euler's method for flow matching (Lipman et al. 2023; Esser et al. 2024). First order.

    Any timestep can be noised to, and a caller's `timesteps` are the levels themselves, which are not shifted. With
    `invert_sigmas` (as of Mochi), `scale_noise` and `stochastic_sampling` take the levels for what they are, shares of picture.
    """

    def _prepare(self) -> None:
        self.memory = "x0" if self.config.stochastic_sampling else "output"
        super()._prepare()

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """`x' = x + (sigma' - sigma) · output`."""
        if self.config.stochastic_sampling:
            return self._renoised(levels, i)
        level = levels.alpha if self._inverted else levels.sigma
        return Row(x={i: 1.0}, m={i: level[i + 1] - level[i]})

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, s_churn: float = 0.0,  # type: ignore[override]
             s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0, generator: Generators = None,
             per_token_timesteps: Tensor | None = None, return_dict: bool = True) -> Any:
        """The sample [B, …] at the next level.

        Args:
            s_churn, s_tmin, s_tmax, s_noise: without effect; for loops that give them to every scheduler.
            per_token_timesteps: [B, tokens] where each token of a sample [B, tokens, channels] is. It goes to the next lower
                level of the list. The output is then `x0 - noise`, as the pipelines that do so give it.
        """
        if per_token_timesteps is None:
            return self._step(model_output, timestep, sample, generator, return_dict)
        if self.config.stochastic_sampling:
            raise ValueError("stochastic_sampling takes no per_token_timesteps")
        if self.num_inference_steps is None:
            raise ValueError(f"call {type(self).__name__}.set_timesteps(num_inference_steps) before its step")
        self._row = self._enter(timestep)
        _, sigma = self._trained_levels(per_token_timesteps[..., None])
        sigma = sigma.to(sample.device, torch.promote_types(sample.dtype, torch.float32))
        known = torch.from_numpy(self._current.sigma.copy()).to(sigma)
        lower = (known * (known < sigma - 1e-6)).amax(-1, keepdim=True)
        following = (sample + (sigma - lower) * model_output).to(sample.dtype)
        return SchedulerOutput(following) if return_dict else (following,)


@takes(num_train_timesteps=1000, shift=1.0)
class FlowMatchHeunDiscreteScheduler(ChurnedStep, FlowMatchScheduler):
    """Heun's method for flow matching (Karras et al. 2022, algorithm 1, on Esser et al. 2024). Second order, two calls a step.

    `len(timesteps)` is the number of calls; the last step, to the clean sample, is one of Euler. `s_churn` adds noise as to
    variance-exploding samples, and reads the output at the level before.
    """

    order = 2
    memory = "output"

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:  # type: ignore[override]
        once = super().levels(steps)
        return flow_levels(interleaved(once.timesteps, once.timesteps[1:]), interleaved(once.sigma[:-1], once.sigma[1:-1]))

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """First `x₁ = x̂ + h · slope`, then `x' = x̂ + h · (slope + slope₁) / 2 = x₁ + h · (slope₁ - slope) / 2`.

        `h = sigma' - sigma̅`, where churn has lifted the level from `sigma` to `sigma̅`, and `slope = sigma / sigma̅ · output`.
        """
        second = (levels.begin + i) % 2 == 1 and i > 0  # entered at a second call, a step begins there
        start = i - 1 if second else i
        lifted, fresh = churned(levels, start, **options)
        h, share = levels.sigma[start + 1] - lifted, levels.sigma[start] / lifted
        if not second:
            return Row(x={i: 1.0}, m={i: h * share}, noise=fresh)
        drawn = None if fresh is None else 0.0  # the second call draws as the first does, and is of the step from x[start]
        return Row(x={i: 1.0, start: 0.0}, m={i: h / 2, start: -h / 2 * share}, noise=drawn)


@takes(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
       max_image_seq_len=4096, invert_sigmas=False, shift_terminal=None, **RAMPS, time_shift_type="exponential",
       scale_factors=None, upscale_mode="bicubic")
class FlowMatchLCMScheduler(ShiftedScheduler):
    """Multistep consistency sampling of flow models (Luo et al. 2023, algorithm 3, on Esser et al. 2024).

    Each step goes to the clean sample and noises it anew. With `scale_factors` (Starodubcev et al. 2025, scale-wise distillation)
    the clean sample is resized before that; only in loops of one's own, with `step`.
    """

    memory = "x0"

    def _prepare(self) -> None:
        self.set_scale_factors(self.config.scale_factors, self.config.upscale_mode)
        super()._prepare()

    def set_scale_factors(self, scale_factors: Sequence[float] | None, upscale_mode: str = "bicubic") -> None:
        """Replace the config's `scale_factors` and `upscale_mode`."""
        check_choice("upscale_mode", upscale_mode, UPSCALE_MODES)
        self._factors, self._upscale_mode = list(scale_factors or ()), upscale_mode

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None, mu: float | None = None,
               told: Sequence[float] | None = None) -> Levels:
        levels = super().levels(steps, timesteps, sigmas, mu, told)
        if self._factors and len(self._factors) != len(levels) - 1:
            raise ValueError(f"there are {len(self._factors)} scale_factors, but must be one for each step but the last: "
                             f"{len(levels) - 1}")
        return levels

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        return self._renoised(levels, i)

    def table(self, num_inference_steps: int | None = None, **options: Any) -> Table:
        if self._factors:
            raise ValueError("a table cannot resize samples: scale_factors are for loops of one's own with step")
        return super().table(num_inference_steps, **options)

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, generator: Generators = None,
             return_dict: bool = True, variance_noise: Tensor | None = None) -> Any:
        """The sample [B, …] at the next level, resized by `scale_factors`."""
        if self._factors:
            row = self._enter(timestep)
            if self._row is None or row != self._row + 1:
                self._first_size = sample.shape[2:]
            if row < len(self._factors):  # the clean sample is linear in both
                size = [round(length * self._factors[row]) for length in self._first_size]
                sample, model_output = (interpolate(each, size, mode=self._upscale_mode) for each in (sample, model_output))
        return super().step(model_output, timestep, sample, generator, return_dict, variance_noise)
