"""Guidance: strengthen what the prompt adds to a prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.embeddings import sinusoidal


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


def embed_guidance_scale(scale: float, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, channels] a guidance scale for models that take it as an input (Meng et al. 2023; LCM)."""
    value = torch.tensor([(scale - 1) * 1000.0], device=device)
    return sinusoidal(value, channels, freq_shift=1).to(dtype)
