"""Convolutions of 3 x 3 in 16 products where the plain way takes 36 (Winograd's F(2 x 2, 3 x 3); Lavin & Gray 2015).

A picture is cut into tiles of 4 x 4 that overlap by two. Tiles and kernels are transformed so that their correlation
becomes a product of numbers, which for all channels is a product of matrices; what comes back are 2 x 2 results a tile.
The transformations only add, so that the result is, if anything, rounded less. They pay where there are many channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_CHANNELS = 256  # with fewer, the plain way is the quicker one
_TILES_AT_ONCE = 256  # so that they stay in the processor's cache from one transformation to the next
KERNEL = (1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0)
"""G, the transformation of a kernel in one direction."""


def pays(channels: int, out_channels: int, shape: Sequence[int]) -> bool:
    """Whether a picture [B, C, H, W] has whole tiles, and enough of them and of channels for this to be the quicker way."""
    batch, _, height, width = shape
    return not (height % 2 or width % 2) and min(channels, out_channels) >= LEAST_CHANNELS and batch * height * width >= 128


def transformed(weight: Tensor) -> Tensor:
    """[16, C', C] from kernels [C', C, 3, 3]."""
    turn = torch.tensor(KERNEL, dtype=torch.float64, device=weight.device)
    return torch.einsum("ia,ocab,jb->ijoc", turn, weight.double(), turn).flatten(0, 1).to(weight.dtype).contiguous()


def convolve(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of `x` [B, C, H, W], H and W even, by `transformed` kernels, with a border of one zero.

    Returns:
        [B, C', H, W].
    """
    made: Tensor = torch.ops.calotype.winograd.default(x, kernels, bias)
    return made


def _convolve(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    batch, _, height, width = x.shape
    bordered = F.pad(x, (1, 1, 1, 1))
    made = x.new_empty(batch, kernels.shape[1], height, width)
    rows = 2 * max(2 * _TILES_AT_ONCE // (batch * width), 1)
    for top in range(0, height, rows):
        _strip(bordered[:, :, top : min(top + rows, height) + 2], kernels, bias, made[:, :, top : top + rows])
    return made


def _told(x: Tensor, kernels: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), kernels.shape[1], *x.shape[2:])


# One operator to whoever looks at operators: a compiler would make kernels of its pieces that are slower than PyTorch's.
_library = torch.library.Library("calotype", "FRAGMENT")
_library.define("winograd(Tensor x, Tensor kernels, Tensor? bias) -> Tensor")
_library.impl("winograd", _convolve, "CPU")
_library.impl("winograd", _told, "Meta")


def _strip(x: Tensor, kernels: Tensor, bias: Tensor | None, made: Tensor) -> None:
    """One strip of tiles: from `x` [B, C, 2n + 2, 2m + 2] to `made` [B, C', 2n, 2m]."""
    batch, channels, down, across = len(x), x.shape[1], x.shape[2] // 2 - 1, x.shape[3] // 2 - 1
    rows = x.new_empty(4, batch, channels, down, x.shape[3])
    _differences([x[:, :, i : i + 2 * down - 1 : 2] for i in range(4)], list(rows))
    tiles = x.new_empty(4, 4, channels, batch, down, across)
    _differences([rows[..., j : j + 2 * across - 1 : 2].transpose(1, 2) for j in range(4)], list(tiles.unbind(1)))
    products = torch.bmm(kernels, tiles.view(16, channels, -1)).view(4, 4, -1, batch, down, across)
    places = made.unflatten(2, (down, 2)).unflatten(4, (across, 2)).permute(3, 5, 1, 0, 2, 4)
    for row, four in zip(places, _sums(products), strict=True):
        for place, two in zip(row, _sums(four), strict=True):
            if bias is None:
                place.copy_(two)
            else:
                torch.add(two, bias[:, None, None, None], out=place)


def _differences(four: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Of four neighbours along one direction, the four numbers whose products with a kernel's give two results."""
    torch.sub(four[0], four[2], out=out[0])
    torch.add(four[1], four[2], out=out[1])
    torch.sub(four[2], four[1], out=out[2])
    torch.sub(four[1], four[3], out=out[3])


def _sums(four: Tensor) -> tuple[Tensor, Tensor]:
    """The two results of four products [4, …] along one direction."""
    first, second = four[0] + four[1], four[1] - four[2]
    return first.add_(four[2]), second.sub_(four[3])
