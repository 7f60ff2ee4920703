"""Euler: one model call a step along the probability-flow ODE, with churn (Karras et al. 2022) or ancestral noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from .betas import VEScheduler
from .entries import BETAS, RAMPS, takes
from .noise import Array, Levels, exponential_ramp, ve_levels
from .prediction import PREDICTION_TYPES
from .steps import ChurnedStep, ancestral, churned
from .table import Row


@takes(**BETAS, prediction_type="epsilon", interpolation_type="linear", **RAMPS, sigma_min=None, sigma_max=None,
       timestep_spacing="linspace", timestep_type="discrete", steps_offset=0, rescale_betas_zero_snr=False,
       final_sigmas_type="zero")
class EulerDiscreteScheduler(ChurnedStep, VEScheduler):
    """Euler's method on `dx/dsigma = (x - x0) / sigma` (Karras et al. 2022, algorithm 2 without its correction). First order.

    Samples are variance-exploding: begin with noise times `init_noise_sigma` and call `scale_model_input`.
    """

    placed_by = ("timesteps", "sigmas")
    prediction_types = (*PREDICTION_TYPES, "original_sample")  # another name of "sample", which the latent upscaler has

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        config, training = self.config, self.noise_schedule.sigmas
        end = 0.0 if config.final_sigmas_type == "zero" else training[0]
        if sigmas is not None:  # they name the end too
            sigmas, end = sigmas[:-1], sigmas[-1]
            times = self.noise_schedule.timestep_of(sigmas)
        else:
            times, sigmas = self._spaced(steps, timesteps)
            if config.interpolation_type == "log_linear" and self._ramp is None:
                *places, end = exponential_ramp(training[-1], training[0], len(sigmas) + 1)
                sigmas = np.array(places)
        if config.timestep_type == "continuous" and config.prediction_type == "v_prediction":
            times = 0.25 * np.log(sigmas)
        return ve_levels(times, sigmas, end)

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """`x' = x̂ + (x̂ - x0) / sigma̅ · (sigma' - sigma̅)`, where churn has lifted the level from `sigma` to `sigma̅`.

        The model was asked before the churn, so its noise prediction is taken as it is, and its `v` is read with the
        weights of `sigma`.
        """
        following, (lifted, fresh) = levels.sigma[i + 1], churned(levels, i, **options)
        if self.config.prediction_type == "epsilon":
            return Row(x={i: 1.0}, raw_noise=following - lifted, noise=fresh)
        ratio = following / lifted
        if fresh is not None:
            fresh *= ratio + (1 - ratio) * self.prediction(levels).x0_x[i]
        return Row(x={i: ratio}, m={i: 1 - ratio}, noise=fresh)


@takes(**BETAS, prediction_type="epsilon", timestep_spacing="linspace", steps_offset=0, rescale_betas_zero_snr=False)
class EulerAncestralDiscreteScheduler(VEScheduler):
    """Ancestral sampling by Euler steps (Karras et al. 2022, with the noise of Ho et al. 2020). Stochastic, first order.

    Samples are variance-exploding, as those of `EulerDiscreteScheduler`.
    """

    memory = "noise"

    def row(self, levels: Levels, i: int, **options: Any) -> Row:
        """`x' = x + (down - sigma) · noise + up · fresh`; see `ancestral`."""
        down, up = ancestral(levels.sigma[i], levels.sigma[i + 1])
        return Row(x={i: 1.0}, m={i: down - levels.sigma[i]}, noise=up)
