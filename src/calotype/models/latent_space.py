"""The latents of an autoencoder, and those that diffusion models work on: the same, shifted and scaled as its config says.

`shift_factor` and `scaling_factor` are one number each, `latents_mean` and `latents_std` one a channel; what is not there, or
`None`, changes nothing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def scaled(autoencoder: Any, latents: Tensor) -> Tensor:
    """[…, C, H, W] latents for diffusion: `(latents - shift) · scale`."""
    shift, scale = _shift_and_scale(autoencoder.config, latents)
    latents = latents if shift is None else latents - shift
    return latents if scale is None else latents * scale


def unscaled(autoencoder: Any, latents: Tensor) -> Tensor:
    """[…, C, H, W] latents for the autoencoder's decoder, of those of diffusion."""
    shift, scale = _shift_and_scale(autoencoder.config, latents)
    latents = latents if scale is None else latents / scale
    return latents if shift is None else latents + shift


def _shift_and_scale(config: Any, like: Tensor) -> tuple[Any, Any]:
    shift, scale = config.get("shift_factor") or None, config.get("scaling_factor")
    means, deviations = (config.get(name) for name in ("latents_mean", "latents_std"))
    if means is None or deviations is None:
        return shift, scale
    mean, deviation = (like.new_tensor(values).view(-1, 1, 1) for values in (means, deviations))
    return mean, (1.0 if scale is None else scale) / deviation
