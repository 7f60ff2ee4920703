"""Euler: one model call a step along the probability-flow ODE, with optional churn (Karras et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..config import register_to_config
from ..words import check_choice
from .noise import Array, Levels, exponential_ramp
from .prediction import PREDICTION_TYPES, read_prediction
from .table import Row
from .ve import ChurnedStep, VEScheduler, churned, ve_levels


class EulerDiscreteScheduler(ChurnedStep, VEScheduler):
    """Euler's method on `dx/dsigma = (x - x0) / sigma` (Karras et al. 2022, algorithm 2 without its correction). First order.

    Samples are variance-exploding: begin with noise times `init_noise_sigma` and call `scale_model_input`.

    Args:
        interpolation_type: place levels between training timesteps `"linear"`, or all of them `"log_linear"`.
        sigma_min, sigma_max: the ramp's ends (default: those that the timesteps give).
        timestep_type: tell the model a `"discrete"` timestep or, for `v_prediction`, the `"continuous"` `log(sigma) / 4`.
    """

    placed_by = ("timesteps", "sigmas")
    prediction_types = (*PREDICTION_TYPES, "original_sample")  # another name of "sample", which the latent upscaler has

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, prediction_type: str = "epsilon",
        interpolation_type: str = "linear", use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False, sigma_min: float | None = None, sigma_max: float | None = None,
        timestep_spacing: str = "linspace", timestep_type: str = "discrete", steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False, final_sigmas_type: str = "zero",
    ):
        check_choice("interpolation_type", interpolation_type, ("linear", "log_linear"))
        check_choice("timestep_type", timestep_type, ("discrete", "continuous"))
        check_choice("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
        self._prepare()

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        config, training = self.config, self.noise_schedule.sigmas
        end = 0.0 if config.final_sigmas_type == "zero" else training[0]
        if sigmas is not None:  # they name the end too
            sigmas, end = sigmas[:-1], sigmas[-1]
            times = self.noise_schedule.timestep_of(sigmas)
        else:
            times, sigmas = self.noise_schedule.spaced_sigmas(config, steps, timesteps)
            if config.interpolation_type == "log_linear" and self.noise_schedule.ramp is None:
                ramp = exponential_ramp(training[-1], training[0], len(sigmas) + 1)
                sigmas, end = ramp[:-1], ramp[-1]
        if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
            times = 0.25 * np.log(sigmas)
        return ve_levels(times, sigmas, end)

    def rows(
        self, levels: Levels, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0,
        **options: Any,
    ) -> list[Row]:
        """`x' = x̂ + (x̂ - x0) / sigma̅ · (sigma' - sigma̅)`, where churn has lifted the level from `sigma` to `sigma̅`.

        The model was asked before the churn, so its noise prediction is taken as it is, and its `v` is read with the
        weights of `sigma`.
        """
        x0_x = read_prediction(self.config.prediction_type, levels).x0_x
        rows = []
        for i, following in enumerate(levels.sigma[1:]):
            lifted, fresh = churned(levels, i, s_churn, s_tmin, s_tmax, s_noise)
            ratio = following / lifted
            if self.config.prediction_type == "epsilon":
                rows.append(Row(x={i: 1.0}, raw_noise=following - lifted, noise=fresh))
            else:
                kept = ratio + (1 - ratio) * x0_x[i]
                rows.append(Row(x={i: ratio}, m={i: 1 - ratio}, noise=None if fresh is None else fresh * kept))
        return rows
