"""Data for which everything is known: x0 ~ N(MEAN, spread²).

At a level (alpha, sigma) the sample is N(alpha · MEAN, alpha² spread² + sigma²), so the best possible model and the
trajectories of the probability-flow ODE have closed forms. `spread=0` is a single known picture.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from calotype.schedulers.table import State, Table

MEAN, SPREAD = 0.3, 0.5


def deviation(table: Table, i: int, spread: float = SPREAD) -> float:
    """The standard deviation of samples at level `i`."""
    return float(np.hypot(table.levels.alpha[i] * spread, table.levels.sigma[i]))


def place(table: Table, i: int, z: Tensor, mean: float = MEAN, spread: float = SPREAD) -> Tensor:
    """Where the trajectory that is `z` standard deviations from the mean is at level `i`."""
    return table.levels.alpha[i] * mean + deviation(table, i, spread) * z


def best_output(table: Table, i: int, x: Tensor, kind: str, mean: float = MEAN, spread: float = SPREAD) -> Tensor:
    """What the best model says of `x` at level `i`, as a prediction of type `kind`."""
    alpha, sigma = table.levels.alpha[i], table.levels.sigma[i]
    away = x - alpha * mean
    x0 = mean + alpha * spread**2 / deviation(table, i, spread) ** 2 * away
    noise = sigma / deviation(table, i, spread) ** 2 * away
    return {"sample": x0, "epsilon": noise, "v_prediction": (alpha * noise - sigma * x0) / np.hypot(alpha, sigma)}[kind]


def generate(table: Table, x: Tensor, kind: str, seed: int = 0, spread: float = SPREAD) -> Tensor:
    """Take samples at the table's first level to its last, asking the best model."""
    generator, state = torch.Generator().manual_seed(seed), table.new_state()
    for i in range(len(table)):
        x = advance(table, i, x, state, kind, torch.randn(x.shape, generator=generator, dtype=x.dtype), spread=spread)
    return x


def advance(
    table: Table, i: int, x: Tensor, state: State, kind: str, fresh: Tensor, mean: float = MEAN, spread: float = SPREAD
) -> Tensor:
    """One step of the best model."""
    noise = fresh if table.draws_noise(i) else None
    return table.step(i, best_output(table, i, x, kind, mean, spread), x, state, noise)


def ode_error(table: Table, kind: str) -> float:
    """How far a deterministic solver ends from the exact solution, at most, over a few trajectories."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    return float((generate(table, place(table, 0, z), kind) - place(table, len(table), z)).abs().max())


def order(counts: list[int], errors: list[float]) -> float:
    """The measured order of convergence: the slope of log(error) over log(step size)."""
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])
