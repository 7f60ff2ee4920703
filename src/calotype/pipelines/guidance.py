"""Guidance: strengthen what a condition adds to a prediction."""

from __future__ import annotations

import torch
from torch import Tensor


def guide(output: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, equation 6).

    Args:
        output: [2B, …] predictions, the unconditional half first.
        scale: 1 is the conditional prediction, more goes beyond it.
        rescale: from 0 to 1, how far the result's standard deviation is brought back to the conditional one's, against
            overexposure (Lin et al. 2024, section 3.4).

    Returns:
        [B, …] the guided prediction.
    """
    unconditional, conditional = output.chunk(2)
    guided = torch.lerp(unconditional, conditional, scale)
    if rescale:
        dims = tuple(range(1, guided.ndim))
        spread = conditional.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
        guided = torch.lerp(guided, guided * spread, rescale)
    return guided


def guide_edit(output: Tensor, text_scale: float, image_scale: float) -> Tensor:
    """Guidance by an instruction and by the picture that is edited (Brooks et al. 2023, equation 3).

    Args:
        output: [3B, …] predictions given both, given the picture alone, and given neither.
        text_scale, image_scale: how much either counts; 1 is the prediction given both.

    Returns:
        [B, …] the guided prediction.
    """
    both, picture, neither = output.chunk(3)
    return neither + text_scale * (both - picture) + image_scale * (picture - neither)
