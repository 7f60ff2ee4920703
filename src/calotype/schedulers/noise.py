"""Noise levels: how much picture and how much noise a sample holds at each moment, as float64 numbers.

A sample at a level is `x = alpha · x0 + sigma · noise`. Two conventions occur: variance-preserving (VP, `alpha² + sigma² = 1`,
the samples of DDPM) and variance-exploding (VE, `alpha = 1`, the samples of Karras et al. 2022). They are the same process,
since `x_ve = x_vp / alpha_vp` and `sigma_ve = sigma_vp / alpha_vp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..words import check_choice

Array = NDArray[np.float64]
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp")


@dataclass(frozen=True)
class Levels:
    """The moments at which the model is asked, and the level of the sample at each and at the end.

    Attributes:
        timesteps: [n] what the model is told.
        alpha, sigma: [n + 1] the sample's levels; the last is where the trajectory ends.
        begin: how many rows were left out before the first.
    """

    timesteps: Array
    alpha: Array
    sigma: Array
    begin: int = 0

    def starting_at(self, row: int) -> Levels:
        """The same trajectory from row `row` on, as image-to-image enters it."""
        tail = {name: getattr(self, name)[row:] for name in ("timesteps", "alpha", "sigma")}
        return replace(self, **tail, begin=self.begin + row)

    def equals(self, other: Levels) -> bool:
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in ("timesteps", "alpha", "sigma"))

    def turned(self) -> Levels:
        """The calls in the opposite order, and then on to the level of the first."""
        alpha, sigma = (np.append(level[-2::-1], level[0]) for level in (self.alpha, self.sigma))
        return Levels(self.timesteps[::-1].copy(), alpha, sigma)

    @cached_property
    def lambdas(self) -> Array:
        """[n + 1] `log(alpha / sigma)`, half the logarithm of the signal-to-noise ratio; infinite where there is no noise."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.alpha) - np.log(self.sigma))

    def __len__(self) -> int:
        return len(self.timesteps)


def ve_levels(timesteps: Array, sigmas: Array, end: float = 0.0) -> Levels:
    """Levels at `sigmas`, then `end`. The model is told timesteps of single precision."""
    ends = np.append(sigmas, end)
    return Levels(timesteps.astype(np.float32).astype(np.float64), np.ones_like(ends), ends)


# -- training -----------------------------------------------------------------------------------------------------------


def make_betas(schedule: str, start: float, end: float, count: int, trained: Sequence[float] | None = None) -> Array:
    """The variance added at each of `count` training steps; `trained` values replace them all.

    `linear` (Ho et al. 2020), `scaled_linear` (linear in the square root; Rombach et al. 2022), `squaredcos_cap_v2`
    (Nichol & Dhariwal 2021, eq. 17), `sigmoid` (Xu et al. 2022, GeoDiff) and `exp` (`alphas_cumprod` falls from 1 to `e^-12`).
    """
    if trained is not None:
        return np.asarray(trained, dtype=np.float64)
    check_choice("beta_schedule", schedule, BETA_SCHEDULES)
    if schedule in ("linear", "scaled_linear"):  # as training code has them: in PyTorch, and in single precision
        power = 1 if schedule == "linear" else 2
        return torch.linspace(start ** (1 / power), end ** (1 / power), count, dtype=torch.float32).numpy() ** power
    if schedule == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count)))
    if schedule == "exp":
        return np.full(count, -math.expm1(-12 / count))
    kept = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - kept[1:] / kept[:-1], 0.999)


def zero_terminal_snr(alphas_cumprod: Array) -> Array:
    """Shift and scale the signal so that none is left at the last step (Lin et al. 2024, algorithm 1)."""
    signal = np.sqrt(alphas_cumprod)
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2


