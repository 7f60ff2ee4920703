"""DDPM: ancestral sampling (Ho et al. 2020), with fixed or learned variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import register_to_config
from ..words import check_choice
from .betas import BetaScheduler
from .noise import Array, Levels
from .table import Row, State, Table

VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")


class DDPMScheduler(BetaScheduler):
    """Ancestral sampling of denoising diffusion probabilistic models (Ho, Jain & Abbeel 2020), equations 6 and 7.

    Args:
        variance_type: of the fresh noise: the posterior's (`"fixed_small"`, `"fixed_small_log"`), the forward step's
            (`"fixed_large"`, `"fixed_large_log"`), or what the model says in its second half of channels: the variance
            itself (`"learned"`) or where its logarithm lies between the two (`"learned_range"`; Nichol & Dhariwal 2021).
    """

    steps_at_once = True
    placed_by = ("timesteps",)

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, variance_type: str = "fixed_small",
        clip_sample: bool = True, prediction_type: str = "epsilon", thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995, clip_sample_range: float = 1.0, sample_max_value: float = 1.0,
        timestep_spacing: str = "leading", steps_offset: int = 0, rescale_betas_zero_snr: bool = False,
    ):
        check_choice("variance_type", variance_type, VARIANCE_TYPES)
        self._prepare()

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        times = timesteps
        if times is None:
            times = self.noise_schedule.spaced(self.config.timestep_spacing, steps, self.config.steps_offset).round()
        return self.noise_schedule.vp_levels(times, 1.0)

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        """Equation 7: the posterior's mean, plus noise except at timestep 0."""
        kept, noisy = levels.alpha**2, levels.sigma**2
        rows = []
        for i, timestep in enumerate(levels.timesteps):
            remains = kept[i] / kept[i + 1]  # alpha_t in the paper; 1 minus it is beta_t
            row = Row(
                x={i: np.sqrt(remains) * noisy[i + 1] / noisy[i]},
                m={i: np.sqrt(kept[i + 1]) * (1 - remains) / noisy[i]},
                noise=self._spread(1 - remains, noisy[i], noisy[i + 1]) if timestep > 0 else None,
            )
            rows.append(row)
        return rows

    def _spread(self, beta: float, noisy: float, noisy_next: float) -> float:
        """The standard deviation of the fresh noise; for learned variance 1, since the noise comes scaled."""
        if self.config.variance_type.startswith("learned"):
            return 1.0
        large = self.config.variance_type.startswith("fixed_large")
        return float(np.sqrt(beta if large else _posterior_variance(beta, noisy, noisy_next)))

    def _tabulate(self, levels: Levels, options: dict[str, Any]) -> Table:
        table = super()._tabulate(levels, options)
        if self.config.variance_type.startswith("learned"):
            return _LearnedVariance(table, in_range=self.config.variance_type == "learned_range")
        return table


def _posterior_variance(beta: float, noisy: float, noisy_next: float) -> float:
    return max(beta * noisy_next / noisy, 1e-20)


class MeanAlone(Table):
    """A table for models that learn the variance, which is the output's second half and passed over."""

    def __init__(self, table: Table):
        self.__dict__.update(table.__dict__)

    def mean_output(self, output: Tensor) -> Tensor:
        return output.chunk(2, dim=1)[0]

    def step(
        self, i: int | Tensor, output: Tensor, x: Tensor, state: State, noise: Tensor | None = None, x0: Tensor | None = None
    ) -> Tensor:
        return super().step(i, self.mean_output(output), x, state, noise, x0)


class _LearnedVariance(MeanAlone):
    """A table whose fresh noise is scaled by what the model says: the one step here that is not linear."""

    def __init__(self, table: Table, in_range: bool):
        super().__init__(table)
        self.in_range = in_range
        kept, noisy = table.levels.alpha**2, table.levels.sigma**2
        betas = 1 - kept[:-1] / kept[1:]
        smallest = [_posterior_variance(*each) for each in zip(betas, noisy[:-1], noisy[1:], strict=True)]
        self._bounds = {"cpu": (torch.from_numpy(np.log(smallest)), torch.from_numpy(np.log(betas)))}

    def _bounds_on(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """[n] twice: the logarithms of the smallest and the largest variance of each row, moved to a device once."""
        key = f"{like.device} {like.dtype}"
        if key not in self._bounds:
            low, high = self._bounds["cpu"]
            self._bounds[key] = low.to(like), high.to(like)
        return self._bounds[key]

    def step(
        self, i: int | Tensor, output: Tensor, x: Tensor, state: State, noise: Tensor | None = None, x0: Tensor | None = None
    ) -> Tensor:
        said = output.chunk(2, dim=1)[1]
        if noise is not None and self.in_range:  # Nichol & Dhariwal 2021, equation 15
            low, high = (bound[i].reshape(-1, *[1] * (said.ndim - 1)) for bound in self._bounds_on(said))
            noise = noise * torch.exp(0.5 * torch.lerp(low.expand_as(said), high.expand_as(said), (said + 1) / 2))
        elif noise is not None:
            noise = noise * said.clamp(min=0).sqrt()
        return super().step(i, output, x, state, noise, x0)
