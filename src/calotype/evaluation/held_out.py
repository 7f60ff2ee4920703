"""The denoising loss at fixed noise, in one form for all kinds of models: what training brings down, without luck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..schedulers.base import Scheduler
from ..schedulers.noise import Levels
from ..training.seeds import generator_for

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Samples [B, …] as the model wants them, timesteps [B], and which of the clean samples these are [B], to the model's output."""


@dataclass(frozen=True)
class Band:
    """The mean losses at one timestep, and its level: `log_snr` is `2 log(alpha / sigma)`."""

    timestep: float
    log_snr: float
    epsilon: float
    clean: float


@dataclass(frozen=True)
class HeldOutLoss:
    """The losses, each the mean over bands, clean samples and seeds of a mean over values.

    Attributes:
        epsilon: of the noise that the model means. clean: of the clean sample that it means; in latents for a latent model.
        error: the standard error of `epsilon`, over the clean samples. count: of these.
        bands: the same timestep by timestep, rising.
    """

    epsilon: float
    clean: float
    error: float
    count: int
    bands: tuple[Band, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def held_out_loss(
    predict: Predict, scheduler: Any, clean: Tensor, *, bands: int = 10, seeds: Sequence[int] = (0,), batch: int = 16
) -> HeldOutLoss:
    """The denoising loss of clean samples, each at the same timesteps and with the same noise whenever it is asked.

    Whatever a model says (noise, clean sample, v, flow, an output of EDM's networks) means a clean sample and a noise
    (`schedulers.prediction`), and the losses are of these: `epsilon = |noise' - noise|²` (Ho et al. 2020, eq. 14) and
    `clean = |x0' - x0|²`, at each timestep in the ratio of the signal-to-noise ratio. Nothing is weighted or clipped.

    Args:
        predict: the model. scheduler: of whatever kind has levels; says what the model predicts. It is not changed.
        clean: [N, …] samples as the model has them.
        bands: training's timesteps are divided into so many parts, and the middle of each is one at which it is measured.
        seeds: of the noise; one each of `bands · N` model calls. batch: samples in a call; the result does not depend on it.

    Raises:
        ValueError: no samples, or no seeds, or more bands than timesteps. TypeError: the scheduler has no levels.
    """
    if not isinstance(scheduler, Scheduler):
        raise TypeError(f"a denoising loss needs a scheduler with noise levels, and a {type(scheduler).__name__} has none")
    trained = scheduler._training()
    if not len(clean) or not seeds or not 1 <= bands <= len(trained) or batch < 1:
        raise ValueError(f"{len(clean)} samples, {len(seeds)} seeds, {bands} bands in batches of {batch}: there must be at least "
                         f"one of each, and no more bands than timesteps ({len(trained)})")
    rows = [int((band + 0.5) / bands * len(trained)) for band in range(bands)][::-1]
    levels = Levels(trained.timesteps[rows], np.append(trained.alpha[rows], 1.0), np.append(trained.sigma[rows], 0.0))
    read, scales, told = scheduler.prediction(levels), scheduler.input_scale(levels), scheduler.timesteps_of(levels, clean.device)
    losses = torch.zeros(2, bands, len(clean), dtype=torch.float64)
    for seed in seeds:
        for indices in torch.arange(len(clean)).split(batch):
            x0 = clean[indices.to(clean.device)]
            for band in range(bands):
                noise = torch.stack([torch.randn(x0.shape[1:], generator=generator_for(seed, band, int(index)))
                                     for index in indices]).to(x0)
                x = float(levels.alpha[band]) * x0 + float(levels.sigma[band]) * noise
                output = predict(x * scales[band], told[band].expand(len(x0)), indices)
                output = output[:, :x0.shape[1]].float()  # a model that learned variances says them after it
                meant = (float(read.noise_x[band]) * x + float(read.noise_out[band]) * output,
                         float(read.x0_x[band]) * x + float(read.x0_out[band]) * output)
                for form, (said, true) in enumerate(zip(meant, (noise, x0), strict=True)):
                    losses[form, band, indices] += (said - true).square().flatten(1).mean(1).double().cpu() / len(seeds)
    if not torch.isfinite(losses).all():
        raise ValueError("the loss is not finite: the model's outputs are not, or a level has no signal or no noise")
    of_bands = losses.mean(2)
    error = float(losses[0].mean(0).std() / len(clean) ** 0.5) if len(clean) > 1 else float("nan")
    log_snr = 2 * levels.lambdas
    return HeldOutLoss(float(of_bands[0].mean()), float(of_bands[1].mean()), error, len(clean), tuple(
        Band(float(levels.timesteps[band]), float(log_snr[band]), float(of_bands[0, band]), float(of_bands[1, band]))
        for band in range(bands)))
