"""The words in which `plans.py` says what is tested, and the loop of one's own that the tests run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import calotype.schedulers as ours

Entries = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """Every combination of the `axes` × step counts × options of `step`."""

    axes: Mapping[str, Sequence[Any]]
    counts: Sequence[int] = (10,)
    options: Sequence[Entries] = ({},)
    given: Sequence[Entries] = ({},)  # further arguments of `set_timesteps`, which then replace the count

    def configs(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values()))


@dataclass(frozen=True)
class Case:
    """One trajectory."""

    name: str
    config: Entries = field(default_factory=dict)
    steps: int = 10
    options: Entries = field(default_factory=dict)
    given: Entries = field(default_factory=dict)

    def __str__(self) -> str:
        told = [f"{key}={value}" for key, value in {**self.config, **self.options, **self.given}.items()]
        return "-".join([self.name.removesuffix("Scheduler"), str(self.steps), *told])[:150]

    def run(self, library: Any) -> tuple[Any, list[Tensor]]:
        """The scheduler of `library` and its trajectory."""
        scheduler = getattr(library, self.name)(**self.config)
        scheduler.set_timesteps(**(self.given or {"num_inference_steps": self.steps}))
        return scheduler, trajectory(scheduler, self.options)


@dataclass(frozen=True)
class Order:
    """The measured order of convergence, on levels that are smooth to the end.

    Attributes:
        given: up to this row the samples are put right: solvers of order `k` begin with `k - 1` steps of lower orders, whose
            error, though small, falls slower.
        left_out: as many rows at the end, whose step to the clean sample is of first order.
    """

    config: Entries
    is_: float
    counts: Sequence[int] = (32, 64, 128, 256)
    options: Entries = field(default_factory=dict)
    given: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class Plan:
    """The tests of a class.

    Attributes:
        grids: compared with the oracle.
        differs: whether a config and a number of steps are among the deliberate differences (`test_differences.py`).
        orders: of convergence.
        stochastic: (config, options of `table`) that sample a Gaussian.
        exact: configs whose rows are exact if the model is, and for `options` of these.
        rising: whether it goes from the picture to the noise.
        lags_midway: entered midway, its sample is not at the level that the model is told, as the peer's.
        kind: what `gaussian.best_output` calls a prediction type of this class.
    """

    grids: Sequence[Grid]
    differs: Callable[[Entries, int], bool] = lambda config, steps: False
    orders: Sequence[Order] = ()
    stochastic: Sequence[tuple[Entries, Entries]] = ()
    exact: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    exact_options: Sequence[Entries] = ({},)
    rising: bool = False
    lags_midway: bool = False
    kind: Callable[[str], str] = lambda prediction_type: prediction_type


def every(name: str, values: Sequence[Any]) -> Any:
    """Parametrise over `values`, named by `str`."""
    return pytest.mark.parametrize(name, values, ids=str)


def make(name: str, **config: Any) -> Any:
    """Our scheduler called `name`."""
    return getattr(ours, name)(**config)


def takes(scheduler: Any, option: str) -> bool:
    """Whether `step` has this argument."""
    return option in scheduler.step.__code__.co_varnames


def calls(scheduler: Any) -> Tensor:
    """The timesteps of its model calls: all in its list, but for that of SCM, which has the end too."""
    return scheduler.timesteps[:-1] if type(scheduler).__name__ == "SCMScheduler" else scheduler.timesteps


def network(x: Tensor, timestep: Any, config: Any) -> Tensor:
    """A smooth, bounded, nonlinear model that looks at its neighbours; with a variance where the config learns one."""
    said = 0.9 * torch.tanh(0.7 * x + 0.1 * np.sin(float(timestep) / 100)) + 0.05 * torch.roll(x, 1, -1)
    variance = config.get("variance_type") or ""
    if not variance.startswith("learned"):
        return said
    spread = torch.tanh(said.flip(1))
    return torch.cat([said, spread if variance == "learned_range" else 0.02 + 0.01 * spread], dim=1)


def trajectory(
    scheduler: Any, options: Entries = {}, x: Tensor | None = None, generator: Any = 0, timesteps: Any = None  # noqa: B006
) -> list[Tensor]:
    """What a loop of one's own computes: the first sample and the one after each step. `generator` may be a seed."""
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    if x is None:
        x = torch.randn(2, 3, 4, 4, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    options = {**options, **({"generator": generator} if takes(scheduler, "generator") else {})}
    samples = [x]
    for t in calls(scheduler) if timesteps is None else timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = network(scaled, t, scheduler.config)
        x = scheduler.step(output, t, x, **options).prev_sample
        samples.append(x)
    return samples
