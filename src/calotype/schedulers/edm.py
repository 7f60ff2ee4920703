"""Samplers of models with the preconditioning of EDM (Karras et al. 2022, "Elucidating the Design Space")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..config import register_to_config
from ..words import check_choice
from .base import Scheduler
from .dpmsolver_multistep import INTEGRALS, MultistepRows
from .noise import Array, Levels
from .prediction import Prediction, read_preconditioned
from .table import Row
from .ve import ChurnedStep, churned, ve_levels


class EDMScheduler(Scheduler):
    """Base of the samplers for models trained on `x = x0 + sigma · noise` with a clean sample of deviation `sigma_data`.

    What a model `F` says of the clean sample is `c_skip · x + c_out · F(c_in · x, c_noise)` (equation 7), with table 1's

        c_in = 1 / s      c_skip = sigma_data² / s²      c_out = sigma · sigma_data / s      c_noise = log(sigma) / 4

    where `s² = sigma² + sigma_data²`. Begin with noise times `init_noise_sigma`, and call `scale_model_input`.

    Config entries that all of them take:

        sigma_min, sigma_max    the ends of the levels
        sigma_schedule, rho     the levels between: `"karras"` (equation 5, with the exponent `rho`) or `"exponential"`
        prediction_type         `"epsilon"`: `F` as above; `"v_prediction"`: `-F`
        final_sigmas_type       end at `"zero"`, or, with a step to nowhere, at `"sigma_min"`
        num_train_timesteps     the number of levels before `set_timesteps`
    """

    input_is_ve = True
    tells_x0 = False
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")

    def _prepare(self, training: Levels | None = None, most_steps: int | None = None) -> None:
        config = self.config
        check_choice("sigma_schedule", config.sigma_schedule, ("karras", "exponential"))
        check_choice("final_sigmas_type", config.final_sigmas_type, ("zero", "sigma_min"))
        super()._prepare(training or self.levels(config.num_train_timesteps), most_steps)

    def _settle(self, algorithm_type: str) -> None:
        """The end of a multistep solver's `__init__`."""
        if self.config.solver_type in ("logrho", "bh1", "bh2"):  # another class's
            self.register_to_config(solver_type="midpoint")
        check_choice("solver_type", self.config.solver_type, ("midpoint", "heun"))
        check_choice("solver_order", self.config.solver_order, (1, 2, 3))
        self._integral = INTEGRALS[algorithm_type]
        self._prepare()

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        sigmas = self._on_ramp(np.linspace(0, 1, steps)) if sigmas is None else sigmas
        return ve_levels(self._noise_told(sigmas[:-1]), sigmas[:-1], sigmas[-1])

    def _on_ramp(self, places: Array) -> Array:
        """The levels at `places`, from 0 at the noisy end of the ramp to 1, and the end."""
        config = self.config
        if config.sigma_schedule == "karras":
            ends = [config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)]
            sigmas = np.interp(places, [0, 1], ends) ** config.rho
        else:
            sigmas = np.exp(np.interp(places, [0, 1], np.log([config.sigma_max, config.sigma_min])))
        return np.append(sigmas, 0.0 if config.final_sigmas_type == "zero" else config.sigma_min)

    def _noise_told(self, sigmas: Array) -> Array:
        """`c_noise`: what the model is told in place of a timestep."""
        return 0.25 * np.log(sigmas)

    def prediction(self, levels: Levels) -> Prediction:
        sign = 1.0 if self.config.prediction_type == "epsilon" else -1.0
        return read_preconditioned(levels.sigma[:-1], self.config.sigma_data, sign)

    def input_scale(self, levels: Levels, row: int) -> float:
        return 1 / math.hypot(levels.sigma[row], self.config.sigma_data)

    def timesteps_of(self, levels: Levels, device: torch.device | str | None = None) -> Tensor:
        return torch.from_numpy(levels.timesteps.astype(np.float32)).to(device)

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
        data, sign = self.config.sigma_data, 1.0 if self.config.prediction_type == "epsilon" else -1.0
        total = sigma**2 + data**2
        return data**2 / total * sample + sign * sigma * data / total**0.5 * model_output


class EDMEulerScheduler(ChurnedStep, EDMScheduler):
    """Euler's method for EDM (Karras et al. 2022, algorithm 2 without its correction). First order."""

    memory = "output"
    placed_by = ("sigmas",)

    @register_to_config
    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5, sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000, prediction_type: str = "epsilon", rho: float = 7.0, final_sigmas_type: str = "zero",
    ):
        self._prepare(self.levels(num_train_timesteps + 1))  # one more, as the peer has them

    def rows(
        self, levels: Levels, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0,
        **options: Any,
    ) -> list[Row]:
        """`x' = x̂ + (x̂ - x0) / sigma̅ · (sigma' - sigma̅)`: churn lifts the level to `sigma̅`, and the output is read there."""
        rows = []
        for i, following in enumerate(levels.sigma[1:]):
            lifted, fresh = churned(levels, i, s_churn, s_tmin, s_tmax, s_noise)
            ratio, read = following / lifted, self.prediction(Levels(np.zeros(1), np.ones(2), np.array([lifted, 0.0])))
            kept = ratio + (1 - ratio) * float(read.x0_x[0])
            rows.append(Row(x={i: kept}, m={i: (1 - ratio) * float(read.x0_out[0])},
                            noise=None if fresh is None else fresh * kept))
        return rows

    def set_timesteps(  # type: ignore[override]
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Choose the levels by their number or one by one, and start again at the first.

        Args:
            sigmas: where the levels are, instead of a number of them: places on the ramp, rising from 0 to 1; or, falling,
                the levels themselves and the end.
        """
        if sigmas is not None:
            places = np.asarray(sigmas, dtype=np.float64)
            rising = places.ndim == 1 and len(places) and places[0] >= 0 and places[-1] <= 1 and (np.diff(places) > 0).all()
            num_inference_steps, sigmas = None, self._on_ramp(places).tolist() if rising else places.tolist()
        super().set_timesteps(num_inference_steps, device, sigmas=sigmas)


class EDMDPMSolverMultistepScheduler(MultistepRows, EDMScheduler):
    """DPM-Solver++ for EDM: see `DPMSolverMultistepScheduler` for its options, and for the steps of order 3."""

    @register_to_config
    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, sigma_data: float = 0.5, sigma_schedule: str = "karras",
        num_train_timesteps: int = 1000, prediction_type: str = "epsilon", rho: float = 7.0, solver_order: int = 2,
        thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995, sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint", lower_order_final: bool = True,
        euler_at_final: bool = False, final_sigmas_type: str = "zero",
    ):
        check_choice("algorithm_type", algorithm_type, ("dpmsolver++", "sde-dpmsolver++"))
        self._settle(algorithm_type)
