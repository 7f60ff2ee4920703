"""Numbers as vectors: timesteps, noise levels, sizes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .layers import Linear, activation


def sinusoidal(values: Tensor, channels: int, flip_sin_to_cos: bool = False, freq_shift: float = 0.0) -> Tensor:
    """[N, channels] sines and cosines of `values` [N] at geometric frequencies (Vaswani et al. 2017, section 3.5).

    Args:
        flip_sin_to_cos: put the cosines first.
        freq_shift: the lowest frequency is `10000 ** -(half - 1) / (half - freq_shift)`, with `half = channels / 2`.
    """
    half = channels // 2
    order = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values[:, None].float() * torch.exp(order * (-math.log(10000) / (half - freq_shift)))
    parts = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    return nn.functional.pad(torch.cat(parts, dim=-1), (0, channels % 2))


def plane_sines(height: int, width: int, channels: int, base: int, like: Tensor) -> Tensor:
    """[height · width, channels] where each place of a grid is: half of the channels tell the column, half the row.

    Sines, then cosines, at geometric frequencies, as one axis has them in Vaswani et al. 2017 (Peebles & Xie 2023, section
    3.2). A grid of another size than `base` is laid over the same plane, finer or coarser.

    Args:
        channels: a multiple of 4.
        base: rows, and columns, of the grid for which places are whole numbers.
        like: has the device and type wanted.
    """
    exact = torch.float32 if like.device.type == "mps" else torch.float64
    half = channels // 4
    frequencies = 10000 ** -(torch.arange(half, dtype=exact, device=like.device) / half)
    rows, columns = (
        (torch.arange(size, dtype=exact, device=like.device) * (base / size))[:, None] * frequencies
        for size in (height, width))
    by_row = torch.cat([rows.sin(), rows.cos()], -1)[:, None].expand(-1, width, -1)
    by_column = torch.cat([columns.sin(), columns.cos()], -1).expand(height, -1, -1)
    return torch.cat([by_column, by_row], -1).flatten(0, 1).to(like.dtype)


class FourierFeatures(nn.Module):
    """Sines and cosines of values, or of their logarithms, at random frequencies (Tancik et al. 2020; Song et al. 2021)."""

    def __init__(self, half: int, scale: float = 16.0, log: bool = True, flip_sin_to_cos: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(half) * scale, requires_grad=False)
        self.log, self.flip = log, flip_sin_to_cos

    def forward(self, values: Tensor) -> Tensor:
        # in half precision angles would be off by whole turns
        values, weight = (x.to(torch.promote_types(self.weight.dtype, torch.float32)) for x in (values, self.weight))
        angles = (values.log() if self.log else values)[:, None] * weight * 2 * math.pi
        return torch.cat([angles.cos(), angles.sin()] if self.flip else [angles.sin(), angles.cos()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers on a sinusoidal embedding; `condition` is added to their input."""

    def __init__(
        self, channels: int, out: int, act: str = "silu", post_act: str | None = None, cond_channels: int | None = None
    ):
        super().__init__()
        self.linear_1 = Linear(channels, out)
        self.act = activation(act)
        self.linear_2 = Linear(out, out)
        self.post_act = activation(post_act) if post_act else nn.Identity()
        self.cond_proj = Linear(cond_channels, channels, bias=False) if cond_channels else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None and self.cond_proj is not None:
            x = x + self.cond_proj(condition)
        return self.post_act(self.linear_2(self.act(self.linear_1(x))))
