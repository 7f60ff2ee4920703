"""What a network is trained to say: samples noised, targets, weights, and the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..randomness import randn
from ..words import check_choice
from .processes import Process, Terms, TrainingLevels, process_of
from .timesteps import Sampler
from .timesteps import timestep_sampler as sampler_called
from .weightings import FLOW_WEIGHTINGS, GAMMAS, SNR_WEIGHTINGS

LOSSES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l2": lambda error, _: error.square(),
    "l1": lambda error, _: error.abs(),
    "huber": lambda error, c: 2 * c * ((error.square() + c * c).sqrt() - c),
}
"""The loss of an error. `huber` is the pseudo-Huber loss (Charbonnier et al. 1997), the error's square well below `c`, and
`2 c` times its size well above."""


@dataclass(frozen=True)
class Noised:
    """A batch as it is trained on.

    Attributes:
        sample: [B, …] what the network sees, in the dtype of the clean samples; of EDM it is scaled already (`c_in · x`).
        timesteps: [B] what the network is told: whole numbers of schedulers over betas, `sigma · 1000` of flow models, `c_noise`
            of EDM.
        noise: [B, …] the noise, with its offset, and without the perturbation of the input.
        target: [B, …] what the network should say, in float32 or better; of EDM its own output, before `c_skip` and `c_out`.
        weights: [B] what `Objective.loss` multiplies each sample's loss by.
    """

    sample: Tensor
    timesteps: Tensor
    noise: Tensor
    target: Tensor
    weights: Tensor


class Objective:
    """The denoising loss of the models that a scheduler samples from.

        noised = objective.noised(clean, generator)
        output = unet(noised.sample, noised.timesteps, …).sample
        loss = objective.loss(output, noised).mean()

    It serves the schedulers over betas, of flow matching and of EDM: see `processes`. Everything random is drawn from the
    generator in this order: noise, timesteps, the noise's offset, the input's perturbation. Nothing waits for an accelerator.

    Args:
        scheduler: the scheduler with which the model will sample.
        prediction_type: what the network predicts; `None`: what the scheduler's config says.
        timestep_sampler: a name of `timesteps.SAMPLERS`, a sampler, or anything that is called as one. `None`: `"log_normal"` for
            EDM, and else `"uniform"`.
        weighting: `None` or `"none"`; for flow models, one of `weightings.FLOW_WEIGHTINGS`; for others, of `SNR_WEIGHTINGS`. Of
            EDM the paper's own weight (`lambda · c_out²`) is 1, and so is `None`.
        snr_gamma: the gamma of `"min_snr"`, which it stands for alone, or of `"soft_min_snr"`.
        noise_offset: the deviation of noise that is one number for each channel of a sample (Guttenberg 2023). 0.1, say.
        input_perturbation: how much more noise the input has than the target says, as a share of its noise (Ning et al. 2023,
            "Input Perturbation Reduces Exposure Bias in Diffusion Models"). 0.1 in the paper.
        loss: one of `LOSSES`.
        huber_c: the error at which `"huber"` turns from square to straight.

    Raises:
        TypeError: a scheduler whose models are trained in another way.
        ValueError: an unknown name, a number out of its range, a weighting of another kind of model, or a weighting by SNR where
            the network predicts noise and there is a level without signal (`rescale_betas_zero_snr`).
    """

    def __init__(self, scheduler: Any, *, prediction_type: str | None = None, timestep_sampler: str | Sampler | None = None,
                 weighting: str | None = None, snr_gamma: float | None = None, noise_offset: float = 0.0,
                 input_perturbation: float = 0.0, loss: str = "l2", huber_c: float = 0.1):
        self.process: Process = process_of(scheduler)
        self.prediction_type = self.process.prediction_type if prediction_type is None else prediction_type
        check_choice("prediction_type", self.prediction_type, self.process.prediction_types)
        named = self.process.sampler if timestep_sampler is None else timestep_sampler
        self.timestep_sampler: Sampler = sampler_called(named) if isinstance(named, str) else named
        self._draws_sigmas = bool(getattr(self.timestep_sampler, "draws_sigmas", False))
        if self._draws_sigmas and not self.process.draws_sigmas:
            raise ValueError(f"timestep_sampler draws sigmas of EDM, and {type(scheduler).__name__} takes positions: take "
                             "'uniform' or 'logit_normal'")
        self.weighting, self.snr_gamma = self._weighting(weighting, snr_gamma)
        for name, value in (("noise_offset", noise_offset), ("input_perturbation", input_perturbation)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}, but must be 0 or more")
        if not 0 < huber_c < math.inf:
            raise ValueError(f"huber_c is {huber_c!r}, but must be more than 0")
        check_choice("loss", loss, LOSSES)
        self.noise_offset, self.input_perturbation = noise_offset, input_perturbation
        self.loss_name, self.huber_c = loss, huber_c

    def _weighting(self, weighting: str | None, snr_gamma: float | None) -> tuple[str, float]:
        """The name of the weighting, and its gamma, checked."""
        allowed, kind = self.process.weightings, type(self.process.scheduler).__name__
        if snr_gamma is not None and "min_snr" not in allowed:
            raise ValueError(f"snr_gamma is {snr_gamma!r}, but flow models, as of {kind}, have no weighting by SNR: leave it "
                             f"out, or take the weighting {' or '.join(FLOW_WEIGHTINGS)}")
        name = weighting or ("none" if snr_gamma is None else "min_snr")
        check_choice(f"weighting (with a {kind})", name, allowed)
        if snr_gamma is not None and name not in GAMMAS:
            raise ValueError(f"snr_gamma is {snr_gamma!r}, but the weighting {name!r} has none: {' and '.join(GAMMAS)} do")
        gamma = GAMMAS.get(name, math.inf) if snr_gamma is None else snr_gamma
        if not gamma > 0:
            raise ValueError(f"snr_gamma is {snr_gamma!r}, but must be more than 0")
        if name in SNR_WEIGHTINGS and self.prediction_type == "epsilon" and self.process.loses_all_signal:
            raise ValueError(f"the weighting {name!r} of predicted noise divides by the SNR, which is 0 at the last timestep "
                             "(rescale_betas_zero_snr): train with prediction_type='v_prediction', or without the weighting")
        return name, gamma

    def noised(self, clean: Tensor, generator: torch.Generator | None = None) -> Noised:
        """Clean samples [B, C, …], each taken to a level of its own.

        The generator may be on the CPU though the samples are not, and then draws the same there.
        """
        if not clean.is_floating_point() or clean.ndim < 2:
            raise ValueError(f"clean samples must be floats [B, C, …], and are {clean.dtype} {list(clean.shape)}")
        dtype = torch.promote_types(clean.dtype, torch.float32)
        noise = _normal(clean.shape, generator, clean.device, dtype)
        levels = self._levels(len(clean), generator)
        terms = self.process.terms(levels, self.prediction_type)
        if self.noise_offset:
            per_channel = (*clean.shape[:2], *[1] * (clean.ndim - 2))
            noise = noise + self.noise_offset * _normal(per_channel, generator, clean.device, dtype)
        perturbed = noise
        if self.input_perturbation:
            perturbed = noise + self.input_perturbation * _normal(clean.shape, generator, clean.device, dtype)
        # one transfer for all that is a number a sample
        *shares, weights = _moved(torch.stack([*terms, self._weights(levels, terms)]).to(dtype), clean.device)
        sample_clean, sample_noise, target_clean, target_noise = (share.view(-1, *[1] * (clean.ndim - 1)) for share in shares)
        sample = sample_clean * clean + sample_noise * perturbed
        target = target_clean * clean + target_noise * (noise if self.process.keeps_target else perturbed)
        return Noised(sample.to(clean.dtype), _moved(levels.timesteps, clean.device), noise, target, weights)

    def loss(self, output: Tensor, noised: Noised) -> Tensor:
        """[B] each sample's loss: the mean over its values, times its weight.

        Args:
            output: [B, C, …] what the network said; or [B, 2C, …] of a network that says variances too, of which only the first C
                channels are trained: the variances get no gradient.

        Raises:
            ValueError: the output has another shape.
        """
        target = noised.target
        channels = target.shape[1]
        if output.shape != target.shape:
            if output.shape != (len(target), 2 * channels, *target.shape[2:]):
                raise ValueError(f"the output has the shape {list(output.shape)}, but the target has {list(target.shape)}")
            output = output[:, :channels]
        error = LOSSES[self.loss_name](output.to(target.dtype) - target, self.huber_c)
        return error.flatten(1).mean(1) * noised.weights

    def _levels(self, count: int, generator: torch.Generator | None) -> TrainingLevels:
        """A level for each sample, where the generator lives."""
        drawn = self.timestep_sampler(count, generator, generator.device if generator is not None else "cpu")
        if drawn.shape != (count,):
            raise ValueError(f"timestep_sampler drew {list(drawn.shape)} positions for {count} samples")
        return self.process.levels(drawn.double(), self._draws_sigmas)

    def _weights(self, levels: TrainingLevels, terms: Terms) -> Tensor:
        if self.weighting in FLOW_WEIGHTINGS:
            return FLOW_WEIGHTINGS[self.weighting](levels.sigma)
        if self.weighting == "none":
            return torch.ones_like(levels.sigma)
        snr = (levels.alpha / levels.sigma) ** 2
        return SNR_WEIGHTINGS[self.weighting](snr, self.snr_gamma) / terms.error_scale(levels)


def _normal(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normal noise on `device`, drawn where the generator lives."""
    on_cpu = generator is not None and generator.device.type == "cpu"
    return _moved(randn(shape, generator, "cpu" if on_cpu else device, dtype), device)


def _moved(values: Tensor, device: torch.device) -> Tensor:
    """To `device`, without waiting for what an accelerator has in hand: CUDA copies what it needs before the call returns."""
    return values.to(device, non_blocking=device.type == "cuda")