class NoiseSchedule:
    """The training process of a config: the level at each training timestep, 0 (clean) to `count - 1` (noise).

    Its levels are rounded to single precision where models are trained with them so rounded: the smallest sigma, where
    `1 - alphas_cumprod` cancels, would otherwise differ from the trained one by one part in several thousand.
    """

    def __init__(self, config: Any, least_signal: float = 0.0):
        """`least_signal` stands for a terminal signal of zero, for solvers that divide by it."""
        betas = make_betas(config.beta_schedule, config.get("beta_start", 1e-4), config.get("beta_end", 0.02),
                           config.num_train_timesteps, config.get("trained_betas"))
        kept = np.cumprod((1 - betas.astype(np.float32)).astype(np.float64)).astype(np.float64)
        if config.get("rescale_betas_zero_snr"):
            kept = zero_terminal_snr(kept)
            kept[-1] = least_signal
        self.alphas_cumprod: Array = kept.astype(np.float32).astype(np.float64)
        self.count = len(self.alphas_cumprod)
        single = torch.from_numpy(self.alphas_cumprod).float()
        self.sigmas: Array = ((1 - single) / single).sqrt().double().numpy()
        """The VE levels, rising with the timestep; in single precision too."""
        self.betas: Array = 1 - self.alphas_cumprod / np.append(1.0, self.alphas_cumprod[:-1])

    def vp_levels(self, timesteps: Array, final_alpha_cumprod: float = 1.0) -> Levels:
        """VP levels at whole timesteps, ending at `final_alpha_cumprod`."""
        if timesteps[0] >= self.count:
            raise ValueError(f"the first timestep is {timesteps[0]:g}, and training had {self.count}: "
                             "take fewer steps, or a smaller steps_offset")
        kept = np.append(self.alphas_cumprod[timesteps.astype(int)], final_alpha_cumprod)
        return Levels(timesteps, np.sqrt(kept), np.sqrt(1 - kept))

    def training_levels(self, ve: bool = False) -> Levels:
        """Every training timestep, falling."""
        times = np.arange(self.count, dtype=np.float64)[::-1]
        return ve_levels(times, self.sigmas[::-1]) if ve else self.vp_levels(times)

    def spaced(self, spacing: str, steps: int, offset: int = 0, count: int | None = None) -> Array:
        """`steps` timesteps below `count`, falling (Lin et al. 2024, table 2); whole numbers except for some `linspace`."""
        count = self.count if count is None else count
        if not steps <= count <= self.count:
            raise ValueError(f"num_train_timesteps is {count}, but must be from {steps}, the number of steps, to {self.count}")
        if spacing == "linspace":
            return np.linspace(0, count - 1, steps, dtype=np.float64)[::-1]
        if spacing == "leading":
            return np.arange(steps, dtype=np.float64)[::-1] * (count // steps) + offset
        return np.round(np.arange(count, 0, -count / steps, dtype=np.float64))[:steps] - 1

    def sigmas_at(self, timesteps: Array) -> Array:
        """The VE level of each timestep; fractions interpolate."""
        return np.asarray(np.interp(timesteps, np.arange(self.count), self.sigmas), dtype=np.float64)

    def timestep_of(self, sigmas: Array) -> Array:
        """The (fractional) timestep of each VE level, by interpolation between the logarithms of the levels."""
        known = np.log(self.sigmas.astype(np.float32)).astype(np.float64)  # as they are rounded decides what is whole
        return np.asarray(np.interp(np.log(np.maximum(sigmas, 1e-10)), known, np.arange(self.count)), dtype=np.float64)


# -- ramps: ways to place n levels between the largest and the smallest -------------------------------------------------


def karras_ramp(largest: float, smallest: float, count: int, rho: float = 7.0) -> Array:
    """Karras et al. 2022, eq. 5."""
    ramp = np.linspace(0, 1, count)
    return (largest ** (1 / rho) + ramp * (smallest ** (1 / rho) - largest ** (1 / rho))) ** rho


def exponential_ramp(largest: float, smallest: float, count: int) -> Array:
    """Evenly spaced logarithms."""
    return np.exp(np.linspace(math.log(largest), math.log(smallest), count))


def beta_ramp(largest: float, smallest: float, count: int, a: float = 0.6, b: float = 0.6) -> Array:
    """Quantiles of a beta distribution (Lee et al. 2024, "Beta Sampling is All You Need"). Needs SciPy."""
    try:
        from scipy.stats import beta
    except ImportError as error:
        raise ImportError("use_beta_sigmas needs SciPy: pip install 'calotype[scipy]'") from error
    return np.asarray(smallest + beta.ppf(1 - np.linspace(0, 1, count), a, b) * (largest - smallest), dtype=np.float64)


Ramp = Callable[[float, float, int], Array]
RAMPS: dict[str, Ramp] = {"use_karras_sigmas": karras_ramp, "use_lu_lambdas": exponential_ramp,
                          "use_exponential_sigmas": exponential_ramp, "use_beta_sigmas": beta_ramp}


def chosen_ramp(config: Any) -> Ramp | None:
    """The ramp of `RAMPS` that a config turns on; its own `sigma_max` and `sigma_min` replace the ends that it is called with."""
    chosen = [option for option in RAMPS if config.get(option)]
    if len({*chosen} - {"use_lu_lambdas"}) > 1:
        raise ValueError("use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas exclude each other")
    return partial(_between, RAMPS[chosen[0]], config.get("sigma_max"), config.get("sigma_min")) if chosen else None


def _between(ramp: Ramp, highest: float | None, lowest: float | None, largest: float, smallest: float, count: int) -> Array:
    return ramp(largest if highest is None else highest, smallest if lowest is None else lowest, count)
