"""Where the kinds of model output meet: each is a linear function of the clean sample, the noise and the sample.

Whatever a model was trained to predict, what it says about the clean sample and about the noise is

    x0 = x0_x · x + x0_out · output          noise = noise_x · x + noise_out · output

with weights that depend on the level alone. Only clipping is not linear, and it is here too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..words import check_choice
from .noise import Array, Levels

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")
Clip = Callable[[Tensor], Tensor]


class Prediction(NamedTuple):
    """The weights above for each row, [n] each."""

    x0_x: Array
    x0_out: Array
    noise_x: Array
    noise_out: Array


def read_prediction(kind: str, levels: Levels) -> Prediction:
    """How to read outputs of `kind` at each level.

    `epsilon`: the noise (Ho et al. 2020). `sample`: the clean sample. `v_prediction`: `a · noise - s · x0`, where
    `(a, s)` is the level scaled to `a² + s² = 1` (Salimans & Ho 2022, appendix D). `flow_prediction`: `noise - x0`, whatever
    the level (Liu et al. 2023).
    """
    check_choice("prediction_type", kind, (*PREDICTION_TYPES, "original_sample"))
    alpha, sigma = levels.alpha[:-1], levels.sigma[:-1]
    zero, one, norm, total = np.zeros_like(alpha), np.ones_like(alpha), np.hypot(alpha, sigma), alpha + sigma
    with np.errstate(divide="ignore", invalid="ignore"):  # a level without signal or noise has no such reading
        if kind == "epsilon":
            return Prediction(1 / alpha, -sigma / alpha, zero, one)
        if kind == "v_prediction":
            return Prediction(alpha / norm**2, -sigma / norm, sigma / norm**2, alpha / norm)
        if kind == "flow_prediction":
            return Prediction(1 / total, -sigma / total, 1 / total, alpha / total)
        return Prediction(zero, one, 1 / sigma, -alpha / sigma)


def read_preconditioned(sigma: Array, sigma_data: float, sign: float = 1.0, sigma_min: float = 0.0) -> Prediction:
    """How to read outputs of the networks of EDM (Karras et al. 2022, table 1), at VE levels `sigma`.

    With `sigma_min`, of consistency models, which leave a sample at that level as it is (Song et al. 2023, appendix C).
    """
    above = sigma - sigma_min
    skip, out = sigma_data**2 / (above**2 + sigma_data**2), sign * above * sigma_data / np.hypot(sigma, sigma_data)
    return Prediction(skip, out, (1 - skip) / sigma, -out / sigma)


def make_clip(config: Any) -> Clip | None:
    """What a config does to every predicted clean sample: threshold, clip, or nothing (`None`)."""
    if config.get("thresholding"):
        return partial(dynamic_threshold, ratio=config.dynamic_thresholding_ratio, limit=config.sample_max_value)
    if config.get("clip_sample") or config.get("clip_denoised"):
        bound = config.get("clip_sample_range", 1.0)
        return partial(torch.clamp, min=-bound, max=bound)
    return None


def dynamic_threshold(x0: Tensor, ratio: float, limit: float) -> Tensor:
    """Clip each sample at its own `ratio` quantile, between 1 and `limit`, and scale to [-1, 1] (Saharia et al. 2022, 2.3)."""
    size = torch.quantile(x0.float().abs().flatten(1), ratio, dim=1).clamp(1, limit)
    size = size.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-size, size) / size
