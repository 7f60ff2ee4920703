"""What a scheduler's models are trained on: how a drawn position becomes a level, and what the network sees and should say there.

Sample and target are both linear in the clean sample and the noise, for every kind of model:

    sample = sample_clean · x0 + sample_noise · noise          target = target_clean · x0 + target_noise · noise
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..schedulers.betas import BetaScheduler
from ..schedulers.edm import CosineDPMSolverMultistepScheduler, EDMScheduler
from ..schedulers.flow import FlowLevels, FlowMatchScheduler, shifted
from .weightings import FLOW_WEIGHTINGS, SNR_WEIGHTINGS


class TrainingLevels(NamedTuple):
    """A batch's levels, [B] each: what the model is told, and `x = alpha · x0 + sigma · noise` in double precision."""

    timesteps: Tensor
    alpha: Tensor
    sigma: Tensor


class Terms(NamedTuple):
    """The weights above, [B] each."""

    sample_clean: Tensor
    sample_noise: Tensor
    target_clean: Tensor
    target_noise: Tensor

    def error_scale(self, levels: TrainingLevels) -> Tensor:
        """[B] the squared error of the target for a squared error of 1 of the clean sample, of one and the same sample.

        There `alpha · dx0 = -sigma · dnoise`. It is the SNR for `epsilon`, `SNR + 1` for `v_prediction`, `1 / c_out²` for EDM.
        """
        return (self.target_clean - self.target_noise * levels.alpha / levels.sigma) ** 2


class Process:
    """Base of the kinds of training processes."""

    sampler = "uniform"  # if none is asked for
    draws_sigmas = False  # a sampler may draw the levels themselves
    keeps_target = True  # a perturbed input leaves the target as it is
    weightings: tuple[str, ...] = ("none", *SNR_WEIGHTINGS)

    def __init__(self, scheduler: Any):
        self.scheduler = scheduler
        self.prediction_types: tuple[str, ...] = scheduler.prediction_types
        self.prediction_type = str(scheduler.config.get("prediction_type", self.prediction_types[0]))

    @property
    def loses_all_signal(self) -> bool:
        """There is a level of nothing but noise, or what a scheduler has in its place."""
        return False

    def levels(self, drawn: Tensor, are_sigmas: bool = False) -> TrainingLevels:
        """The levels at positions [B] in [0, 1]; or at these sigmas."""
        raise NotImplementedError

    def terms(self, levels: TrainingLevels, prediction_type: str) -> Terms:
        """Sample and target: see `schedulers.prediction.read_prediction`, of which this is the inverse."""
        alpha, sigma = levels.alpha, levels.sigma
        size, zero, one = torch.hypot(alpha, sigma), torch.zeros_like(alpha), torch.ones_like(alpha)
        targets = {"epsilon": (zero, one), "sample": (one, zero), "original_sample": (one, zero),
                   "v_prediction": (-sigma / size, alpha / size), "flow_prediction": (-one, one)}
        return Terms(alpha, sigma, *targets[prediction_type])


class BetaProcess(Process):
    """Of the schedulers over betas (Ho et al. 2020): VP levels at whole timesteps, also where the solver's samples are VE."""

    def __init__(self, scheduler: BetaScheduler):
        super().__init__(scheduler)
        if scheduler.config.get("timestep_type", "discrete") != "discrete":
            raise ValueError("timestep_type is 'continuous', and models that are told log(sigma) / 4 are trained with an EDM "
                             "scheduler: take EDMEulerScheduler")
        self.count = len(scheduler)
        kept = torch.from_numpy(scheduler.noise_schedule.alphas_cumprod)
        self._on: dict[torch.device, Tensor] = {kept.device: torch.stack([kept.sqrt(), (1 - kept).sqrt()])}

    @property
    def loses_all_signal(self) -> bool:
        return float(self.scheduler.noise_schedule.alphas_cumprod.min()) <= 2.0**-24

    def levels(self, drawn: Tensor, are_sigmas: bool = False) -> TrainingLevels:
        timesteps = (drawn * self.count).long().clamp(0, self.count - 1)
        if drawn.device not in self._on:
            self._on[drawn.device] = self._on[torch.device("cpu")].to(drawn.device)
        alpha, sigma = self._on[drawn.device][:, timesteps]
        return TrainingLevels(timesteps, alpha, sigma)


