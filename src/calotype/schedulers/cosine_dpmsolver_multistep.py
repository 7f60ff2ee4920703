"""The sampler of Stable Audio: SDE-DPM-Solver++ at cosine levels, its noise from a Brownian path."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..config import register_to_config
from ..randomness import Generators
from .brownian import BrownianTable
from .dpmsolver_multistep import MultistepRows
from .edm import EDMScheduler
from .noise import Array, Levels
from .table import Row, Table


class _SeededTable(BrownianTable):
    """A table whose path has the seed with which a generator was made; the generator is left alone."""

    def seeds_of(self, generator: Generators) -> int | list[int]:
        if isinstance(generator, (list, tuple)):
            return [one.initial_seed() for one in generator]
        return generator.initial_seed() if isinstance(generator, torch.Generator) else super().seeds_of(generator)


class CosineDPMSolverMultistepScheduler(MultistepRows, EDMScheduler):
    """SDE-DPM-Solver++ for models of cosine levels: `sigma` is a tangent, and the model is told its angle as a share of 90°.

    The noise comes from a Brownian path, which `torchsde` makes (`pip install 'calotype[sde]'`). Its seed is that with which
    the generator was made. A step to nowhere (`final_sigmas_type="sigma_min"`) draws nothing; the peer's never ends.
    """

    @register_to_config
    def __init__(
        self, sigma_min: float = 0.3, sigma_max: float = 500, sigma_data: float = 1.0, sigma_schedule: str = "exponential",
        num_train_timesteps: int = 1000, solver_order: int = 2, prediction_type: str = "v_prediction", rho: float = 7.0,
        solver_type: str = "midpoint", lower_order_final: bool = True, euler_at_final: bool = False,
        final_sigmas_type: str = "zero",
    ):
        self._settle("sde-dpmsolver++")

    def _on_ramp(self, places: Array) -> Array:
        """In single precision: the path's increments depend on every bit of the levels."""
        config, ramp = self.config, torch.linspace(0, 1, len(places), dtype=torch.float32)
        if config.sigma_schedule == "karras":
            start, end = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
            sigmas = (start + ramp * (end - start)) ** config.rho
        else:
            ends = math.log(config.sigma_min), math.log(config.sigma_max)
            sigmas = torch.linspace(*ends, max(len(places), 2), dtype=torch.float32).exp().flip(0)[: len(places)]
        levels, end = sigmas.double().numpy(), super()._on_ramp(places)[-1]
        return np.append(levels, levels[-1] if end and len(levels) > 1 else end)

    def _noise_told(self, sigmas: Array) -> Array:
        return np.arctan(sigmas) / (math.pi / 2)

    def _tabulate(self, levels: Levels, options: dict[str, Any]) -> Table:
        ends = self.config.sigma_min, self.config.sigma_max
        inside = np.clip(levels.sigma, *ends)
        return _SeededTable(super()._tabulate(levels, options), list(pairwise(inside)), ends, None)

    def rows(self, levels: Levels, **options: Any) -> list[Row]:
        return [replace(row, noise=row.noise or None) for row in super().rows(levels)]
