"""Pictures of latents without the autoencoder: a linear map from their channels to colours, for looking on."""

from __future__ import annotations

from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.latent_space import unscaled
from .conversion import check_finite, postprocess

_fitted: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
_CELLS, _SAMPLES, _BATCH = 8, 16, 8  # 1024 cells for a handful of unknowns; a second for the autoencoder of 64 x 64 pixels


def latent_preview(latents: Tensor, factors: Tensor) -> list[Any]:
    """Small pictures of latents, one pixel a latent.

    Args:
        latents: [B, C, H, W] or [C, H, W], scaled as the denoising loop has them.
        factors: [C + 1, 3] as `rgb_factors` gives them.

    Returns:
        B PIL images, W x H.

    Raises:
        ValueError: latents of another shape or number of channels.
        FloatingPointError: latents that are NaN or infinite.
    """
    if latents.ndim not in (3, 4) or latents.shape[-3] != len(factors) - 1:
        raise ValueError(f"latents are {list(latents.shape)}, but for these factors must be [B, {len(factors) - 1}, H, W]")
    factors = factors.to(latents.device)
    colours = torch.einsum("...chw,cr->...rhw", latents.to(factors.dtype), factors[:-1]) + factors[-1, :, None, None]
    return postprocess(colours if colours.ndim == 4 else colours[None])


@torch.no_grad()
def rgb_factors(vae: Any) -> Tensor:
    """The linear map from latents to colours that comes nearest to an autoencoder.

    A few smooth random latents are decoded, and the mean colour of the pixels of each latent is fitted to its channels
    by least squares. The random numbers are the map's own and always the same. A map is made once for an autoencoder and
    forgotten with it; for other weights make another object.

    Args:
        vae: `decode`s latents to `.sample`, pictures in [-1, 1]; its config says `latent_channels` and what
            `models.latent_space` reads.

    Returns:
        [C + 1, 3] of float32 on the CPU: colours in [-1, 1] are `latents @ factors[:-1] + factors[-1]` for latents scaled as
        the denoising loop has them.

    Raises:
        FloatingPointError: the autoencoder gives NaN or infinite values, as it may in float16.
    """
    if vae in _fitted:
        return _fitted[vae].clone()
    generator = torch.Generator().manual_seed(0)
    weights = next(vae.parameters())
    device = getattr(vae, "device", weights.device)
    latents = _smooth(_SAMPLES, vae.config.latent_channels, generator)
    drawing = {"generator": generator} if "generator" in signature(vae.decode).parameters else {}  # of decoders that draw
    colours = []
    for few in latents.split(_BATCH):
        decoded = vae.decode(unscaled(vae, few).to(device, weights.dtype), **drawing).sample
        check_finite(decoded)
        colours.append(F.adaptive_avg_pool2d(decoded.float().clamp(-1, 1), _CELLS).cpu())
    inputs = latents.movedim(1, -1).reshape(-1, latents.shape[1]).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    targets = torch.cat(colours).movedim(1, -1).reshape(len(inputs), -1).double()
    factors = torch.linalg.lstsq(inputs, targets).solution.float()
    _fitted[vae] = factors
    return factors.clone()


def _smooth(count: int, channels: int, generator: torch.Generator) -> Tensor:
    """[count, channels, _CELLS, _CELLS] random latents of variance near one whose neighbours are alike, as a picture's are."""
    coarse = [torch.randn(count, channels, cells, cells, generator=generator) for cells in (1, 2, 4, 8)]
    return torch.stack([F.interpolate(one, size=(_CELLS, _CELLS), mode="bicubic") for one in coarse]).sum(dim=0) / 2
