"""Flow matching: Euler, Heun and consistency steps along `dx/dsigma = noise - x0`, which is what the model says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..config import register_to_config
from ..randomness import Generators
from ..words import check_choice
from .base import SchedulerOutput
from .flow import FlowMatchScheduler, ShiftedScheduler, flow_levels
from .noise import Array, Levels
from .table import Row, Table
from .ve import ChurnedStep, churned, interleaved

UPSCALE_MODES = ("nearest", "linear", "bilinear", "bicubic", "trilinear", "area", "nearest-exact")


class FlowMatchEulerDiscreteScheduler(ShiftedScheduler):
    """Euler's method for flow matching (Lipman et al. 2023; Esser et al. 2024). First order.

    Where it differs from the peer's: any timestep can be noised to, and a caller's `timesteps` are the levels themselves,
    while the peer's are shifted once more. With `invert_sigmas` (as of Mochi), `scale_noise` and `stochastic_sampling` take the
    levels for what they are, shares of picture.

    Args:
        stochastic_sampling: go to the clean sample and noise it anew, in every step.
    """

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, shift: float = 1.0, use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5, max_shift: float | None = 1.15, base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096, invert_sigmas: bool = False, shift_terminal: float | None = None,
        use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential", stochastic_sampling: bool = False,
    ):
        self.memory = "x0" if stochastic_sampling else "output"
        self._prepare()

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        return self._renoised(levels) if self.config.stochastic_sampling else self._straight(levels)

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = math.inf, s_noise: float = 1.0, generator: Generators = None,
        per_token_timesteps: Tensor | None = None, return_dict: bool = True,
    ) -> Any:
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
        sigma = self._sigma_of(per_token_timesteps)[..., None].to(sample.device, torch.promote_types(sample.dtype, torch.float32))
        known = torch.from_numpy(self._current.sigma.copy()).to(sigma)
        lower = (known * (known < sigma - 1e-6)).amax(-1, keepdim=True)
        following = (sample + (sigma - lower) * model_output).to(sample.dtype)
        return SchedulerOutput(following) if return_dict else (following,)


class FlowMatchHeunDiscreteScheduler(ChurnedStep, FlowMatchScheduler):
    """Heun's method for flow matching (Karras et al. 2022, algorithm 1, on Esser et al. 2024). Second order, two calls a step.

    `len(timesteps)` is the number of calls; the last step, to the clean sample, is one of Euler. `s_churn` adds noise as to
    variance-exploding samples, and reads the output at the level before.
    """

    order = 2
    memory = "output"

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0):
        self._prepare()

    def levels(  # type: ignore[override]
        self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None
    ) -> Levels:
        once = super().levels(steps)
        calls = interleaved(once.sigma[:-1], once.sigma[1:-1])
        return flow_levels(interleaved(once.timesteps, once.timesteps[1:]), calls)

    def rows(
        self, levels: Levels, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0,
        **options: Any,
    ) -> list[Row]:
        """First `x₁ = x̂ + h · slope`, then `x' = x̂ + h · (slope + slope₁) / 2 = x₁ + h · (slope₁ - slope) / 2`.

        `h = sigma' - sigma̅`, where churn has lifted the level from `sigma` to `sigma̅`, and `slope = sigma / sigma̅ · output`.
        """
        rows, h, share, ignored = list[Row](), 0.0, 1.0, None
        for i in range(len(levels)):
            if (levels.begin + i) % 2 and i:
                rows.append(Row(x={i: 1.0, i - 1: 0.0}, m={i: h / 2, i - 1: -h / 2 * share}, noise=ignored))  # of x[i - 1]'s step
            else:  # opens a step; or the trajectory is entered at a second call, whose level is that of the next
                lifted, fresh = churned(levels, i, s_churn, s_tmin, s_tmax, s_noise)
                h, share = levels.sigma[i + 1] - lifted, levels.sigma[i] / lifted
                ignored = None if fresh is None else 0.0  # the second call draws as the first does
                rows.append(Row(x={i: 1.0}, m={i: h * share}, noise=fresh))
        return rows


class FlowMatchLCMScheduler(ShiftedScheduler):
    """Multistep consistency sampling of flow models (Luo et al. 2023, algorithm 3, on Esser et al. 2024).

    Each step goes to the clean sample and noises it anew.

    Args:
        scale_factors: how much larger than at first a sample is after each step but the last (Starodubcev et al. 2025, scale-wise
            distillation). The clean sample is resized before it is noised. Only in loops of one's own, with `step`.
        upscale_mode: of `torch.nn.functional.interpolate`.
    """

    memory = "x0"

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, shift: float = 1.0, use_dynamic_shifting: bool = False,
        base_shift: float = 0.5, max_shift: float = 1.15, base_image_seq_len: int = 256, max_image_seq_len: int = 4096,
        invert_sigmas: bool = False, shift_terminal: float | None = None, use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False, use_beta_sigmas: bool | None = False,
        time_shift_type: str = "exponential", scale_factors: Sequence[float] | None = None, upscale_mode: str = "bicubic",
    ):
        self.set_scale_factors(scale_factors, upscale_mode)
        self._prepare()

    def set_scale_factors(self, scale_factors: Sequence[float] | None, upscale_mode: str = "bicubic") -> None:
        """Replace the config's `scale_factors` and `upscale_mode`."""
        check_choice("upscale_mode", upscale_mode, UPSCALE_MODES)
        self._factors, self._upscale_mode = list(scale_factors or ()), upscale_mode

    def levels(
        self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None, mu: float | None = None,
        told: Sequence[float] | None = None,
    ) -> Levels:
        levels = super().levels(steps, timesteps, sigmas, mu, told)
        if self._factors and len(self._factors) != len(levels) - 1:
            raise ValueError(f"there are {len(self._factors)} scale_factors, but must be one for each step but the last: "
                             f"{len(levels) - 1}")
        return levels

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        return self._renoised(levels)

    def table(self, num_inference_steps: int | None = None, **options: Any) -> Table:
        if self._factors:
            raise ValueError("a table cannot resize samples: scale_factors are for loops of one's own with step")
        return super().table(num_inference_steps, **options)

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, generator: Generators = None,
        return_dict: bool = True, variance_noise: Tensor | None = None,
    ) -> Any:
        """The sample [B, …] at the next level, resized by `scale_factors`."""
        if self._factors:
            row = self._enter(timestep)
            if self._row is None or row != self._row + 1:
                self._first_size = sample.shape[2:]
            if row < len(self._factors):  # the clean sample is linear in both
                size = [round(length * self._factors[row]) for length in self._first_size]
                sample, model_output = (interpolate(each, size, mode=self._upscale_mode) for each in (sample, model_output))
        return super().step(model_output, timestep, sample, generator, return_dict, variance_noise)
