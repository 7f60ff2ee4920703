"""LMS: linear multistep, a polynomial through the last slopes, integrated exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.polynomial.polynomial import Polynomial, polyfromroots
from torch import Tensor

from ..config import register_to_config
from .noise import Array, Levels
from .table import Row
from .ve import VEScheduler


def lagrange_integrals(nodes: Array, start: float, end: float) -> Array:
    """For each node the integral from `start` to `end` of the polynomial that is 1 at it and 0 at the others."""
    unit = end - start  # the nodes are counted in steps from `start`, where the integral ends at 1
    at = (nodes - start) / unit
    integrals = []
    for j, node in enumerate(at):
        others = np.delete(at, j)
        basis = Polynomial(polyfromroots(others) / np.prod(node - others))
        integrals.append(unit * basis.integ()(1.0))
    return np.array(integrals)


class LMSDiscreteScheduler(VEScheduler):
    """Linear multistep (Adams-Bashforth) on `dx/dsigma = noise`, on the uneven levels as they are. Order 4 by default.

    Samples are variance-exploding: begin with noise times `init_noise_sigma` and call `scale_model_input`. A trajectory
    entered midway grows its history from there.
    """

    memory = "noise"

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):
        self._prepare()

    def rows(self, levels: Levels, order: int = 4, **options: Any) -> list[Row]:
        """`x' = x + Σ_j w_j · noise_j` over the last `order` rows: `w_j = ∫ L_j(s) ds` from `sigma` to `sigma'`.

        `L_j` is the Lagrange polynomial that is 1 at level `j` and 0 at the others.
        """
        if order < 1:
            raise ValueError(f"order is {order}, but must be 1 or more")
        rows = []
        for i in range(len(levels)):
            past = range(max(0, i + 1 - order), i + 1)
            weights = lagrange_integrals(levels.sigma[past.start : i + 1], levels.sigma[i], levels.sigma[i + 1])
            rows.append(Row(x={i: 1.0}, m=dict(zip(past, weights.tolist(), strict=True))))
        return rows

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, order: int = 4, return_dict: bool = True
    ) -> Any:
        """The sample [B, …] at the next level, by a polynomial through the last `order` slopes."""
        return self._step(model_output, timestep, sample, None, return_dict, order=order)
