"""Samplers of models with the preconditioning of EDM (Karras et al. 2022), and of Stable Audio's, at cosine levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..words import check_choice
from .base import Scheduler
from .brownian import SeededTable
from .dpmsolver import INTEGRALS, MultistepRows
from .entries import THRESHOLD, takes
from .euler import ChurnedStep, churned
from .noise import Array, Levels, ve_levels
from .prediction import Prediction, read_preconditioned
from .table import Row, Table


class EDMScheduler(Scheduler):
    """Base of the samplers for models trained on `x = x0 + sigma · noise` with a clean sample of deviation `sigma_data`.

    What a model `F` says of the clean sample is `c_skip · x + c_out · F(c_in · x, c_noise)` (equation 7), with table 1's

        c_in = 1 / s      c_skip = sigma_data² / s²      c_out = sigma · sigma_data / s      c_noise = log(sigma) / 4

    where `s² = sigma² + sigma_data²`. With `prediction_type="v_prediction"` it says `-F`. Begin with noise times
    `init_noise_sigma`, and call `scale_model_input`.
    """

    input_is_ve = True
    tells_x0 = False
    timestep_dtype = np.float32
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        sigmas = self._on_ramp(np.linspace(0, 1, steps)) if sigmas is None else sigmas
        return ve_levels(self._noise_told(sigmas[:-1]), sigmas[:-1], sigmas[-1])

    def _on_ramp(self, places: Array) -> Array:
        """The levels at `places`, from 0 at the noisy end of the ramp to 1, and the end: clean, or a step to nowhere."""
        config = self.config
        ends = np.array([config.sigma_max, config.sigma_min])
        if config.sigma_schedule == "karras":
            sigmas = np.interp(places, [0, 1], ends ** (1 / config.rho)) ** config.rho
        else:
            sigmas = np.exp(np.interp(places, [0, 1], np.log(ends)))
        return np.append(sigmas, 0.0 if config.final_sigmas_type == "zero" else config.sigma_min)

    def _noise_told(self, sigmas: Array) -> Array:
        """`c_noise`: what the model is told in place of a timestep."""
        return 0.25 * np.log(sigmas)

    def prediction(self, levels: Levels) -> Prediction:
        return read_preconditioned(levels.sigma[:-1], self.config.sigma_data, 1.0 if self._kind == "epsilon" else -1.0)

    def initial_noise_scale(self, levels: Levels) -> float:
        return math.hypot(self.config.sigma_max, 1)

    def precondition_inputs(self, sample: Tensor, sigma: float | Tensor) -> Tensor:
        """`c_in · sample`: what the model gets of a sample [B, …] at level `sigma`."""
        return sample / (sigma**2 + self.config.sigma_data**2) ** 0.5

    def precondition_noise(self, sigma: float | Tensor) -> Tensor:
        """`c_noise`: what the model is told of level `sigma`."""
        level = torch.as_tensor(sigma)
        return torch.from_numpy(np.asarray(self._noise_told(level.double().cpu().numpy()))).to(level)

    def precondition_outputs(self, sample: Tensor, model_output: Tensor, sigma: float | Tensor) -> Tensor:
        """The clean sample [B, …] that a model means, of a sample at level `sigma`."""
        data, total = self.config.sigma_data, sigma**2 + self.config.sigma_data**2
        said = model_output if self._kind == "epsilon" else -model_output
        return data**2 / total * sample + sigma * data / total**0.5 * said


@takes(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, sigma_schedule="karras", num_train_timesteps=1000,
       prediction_type="epsilon", rho=7.0, final_sigmas_type="zero")
class EDMEulerScheduler(ChurnedStep, EDMScheduler):
    """Euler's method for EDM (Karras et al. 2022, algorithm 2 without its correction). First order."""

    memory = "output"
    placed_by = ("sigmas",)

    def _training(self) -> Levels:
        return self.levels(len(self) + 1)  # one more, as the peer has them

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """`x' = x̂ + (x̂ - x0) / sigma̅ · (sigma' - sigma̅)`: churn lifts the level to `sigma̅`, and the output is read there."""
        lifted, fresh = churned(levels, i, **options)
        ratio, read = levels.sigma[i + 1] / lifted, self.prediction(ve_levels(np.zeros(1), np.array([lifted])))
        kept = ratio + (1 - ratio) * read.x0_x[0]
        return Row(x={i: kept}, m={i: (1 - ratio) * read.x0_out[0]}, noise=None if fresh is None else fresh * kept)

    def set_timesteps(self, num_inference_steps: int | None = None,  # type: ignore[override]
                      device: str | torch.device | None = None, sigmas: Sequence[float] | Tensor | None = None) -> None:
        """Choose the levels, and start again at the first: by their number; or, in `sigmas`, by their places on the ramp, rising
        from 0 to 1; or, falling, by the levels themselves and the end.
        """
        if sigmas is not None:
            places = np.asarray(sigmas, dtype=np.float64)
            rising = places.ndim == 1 and len(places) and places[0] >= 0 and places[-1] <= 1 and (np.diff(places) > 0).all()
            num_inference_steps, sigmas = None, self._on_ramp(places).tolist() if rising else places.tolist()
        super().set_timesteps(num_inference_steps, device, sigmas=sigmas)


@takes(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, sigma_schedule="karras", num_train_timesteps=1000,
       prediction_type="epsilon", rho=7.0, solver_order=2, **THRESHOLD, algorithm_type="dpmsolver++", solver_type="midpoint",
       lower_order_final=True, euler_at_final=False, final_sigmas_type="zero")
class EDMDPMSolverMultistepScheduler(MultistepRows, EDMScheduler):
    """DPM-Solver++ for EDM: see `MultistepRows`."""

    algorithm_types: ClassVar[tuple[str, ...]] = ("dpmsolver++", "sde-dpmsolver++")

    def _prepare(self) -> None:
        algorithm_type = self.config.get("algorithm_type", self.algorithm_types[0])
        check_choice("algorithm_type", algorithm_type, self.algorithm_types)
        self._settle("solver_type", "midpoint", "heun")
        self._integral, self._ends_clean = INTEGRALS[algorithm_type], self.config.final_sigmas_type == "zero"
        super()._prepare()


@takes(sigma_min=0.3, sigma_max=500, sigma_data=1.0, sigma_schedule="exponential", num_train_timesteps=1000, solver_order=2,
       prediction_type="v_prediction", rho=7.0, solver_type="midpoint", lower_order_final=True, euler_at_final=False,
       final_sigmas_type="zero")
class CosineDPMSolverMultistepScheduler(EDMDPMSolverMultistepScheduler):
    """The sampler of Stable Audio: SDE-DPM-Solver++ for models of cosine levels, its noise from a Brownian path.

    `sigma` is a tangent, and the model is told its angle as a share of 90°. The path, which `torchsde` makes
    (`pip install 'calotype[sde]'`), has the seed with which the generator was made. A step to nowhere
    (`final_sigmas_type="sigma_min"`) draws nothing.
    """

    algorithm_types = ("sde-dpmsolver++",)

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
        return SeededTable(super()._tabulate(levels, options), list(pairwise(inside)), ends)

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        row = super().row(levels, i)
        return replace(row, noise=row.noise or None)
