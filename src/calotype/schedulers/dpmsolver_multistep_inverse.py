"""DPM-Solver backwards: from a picture to the noise that gives it back (Lu et al. 2022a, 2022b)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ..config import register_to_config
from .dpmsolver_multistep import DPMSolverMultistepScheduler
from .noise import Array


class DPMSolverMultistepInverseScheduler(DPMSolverMultistepScheduler):
    """Encodes a picture: the ODE of `DPMSolverMultistepScheduler` towards noise. `timesteps` rise. Order `solver_order`.

    It ends at the largest level of training, also where timesteps repeat (the peer then leaves steps out, and ends before).
    A way up has no fresh noise that the way down could know, so that `algorithm_type` is `"dpmsolver++"` or `"dpmsolver"`
    (the peer's stochastic ones give NaN).
    Arguments are those of `DPMSolverMultistepScheduler`.
    """

    placed_by = ()
    algorithm_types: ClassVar[tuple[str, ...]] = ("dpmsolver++", "dpmsolver")

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.0001, beta_end: float = 0.02,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, solver_order: int = 2,
        prediction_type: str = "epsilon", thresholding: bool = False, dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0, algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint",
        lower_order_final: bool = True, euler_at_final: bool = False, use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False, use_flow_sigmas: bool = False,
        flow_shift: float = 1.0, lambda_min_clipped: float = -math.inf, variance_type: str | None = None,
        timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):
        if use_flow_sigmas:
            raise ValueError("use_flow_sigmas is not supported by DPMSolverMultistepInverseScheduler")
        super().__init__(algorithm_type=algorithm_type, solver_type=solver_type, final_sigmas_type="sigma_min")
        self._place(self.noise_schedule.training_levels(ve=False).turned(0), None)

    def _ramp_ends(self, training: Array) -> tuple[float, float]:
        return float(training[0]), float(training[-1])

    def _last(self, training: Array) -> float:
        return float(training[self._unclipped() - 1])

    def _spaced(self, steps: int) -> Array:
        """One timestep more than asked, rising, without the last, which is the highest."""
        falling, spacing = super()._spaced(steps), self.config.timestep_spacing
        if spacing == "trailing":
            return falling[::-1]
        return np.append(self.config.steps_offset if spacing == "leading" else 0.0, falling[:0:-1])
