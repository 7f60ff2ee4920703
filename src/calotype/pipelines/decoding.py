"""Latents to pictures, with an eye on what is not finite."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor

from ..runtime.cuda_graph import prepared
from ..runtime.scope import current

_log = logging.getLogger(__name__)


def check_finite(sample: Tensor, what: str = "latents") -> None:
    """Raise a `FloatingPointError` if a denoised sample has values that are not finite, and say what may help."""
    if torch.isfinite(sample).all():
        return
    if sample.dtype == torch.float16:
        raise FloatingPointError(
            f"the {what} are not finite: the model overflowed in torch.float16, whose values end at 65,504; load it with "
            "torch_dtype=torch.bfloat16 or torch_dtype=torch.float32")
    raise FloatingPointError(
        f"the {what} are not finite: the model's weights are damaged, the scheduler's config does not suit the model, or a "
        f"callback changed the {what} (an overflow is unlikely in {sample.dtype})")


def decoded(autoencoder: Any, latents: Tensor, **options: Any) -> Tensor:
    """[B, 3, H, W] in [-1, 1] from unscaled latents; `options` go to the autoencoder.

    What overflows in half precision is decoded again in single precision.

    Raises:
        FloatingPointError: latents or pictures are not finite.
    """
    check_finite(latents)
    latents = latents.to(autoencoder.dtype)
    if latents.is_cuda and current() is not None:
        latents = prepared(autoencoder, latents)
    pictures: Tensor = autoencoder.decode(latents, **options).sample
    if autoencoder.dtype != torch.float32 and not torch.isfinite(pictures).all():
        _log.warning("the autoencoder overflowed in %s; it decodes again in float32", autoencoder.dtype)
        pictures = copy.deepcopy(autoencoder).to(latents.device).float().decode(latents.float(), **options).sample
    if not torch.isfinite(pictures).all():
        raise FloatingPointError("the decoded pictures are not finite: the autoencoder's weights or the latents are damaged")
    return pictures