class FlowProcess(Process):
    """Of flow models (Lipman et al. 2023; Liu et al. 2023): `x = (1 - sigma) · x0 + sigma · noise`.

    `sigma` is the position, shifted by the scheduler's `shift`; not where it is to be shifted by a `mu` of each size of picture,
    for which there are the samplers `shifted` and `logit_normal`.
    """

    weightings = ("none", *FLOW_WEIGHTINGS)

    def __init__(self, scheduler: FlowLevels):
        super().__init__(scheduler)
        self._inverted = bool(scheduler.config.get("invert_sigmas"))
        if isinstance(scheduler, FlowMatchScheduler):
            self.prediction_types, self.prediction_type = ("flow_prediction",), "flow_prediction"

    @property
    def shift(self) -> float:
        """The factor of the shift."""
        if self.scheduler.config.get("use_dynamic_shifting"):
            return 1.0
        of_solver = isinstance(self.scheduler, FlowMatchScheduler)
        return float(self.scheduler.shift if of_solver else self.scheduler.config.flow_shift)

    def levels(self, drawn: Tensor, are_sigmas: bool = False) -> TrainingLevels:
        sigma = shifted(drawn, self.shift)
        told = (1 - sigma if self._inverted else sigma) * len(self.scheduler)
        return TrainingLevels(told.float(), 1 - sigma, sigma)

    def terms(self, levels: TrainingLevels, prediction_type: str) -> Terms:
        terms = super().terms(levels, prediction_type)
        return terms._replace(target_clean=-terms.target_clean, target_noise=-terms.target_noise) if self._inverted else terms


class EDMProcess(Process):
    """Of Karras et al. 2022: `x = x0 + sigma · noise`, and a network in a preconditioning (equation 7, table 1).

    The network sees `c_in · x`, and `c_skip · x + c_out · F` is to be the clean sample. So its target is
    `F = (x0 - c_skip · x) / c_out = (sigma / d · x0 - d · noise) / s`, where `d = sigma_data` and `s² = sigma² + d²`, which has
    unit variance; and the paper's weight `1 / c_out²` of the clean sample's error is 1 of F's. Positions are places on the
    scheduler's ramp from `sigma_min` to `sigma_max`.
    """

    sampler = "log_normal"
    draws_sigmas = True
    keeps_target = False  # what F must add depends on the sample that it sees

    def levels(self, drawn: Tensor, are_sigmas: bool = False) -> TrainingLevels:
        sigma = drawn if are_sigmas else self._on_ramp(drawn)
        return TrainingLevels(self._noise_told(sigma).float(), torch.ones_like(sigma), sigma)

    def _on_ramp(self, places: Tensor) -> Tensor:
        low, high, rho = self.scheduler.config.sigma_min, self.scheduler.config.sigma_max, self.scheduler.config.rho
        if self.scheduler.config.sigma_schedule == "karras":
            return (low ** (1 / rho) + places * (high ** (1 / rho) - low ** (1 / rho))) ** rho
        return torch.exp(math.log(low) + places * math.log(high / low))

    def _noise_told(self, sigma: Tensor) -> Tensor:
        """`c_noise`, as of the scheduler's `precondition_noise`, which would wait for an accelerator."""
        return torch.log(sigma) / 4

    def terms(self, levels: TrainingLevels, prediction_type: str) -> Terms:
        data = self.scheduler.config.sigma_data
        size = torch.hypot(levels.sigma, torch.full_like(levels.sigma, data))
        sign = -1.0 if prediction_type == "v_prediction" else 1.0
        return Terms(levels.alpha / size, levels.sigma / size, sign * levels.sigma / (data * size), -sign * data / size)


class CosineProcess(EDMProcess):
    """Of Stable Audio: EDM's, where the model is told the angle whose tangent is `sigma` as a share of 90°, drawn evenly."""

    sampler = "uniform"

    def _on_ramp(self, places: Tensor) -> Tensor:
        return torch.tan(places * (math.pi / 2)).clamp(self.scheduler.config.sigma_min, self.scheduler.config.sigma_max)

    def _noise_told(self, sigma: Tensor) -> Tensor:
        return torch.atan(sigma) / (math.pi / 2)


def process_of(scheduler: Any) -> Process:
    """The training process of a scheduler's models.

    Raises:
        TypeError: it has none that is known here.
    """
    flow = isinstance(scheduler, FlowMatchScheduler) or (
        isinstance(scheduler, FlowLevels) and scheduler.config.get("use_flow_sigmas"))
    if flow:
        return FlowProcess(scheduler)
    if isinstance(scheduler, CosineDPMSolverMultistepScheduler):
        return CosineProcess(scheduler)
    if isinstance(scheduler, EDMScheduler):
        return EDMProcess(scheduler)
    if isinstance(scheduler, BetaScheduler):
        return BetaProcess(scheduler)
    raise TypeError(f"no objective is known for the models of a {type(scheduler).__name__}: it must be a scheduler over betas "
                    "(DDPMScheduler, DDIMScheduler, …), of flow matching (FlowMatchEulerDiscreteScheduler, …) or of EDM "
                    "(EDMEulerScheduler, …)")
