"""DDPM: ancestral sampling (Ho et al. 2020), with fixed or learned variance; and UnCLIP's, between any two timesteps."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..randomness import Generators
from ..words import check_choice
from .betas import BetaScheduler
from .ddim import batch_step
from .entries import BETAS, takes
from .noise import Array, Levels
from .table import Extended, Row, Table

VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")


@takes(**BETAS, variance_type="fixed_small", clip_sample=True, prediction_type="epsilon", thresholding=False,
       dynamic_thresholding_ratio=0.995, clip_sample_range=1.0, sample_max_value=1.0, timestep_spacing="leading", steps_offset=0,
       rescale_betas_zero_snr=False)
class DDPMScheduler(BetaScheduler):
    """Ancestral sampling of denoising diffusion probabilistic models (Ho, Jain & Abbeel 2020), equations 6 and 7.

    `variance_type` of the fresh noise: the posterior's (`"fixed_small"`, `"fixed_small_log"`), the forward step's
    (`"fixed_large"`, `"fixed_large_log"`), or what the model says in its second half of channels: the variance itself
    (`"learned"`) or where its logarithm lies between the two (`"learned_range"`; Nichol & Dhariwal 2021).
    """

    steps_at_once = True
    placed_by = ("timesteps",)

    def _prepare(self) -> None:
        check_choice("variance_type", self.config.variance_type, VARIANCE_TYPES)
        self._learns = self.config.variance_type.startswith("learned")
        super()._prepare()

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        return self.noise_schedule.vp_levels(self._spaced(steps) if timesteps is None else timesteps)

    def _spaced(self, steps: int) -> Array:
        return self.noise_schedule.spaced(self.config.timestep_spacing, steps, self.config.steps_offset).round()

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """Equation 7: the posterior's mean, plus noise except at timestep 0; where its variance is learned, it comes scaled."""
        (kept, following), (noisy, noisy_following) = levels.alpha[i : i + 2] ** 2, levels.sigma[i : i + 2] ** 2
        remains = kept / following  # alpha_t in the paper; 1 minus it is beta_t
        large = self.config.variance_type.startswith("fixed_large")
        variance = 1.0 if self._learns else 1 - remains if large else _posterior_variance(levels, i)
        return Row(x={i: np.sqrt(remains) * noisy_following / noisy}, m={i: np.sqrt(following) * (1 - remains) / noisy},
                   noise=np.sqrt(variance) if levels.timesteps[i] > 0 else None)

    def _tabulate(self, levels: Levels, options: dict[str, Any]) -> Table:
        table = super()._tabulate(levels, options)
        return _LearnedVariance(table, self.config.variance_type == "learned_range") if self._learns else table


def _posterior_variance(levels: Levels, i: int) -> float:
    beta = 1 - (levels.alpha[i] / levels.alpha[i + 1]) ** 2
    return float(max(beta * (levels.sigma[i + 1] / levels.sigma[i]) ** 2, 1e-20))


class MeanAlone(Extended):
    """A table for models that learn the variance, which is the output's second half and passed over."""

    def read(self, i: int | Tensor, output: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return output.chunk(2, dim=1)[0], noise


class _LearnedVariance(Extended):
    """A table whose fresh noise is scaled by what the model says: the one step here that is not linear."""

    def __init__(self, table: Table, in_range: bool):
        super().__init__(table)
        levels = table.levels
        smallest = [_posterior_variance(levels, i) for i in range(len(levels))]
        largest = 1 - (levels.alpha[:-1] / levels.alpha[1:]) ** 2
        self._bounds = {"": torch.from_numpy(np.log(np.stack([smallest, largest])))} if in_range else None

    def read(self, i: int | Tensor, output: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        output, said = output.chunk(2, dim=1)
        if noise is not None and self._bounds:  # Nichol & Dhariwal 2021, equation 15
            low, high = (bound[i].reshape(-1, *[1] * (said.ndim - 1)) for bound in self._bounds_on(said, self._bounds))
            noise = noise * torch.exp(0.5 * torch.lerp(low.expand_as(said), high.expand_as(said), (said + 1) / 2))
        elif noise is not None:
            noise = noise * said.clamp(min=0).sqrt()
        return output, noise

    def _bounds_on(self, like: Tensor, known: dict[str, Tensor]) -> Tensor:
        """[2, n] the logarithms of the smallest and the largest variance of each row, moved to a device once."""
        key = f"{like.device} {like.dtype}"
        if key not in known:
            known[key] = known[""].to(like)
        return known[key]


class DDPMParallelScheduler(DDPMScheduler):
    """`DDPMScheduler`, and `batch_step_no_noise` for Picard iterations over a window of timesteps (Shih et al. 2023)."""

    def batch_step_no_noise(self, model_output: Tensor, timesteps: Tensor, sample: Tensor) -> Tensor:
        """The mean of each sample's next [B, …], at its own of `timesteps` [B], in any order."""
        return batch_step(self, model_output, timesteps, sample)


@takes(num_train_timesteps=1000, variance_type="fixed_small_log", clip_sample=True, clip_sample_range=1.0,
       prediction_type="epsilon", beta_schedule="squaredcos_cap_v2")
class UnCLIPScheduler(DDPMScheduler):
    """DDPM between any two timesteps (Ramesh et al. 2022, appendix C; Ho et al. 2020, equation 7, with the levels respaced).

    Timesteps are evenly spaced and include the last and the first of training; one step starts from the last.
    """

    def _spaced(self, steps: int) -> Array:
        last = self.noise_schedule.count - 1.0
        return np.round(np.arange(steps)[::-1] * (last / (steps - 1))) if steps > 1 else np.array([last])

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor,  # type: ignore[override]
             prev_timestep: int | Tensor | None = None, generator: Generators = None, return_dict: bool = True) -> Any:
        """The sample [B, C, …] at the next timestep, or at `prev_timestep`."""
        if prev_timestep is None:
            return self._step(model_output, timestep, sample, generator, return_dict)
        kept = np.append(self.noise_schedule.alphas_cumprod, 1.0)[int(prev_timestep)]  # timestep -1 is the clean sample
        jump = copy.copy(self)
        jump._place(self.noise_schedule.vp_levels(np.array([float(timestep)]), kept), None)
        return jump._step(model_output, timestep, sample, generator, return_dict)
