"""The residual block, the same in every UNet and autoencoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .conditioning import Kept, Moment, for_all, through
from .layers import Conv2d, Linear, activation, normed


class ResnetBlock(nn.Module):
    """Norm, activation, convolution, twice, with the time in between and the input added (Ho et al. 2020; after He et al. 2016).

    Args:
        channels, out_channels: of input and output.
        time_channels: of the time embedding; `None` for a block without time (autoencoders).
        groups, out_groups: of the first and the second norm.
        time_scale_shift: `"default"` adds the projected time; `"scale_shift"` scales and shifts the second norm by it
            (Dhariwal & Nichol 2021, section 3).
        skip_time_act: the time embedding comes activated.
        output_scale: what the sum is divided by.
        resample: doubles or halves the picture between the first activation and convolution, and on the way around.
    """

    def __init__(
        self, channels: int, out_channels: int, time_channels: int | None, groups: int = 32, out_groups: int | None = None,
        eps: float = 1e-6, dropout: float = 0.0, act: str = "silu", time_scale_shift: str = "default",
        skip_time_act: bool = False, output_scale: float = 1.0, resample: Callable[[Tensor], Tensor] | None = None,
        shortcut: bool | None = None,
    ):
        super().__init__()
        self.scale_shift, self.skip_time_act = time_scale_shift == "scale_shift", skip_time_act
        self.output_scale, self.resample = output_scale, resample
        self.norm1 = nn.GroupNorm(groups, channels, eps)
        self.conv1 = Conv2d(channels, out_channels, 3, padding=1)
        if time_channels is not None:
            self.time_emb_proj = Linear(time_channels, out_channels * (2 if self.scale_shift else 1))
        self.norm2 = nn.GroupNorm(out_groups or groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.act = activation(act)
        around = channels != out_channels if shortcut is None else shortcut
        self.conv_shortcut = Conv2d(channels, out_channels, 1) if around else None

    def forward(self, x: Tensor, time: Tensor | Kept | Moment | None = None) -> Tensor:
        """[B, out_channels, H', W'] from `x` [B, channels, H, W] and `time` [B or 1, time_channels]."""
        h = normed(self.norm1, self.act, x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        told = None if time is None else for_all(through(time, self, self._project_time), h)
        if told is not None and self.scale_shift:
            scale, shift = told[..., None, None].chunk(2, dim=1)
            h = self.act(torch.addcmul(shift, self.norm2(h), 1 + scale))
        else:
            h = normed(self.norm2, self.act, h, told)
        h = self.conv2(self.dropout(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + h) / self.output_scale if self.output_scale != 1 else x + h

    def _project_time(self, time: Tensor) -> Tensor:
        return self.time_emb_proj(time if self.skip_time_act else self.act(time))
