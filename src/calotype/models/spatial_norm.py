"""Norms that look at the latents: the decoder of MoVQ (Zheng et al. 2022, "Modulating Quantized Vectors")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Attention
from .layers import Conv2d, repeat_pixels
from .resnet import ResnetBlock


class SpatialNorm(nn.Module):
    """A group norm whose scale and shift, at each position, are linear in the latents there (section 3.2)."""

    def __init__(self, channels: int, latent_channels: int):
        super().__init__()
        self.norm_layer = nn.GroupNorm(32, channels, 1e-6)
        self.conv_y = Conv2d(latent_channels, channels, 1)
        self.conv_b = Conv2d(latent_channels, channels, 1)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """[B, channels, H, W] from `x` of that shape and `latents` [B, latent_channels, h, w]."""
        size = (x.shape[2], x.shape[3])
        scale, shift = repeat_pixels(self.conv_y(latents), size), repeat_pixels(self.conv_b(latents), size)
        return torch.addcmul(shift, self.norm_layer(x), scale)


class SpatialNormResnetBlock(ResnetBlock):
    """A residual block with two such norms, and no time."""

    def __init__(self, channels: int, out_channels: int, latent_channels: int, act: str = "silu"):
        super().__init__(channels, out_channels, None, groups=1, act=act)
        self.norm1 = SpatialNorm(channels, latent_channels)  # type: ignore[assignment]
        self.norm2 = SpatialNorm(out_channels, latent_channels)  # type: ignore[assignment]

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:  # type: ignore[override]
        h = self.conv1(self.act(self.norm1(x, latents)))
        h = self.conv2(self.act(self.norm2(h, latents)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class SpatialNormAttention(Attention):
    """Self-attention of one head after such a norm."""

    def __init__(self, channels: int, latent_channels: int):
        super().__init__(channels, 1, bias=True)
        self.spatial_norm = SpatialNorm(channels, latent_channels)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:  # type: ignore[override]
        tokens = self.spatial_norm(x, latents).flatten(2).transpose(1, 2)
        return x + super().forward(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
