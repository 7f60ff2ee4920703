"""Gradients of 3 x 3 convolutions on the CPU by Winograd's F(2 x 2, 3 x 3) (Lavin & Gray 2015).

With tiles V = Bᵀ d B and kernels U = G g Gᵀ, a convolution is Y = Aᵀ (U · V) A, where the product is one of matrices for each of
16 places. All else is linear, so the gradients are its transposes: of the products dM = A dY Aᵀ, of the tiles dV = Uᵀ dM, of
the kernels dU = dM Vᵀ. Each takes 16 products where the plain way takes 36. Samples lie channels-last here: then everything but
the products is sums of rows that are contiguous. The way forward is the plain one, which is as quick.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .differentiable import trains_plainly
from .winograd import KERNEL

_FEWEST_CHANNELS = 64
_FEWEST_POSITIONS = 512  # of all samples together: kernels are transformed in every step, and that has to pay
_VALUES_AT_ONCE = 2**21  # of transformed tiles; few enough for the processor's cache


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """`layer(x)` of `x` [B, C, H, W] whose gradients go by Winograd's way, or `None` where that does not fit or not pay."""
    given = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    if given != ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros") or min(layer.weight.shape[:2]) < _FEWEST_CHANNELS:
        return None
    fits = x.ndim == 4 and x.shape[1] == layer.in_channels and not (x.shape[2] % 2 or x.shape[3] % 2)
    pays = fits and x.shape[0] * x.shape[2] * x.shape[3] >= _FEWEST_POSITIONS
    needed = x.requires_grad or layer.weight.requires_grad
    return _Convolution.apply(x, layer.weight, layer.bias) if pays and needed and trains_plainly(layer, x) else None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants = list(ctx.needs_input_grad)
        if torch.is_grad_enabled():  # somebody wants gradients of these gradients
            return torch.ops.aten.convolution_backward(
                gradient, x, weight, [len(weight)] if ctx.has_bias else None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wants)
        arriving, given = _channels_last(gradient), _channels_last(x)
        kernels = _transformed(weight) if wants[0] else None
        of_x = torch.empty_like(given) if wants[0] else None
        of_kernels: Tensor | None = None
        for part, result, source in _parts(len(weight), arriving, arriving if of_x is None else of_x, given):
            products = _tiles(part, _of_output)
            flat = products.flatten(2, 4).flatten(0, 1)
            if kernels is not None:
                _untiled(torch.bmm(flat, kernels).view(*products.shape[:5], -1), _to_input, result)
            if wants[1]:
                tiles = _tiles(source, _of_input).flatten(2, 4).flatten(0, 1)
                if of_kernels is None:
                    of_kernels = torch.bmm(flat.transpose(1, 2), tiles)
                else:
                    of_kernels.baddbmm_(flat.transpose(1, 2), tiles)
        return (
            None if of_x is None else of_x.permute(0, 3, 1, 2),
            None if of_kernels is None else _kernels_back(of_kernels, weight),
            arriving.sum((0, 1, 2)) if wants[2] else None,
        )


def _channels_last(x: Tensor) -> Tensor:
    """[B, H, W, C], contiguous, of `x` [B, C, H, W]."""
    return x.permute(0, 2, 3, 1).contiguous()


def _parts(out_channels: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors [B, H, W, …] in parts of a few samples."""
    height, width = tensors[0].shape[1:3]
    widest = max(out_channels, *(tensor.shape[3] for tensor in tensors))
    return zip(*(tensor.split(max(_VALUES_AT_ONCE // (4 * height * width * widest), 1)) for tensor in tensors), strict=True)


def _transformed(weight: Tensor) -> Tensor:
    """[16, C', C] from kernels [C', C, 3, 3]."""
    flat = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (_turn() @ flat).view(16, *weight.shape[:2])


def _kernels_back(kernels: Tensor, weight: Tensor) -> Tensor:
    """The transpose of `_transformed`, in the layout of `weight`."""
    made = (_turn().T @ kernels.flatten(1)).view(3, 3, *weight.shape[:2]).permute(2, 3, 0, 1)
    return torch.empty_like(weight).copy_(made)


@functools.cache
def _turn() -> Tensor:
    """[16, 9] G in both directions."""
    turn = torch.tensor(KERNEL)
    return torch.kron(turn, turn)


# -- tiles and back: in one direction, then in the other --------------------------------------------------------------------

OneWay = Callable[[Tensor, Tensor, int], None]
"""Reads one tensor and writes another. One of them has four entries a tile in its first dimension, and then what the other
has, which is half as long in dimension `dim`: two entries a tile."""


def _tiles(x: Tensor, transform: OneWay) -> Tensor:
    """[4, 4, B, H/2, W/2, C] from `x` [B, H, W, C]."""
    batch, height, width, channels = x.shape
    rows = x.new_empty(4, batch, height // 2, width, channels)
    transform(x, rows, 1)
    tiles = x.new_empty(4, 4, batch, height // 2, width // 2, channels)
    transform(rows, tiles.transpose(0, 1), 3)
    return tiles


def _untiled(tiles: Tensor, transform: OneWay, made: Tensor) -> None:
    """[B, H, W, C] into `made` from [4, 4, B, H/2, W/2, C]."""
    rows = made.new_empty(4, len(made), made.shape[1] // 2, *made.shape[2:])
    transform(tiles.transpose(0, 1), rows, 3)
    transform(rows, made, 1)


def _evens_and_odds(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    pairs = x.unflatten(dim, (-1, 2))
    return pairs.select(dim + 1, 0), pairs.select(dim + 1, 1)


def _of_input(x: Tensor, four: Tensor, dim: int) -> None:
    """Bᵀ: tile t sees entries 2t - 1 to 2t + 2, and zeros outside."""
    even, odd = _evens_and_odds(x, dim)
    count = even.shape[dim]
    torch.neg(odd.narrow(dim, 0, 1), out=four[0].narrow(dim, 0, 1))
    torch.sub(odd.narrow(dim, 0, count - 1), odd.narrow(dim, 1, count - 1), out=four[0].narrow(dim, 1, count - 1))
    torch.add(even, odd, out=four[1])
    torch.sub(odd, even, out=four[2])
    torch.sub(even.narrow(dim, 0, count - 1), even.narrow(dim, 1, count - 1), out=four[3].narrow(dim, 0, count - 1))
    four[3].narrow(dim, count - 1, 1).copy_(even.narrow(dim, count - 1, 1))


def _to_input(four: Tensor, x: Tensor, dim: int) -> None:
    """The transpose of `_of_input`."""
    even, odd = _evens_and_odds(x, dim)
    count = even.shape[dim]
    torch.sub(four[1], four[2], out=even)
    even.add_(four[3])
    even.narrow(dim, 1, count - 1).sub_(four[3].narrow(dim, 0, count - 1))
    torch.add(four[1], four[2], out=odd)
    odd.sub_(four[0])
    odd.narrow(dim, 0, count - 1).add_(four[0].narrow(dim, 1, count - 1))


def _of_output(y: Tensor, four: Tensor, dim: int) -> None:
    """A: what two results are part of, of four products."""
    even, odd = _evens_and_odds(y, dim)
    four[0].copy_(even)
    torch.add(even, odd, out=four[1])
    torch.sub(even, odd, out=four[2])
    torch.neg(odd, out=four[3])
