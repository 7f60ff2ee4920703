"""Large pictures in overlapping tiles: the memory of a tile, whatever the size of the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]


def faded_into_neighbours(network: Network, x: Tensor, size: int, step: int) -> Tensor:
    """`network(x)` by tiles. Each tile's first rows fade in over the tile above, then its first columns over the one before.

    Args:
        network: makes [B, C', k·h, k·w] of any [B, C, h, w], for one ratio k.
        x: [B, C, H, W].
        size: height and width of a tile of `x`.
        step: from one tile to the next; k·step must be a whole number.
    """
    rows: list[Tensor] = []
    above: list[Tensor] = []
    for across in _corners(x, step):
        row: list[Tensor] = []
        for i, (top, left) in enumerate(across):
            part = x[:, :, top : top + size, left : left + size]
            tile = network(part)
            if above:
                tile = _faded(above[i], tile, _scaled(size - step, part, tile), dim=2)
            if row:
                tile = _faded(row[-1], tile, _scaled(size - step, part, tile), dim=3)
            row.append(tile)
            kept = _scaled(step, part, tile)
        rows.append(torch.cat([tile[:, :, :kept, :kept] for tile in row], dim=3))
        above = row
    return torch.cat(rows, dim=2)


def laid_over(network: Network, x: Tensor, size: int, step: int) -> Tensor:
    """`network(x)` by tiles, each laid over the ones before it through a mask that rises from 0 to 1 where they overlap.

    The arguments are those of `faded_into_neighbours`.
    """
    whole: Tensor | None = None
    for across in _corners(x, step):
        for top, left in across:
            part = x[:, :, top : top + size, left : left + size]
            tile = network(part)
            if whole is None:
                whole = tile.new_zeros(*tile.shape[:2], _scaled(x.shape[2], part, tile), _scaled(x.shape[3], part, tile))
            overlap = _scaled(size - step, part, tile)
            mask = _rise(tile, 2, overlap if top else 0)[:, None] * _rise(tile, 3, overlap if left else 0)
            y, z = _scaled(top, part, tile), _scaled(left, part, tile)
            below = whole[:, :, y : y + tile.shape[2], z : z + tile.shape[3]]
            below.copy_(torch.lerp(below, tile, mask.expand_as(tile)))
    assert whole is not None
    return whole


def _corners(x: Tensor, step: int) -> Iterator[list[tuple[int, int]]]:
    """Row by row, where the tiles begin."""
    for top in range(0, x.shape[2], step):
        yield [(top, left) for left in range(0, x.shape[3], step)]


def _scaled(length: int, part: Tensor, tile: Tensor) -> int:
    """`length` of the input in the output, by what became of a part."""
    return length * tile.shape[3] // part.shape[3]


def _faded(before: Tensor, tile: Tensor, overlap: int, dim: int) -> Tensor:
    overlap = min(overlap, before.shape[dim], tile.shape[dim])
    weight = torch.arange(overlap, device=tile.device, dtype=tile.dtype) / overlap
    weight = weight.view([-1, 1] if dim == 2 else [1, -1])
    end = before.narrow(dim, before.shape[dim] - overlap, overlap)
    mixed = end * (1 - weight) + tile.narrow(dim, 0, overlap) * weight
    return torch.cat([mixed, tile.narrow(dim, overlap, tile.shape[dim] - overlap)], dim)


def _rise(tile: Tensor, dim: int, overlap: int) -> Tensor:
    """[n] along `dim`: from 0 to 1 within the overlap, and 1 after it."""
    place = torch.arange(tile.shape[dim], device=tile.device, dtype=tile.dtype)
    return (place / (overlap - 1)).clamp(max=1) if overlap > 1 else torch.ones_like(place)
