"""The small parts: activations, resampling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime import winograd_training
from ..runtime.fused import norm_silu
from ..runtime.packed import convolve
from ..words import check_choice

Linear = nn.Linear


class Conv2d(nn.Conv2d):
    """A convolution that knows the quick ways of the CPU; see `runtime.packed` and, of training, `runtime.winograd_training`."""

    def forward(self, x: Tensor) -> Tensor:
        fast = winograd_training.convolve(self, x) if torch.is_grad_enabled() else convolve(self, x)
        return super().forward(x) if fast is None else fast


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU, "swish": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU, "mish": nn.Mish,
}


def activation(name: str) -> nn.Module:
    """The activation that configs call `name`."""
    check_choice("activation", name.lower(), ACTIVATIONS)
    return ACTIVATIONS[name.lower()]()


def normed(norm: nn.GroupNorm, act: nn.Module, x: Tensor, shift: Tensor | None = None) -> Tensor:
    """act(norm(x + shift)) of `x` [B, C, H, W] and `shift` [B or 1, C]."""
    if type(act) is nn.SiLU:
        return norm_silu(norm, x, shift)
    return act(norm(x if shift is None else x + shift[..., None, None]))


class Downsample(nn.Module):
    """Half the size by a convolution of stride 2. Without padding, one row and column are added below and right."""

    def __init__(self, channels: int, padding: int = 1):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size (or `size`) by repeating pixels, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.conv(repeat_pixels(x, size))


def repeat_pixels(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """[B, C, H, W] at twice the size, or at `size`, by the nearest pixel."""
    return F.interpolate(x, scale_factor=None if size else 2.0, size=size, mode="nearest")


def mean_of_pixels(x: Tensor) -> Tensor:
    """[B, C, H, W] at half the size, by the mean of each 2 x 2."""
    return F.avg_pool2d(x, 2)


def fir_down(x: Tensor) -> Tensor:
    """Half the size through the binomial filter [1, 3, 3, 1] (Zhang 2019; StyleGAN 2; NCSN++)."""
    return F.conv2d(x, _binomial(x), stride=2, padding=1, groups=x.shape[1])


def fir_up(x: Tensor) -> Tensor:
    """Twice the size through the binomial filter, which keeps the mean."""
    return F.conv_transpose2d(x, 4 * _binomial(x), stride=2, padding=1, groups=x.shape[1])


def smooth_down(x: Tensor) -> Tensor:
    """As `fir_down`, with the picture mirrored at its edges (k-diffusion)."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), _binomial(x), stride=2, groups=x.shape[1])


def smooth_up(x: Tensor) -> Tensor:
    """As `fir_up`, with the picture mirrored at its edges (k-diffusion)."""
    wide = F.pad(x, (1, 1, 1, 1), mode="reflect")
    return F.conv_transpose2d(wide, 4 * _binomial(x), stride=2, padding=3, groups=x.shape[1])


def _binomial(x: Tensor) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
    return (taps[:, None] * taps).expand(x.shape[1], 1, 4, 4)
