"""Which moments of the process a batch is trained at: samplers of timesteps.

A sampler is called as `sampler(n, generator, device)` and draws `n` positions in [0, 1]: 0 is a clean sample, 1 is noise. Where
timesteps are whole numbers below T, position `u` is timestep `floor(u T)`; a flow model's share of noise is `u`, shifted as
its scheduler shifts; for EDM it is a place on the scheduler's ramp of levels. So each sampler serves every kind of model, and a
range of timesteps from `low` to `high` is that of positions from `low / T` to `high / T`.

Each is a quantile function of evenly spread numbers, so that each can be `stratified`: the numbers are then spread evenly over
the batch too, as the one of Kingma et al. 2021 ("Variational Diffusion Models") is, which makes the loss of a batch
vary less. Numbers are drawn in double precision where the generator lives.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ..schedulers.flow import shifted
from ..words import check_choice, check_keywords

Sampler = Callable[[int, torch.Generator | None, torch.device | str], Tensor]


@dataclass(frozen=True)
class TimestepSampler:
    """Base of the samplers here; as it is, `uniform`: every position alike."""

    stratified: bool = field(default=False, kw_only=True)
    draws_sigmas: ClassVar[bool] = False  # draws are EDM's levels of noise, and not positions

    def __call__(self, n: int, generator: torch.Generator | None = None, device: torch.device | str = "cpu") -> Tensor:
        """[n] positions on `device`, float64. Without a generator, PyTorch's own of the CPU draws."""
        on = generator.device if generator is not None else torch.device("cpu")
        even = torch.rand(1 if self.stratified else n, generator=generator, device=on, dtype=torch.float64)
        if self.stratified:
            even = (even + torch.arange(n, device=on, dtype=torch.float64) / n) % 1
        return self.quantile(even).to(device)

    def quantile(self, even: Tensor) -> Tensor:
        """What evenly spread numbers [n] in [0, 1) become."""
        return even


@dataclass(frozen=True)
class LogitNormal(TimestepSampler):
    """`logit(u)` is normal (Esser et al. 2024, equation 19). A shift by a factor `f` adds `log f` to `mean`."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("std", self.std)

    def quantile(self, even: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _normal(even))


@dataclass(frozen=True)
class Mode(TimestepSampler):
    """More of the middle (`scale` above 0) or of the ends (below), and of each some (Esser et al. 2024, equation 20)."""

    scale: float = 1.29

    def __post_init__(self) -> None:
        most = 2 / (math.pi - 2)  # outside of these it is no quantile function: it does not rise
        if not -1 <= self.scale <= most:
            raise ValueError(f"scale is {self.scale!r}, but must be from -1 to {most:.4g}")

    def quantile(self, even: Tensor) -> Tensor:
        return 1 - even - self.scale * (torch.cos(math.pi / 2 * even) ** 2 - 1 + even)


@dataclass(frozen=True)
class Shifted(TimestepSampler):
    """Evenly spread positions, shifted towards noise as for larger pictures (Esser et al. 2024, equation 23)."""

    shift: float = 3.0

    def __post_init__(self) -> None:
        _check_positive("shift", self.shift)

    def quantile(self, even: Tensor) -> Tensor:
        return shifted(even, self.shift)


@dataclass(frozen=True)
class Bounded(TimestepSampler):
    """Positions from `low` to `high` alone, `high` not among them."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_range("low", self.low, "high", self.high)

    def quantile(self, even: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * even


@dataclass(frozen=True)
class Biased(TimestepSampler):
    """Positions from `begin` to `end` are drawn `multiplier` times as often as the others."""

    begin: float
    end: float
    multiplier: float

    def __post_init__(self) -> None:
        _check_range("begin", self.begin, "end", self.end)
        _check_positive("multiplier", self.multiplier)

    def quantile(self, even: Tensor) -> Tensor:
        inside = (self.end - self.begin) * self.multiplier
        mass = even * (self.begin + inside + 1 - self.end)
        above = self.end + (mass - self.begin - inside)
        return torch.where(mass < self.begin, mass, torch.where(
            mass < self.begin + inside, self.begin + (mass - self.begin) / self.multiplier, above))


@dataclass(frozen=True)
class LogNormal(TimestepSampler):
    """EDM's levels of noise themselves: `log(sigma)` is normal (Karras et al. 2022, table 1, "training")."""

    mean: float = -1.2
    std: float = 1.2
    draws_sigmas: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_positive("std", self.std)

    def quantile(self, even: Tensor) -> Tensor:
        return torch.exp(self.mean + self.std * _normal(even))


def _earlier(multiplier: float, portion: float = 0.25, *, stratified: bool = False) -> Biased:
    return Biased(0.0, portion, multiplier, stratified=stratified)


def _later(multiplier: float, portion: float = 0.25, *, stratified: bool = False) -> Biased:
    return Biased(1.0 - portion, 1.0, multiplier, stratified=stratified)


SAMPLERS: dict[str, Callable[..., TimestepSampler]] = {
    "uniform": TimestepSampler, "stratified": partial(TimestepSampler, stratified=True), "logit_normal": LogitNormal,
    "mode": Mode, "shifted": Shifted, "bounded": Bounded, "range": Biased, "earlier": _earlier, "later": _later,
    "log_normal": LogNormal}
"""By name. `earlier` and `later` are `range` over the first and the last `portion`; nearer to 0 is earlier."""


def timestep_sampler(name: str, **options: float | bool) -> TimestepSampler:
    """The sampler called `name` in `SAMPLERS`: `timestep_sampler("logit_normal", mean=0.0, std=1.0)`.

    Raises:
        ValueError: no sampler has that name, or an option is out of its range.
        TypeError: the sampler has no such option, or needs one that is not given.
    """
    check_choice("timestep_sampler", name, SAMPLERS)
    allowed = inspect.signature(SAMPLERS[name]).parameters
    check_keywords(f"timestep_sampler({name!r})", options, allowed)
    missing = [option for option, told in allowed.items() if told.default is told.empty and option not in options]
    if missing:
        raise TypeError(f"timestep_sampler({name!r}) needs {' and '.join(missing)}")
    return SAMPLERS[name](**options)


def _normal(even: Tensor) -> Tensor:
    """The normal quantile; an exact 0, which has none, counts as the least number that is drawn beside it."""
    return torch.special.ndtri(even.clamp(min=2.0**-53))


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}, but must be more than 0")


def _check_range(low_name: str, low: float, high_name: str, high: float) -> None:
    if not 0 <= low < high <= 1:
        raise ValueError(f"{low_name} is {low!r} and {high_name} is {high!r}, but must be 0 <= {low_name} < {high_name} <= 1: "
                         "positions, a timestep divided by num_train_timesteps")
