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
    outputs = {"sample": x0, "epsilon": noise, "v_prediction": (alpha * noise - sigma * x0) / np.hypot(alpha, sigma),
               "flow_prediction": noise - x0}
    if kind in outputs:
        return outputs[kind]
    if kind == "trigflow":
        return (alpha * x - x0) / np.sqrt(1 - alpha**2)
    family, kind = kind.split("_", 1)  # the networks of EDM, with the default sigma_data; v_prediction has its sign turned
    data = {"edm": 0.5, "cosine": 1.0}[family]
    total = np.hypot(sigma, data)
    network = total / (data * sigma) * (x0 - data**2 / total**2 * x)
    return {"epsilon": network, "v_prediction": -network}[kind]


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


def ode_error(table: Table, kind: str, given: int = 0, left_out: int = 0) -> float:
    """How far a deterministic solver ends from the exact solution, at most, over a few trajectories.

    Samples up to row `given` are the exact ones, and the end is `left_out` rows before the last level.
    """
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    x, state, end = place(table, 0, z), table.new_state(), len(table) - left_out
    for i in range(end):
        x = advance(table, i, x if i > given else place(table, i, z), state, kind, torch.zeros_like(z))
    return float((x - place(table, end, z)).abs().max())


def order(counts: list[int], errors: list[float]) -> float:
    """The measured order of convergence: the slope of log(error) over log(step size)."""
    return float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])
