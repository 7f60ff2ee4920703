"""Pictures of many proportions, sorted into a few sizes of nearly the same area: none loses more than it must to the crop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Size = tuple[int, int]


def bucket_sizes(resolution: int, step: int = 64, max_ratio: float = 2.0) -> list[Size]:
    """The sizes (width, height), in pixels, that pictures may have, narrow ones first.

    For every width that is a multiple of `step` the greatest height that keeps the area to `resolution`², the other way
    round, and the square (Novel AI, "NovelAI Improvements on Stable Diffusion", 2022).

    Args:
        resolution: the side of the square of the greatest area.
        step: both sides are multiples of it: at least of the factor of the autoencoder, and better of the UNet's too (64).
        max_ratio: the longer side is at most so many times the shorter.

    Raises:
        ValueError: a step or ratio out of range.
    """
    if not 1 <= step <= resolution:
        raise ValueError(f"step is {step}, but must be from 1 to the resolution, {resolution}")
    if max_ratio < 1:
        raise ValueError(f"max_ratio is {max_ratio}, but must be at least 1, the ratio of a square")
    square = resolution // step * step
    sizes = {(square, square)}
    for side in range(step, int(resolution * max_ratio) + 1, step):
        other = resolution**2 // side // step * step
        if other and max(side, other) <= max_ratio * min(side, other):
            sizes |= {(side, other), (other, side)}
    return sorted(sizes, key=lambda size: (size[0] / size[1], size))


def assign(sizes: Sequence[Size], buckets: Sequence[Size]) -> list[int]:
    """For each of `sizes` (width, height) the number of the bucket whose proportions are nearest, as a ratio; of several the
    largest.

    Raises:
        ValueError: there are no buckets, or a side is below 1.
    """
    if not buckets or min((side for size in (*sizes, *buckets) for side in size), default=1) < 1:
        raise ValueError("there must be buckets, and all sides of sizes and buckets must be at least 1")
    order = sorted(range(len(buckets)), key=lambda i: -buckets[i][0] * buckets[i][1])
    ratios = np.log([buckets[i][0] / buckets[i][1] for i in order])
    own = np.log([width / height for width, height in sizes])
    distances = np.abs(own[:, None] - ratios[None, :]).round(12)  # equal ratios may differ in the last bit
    return [order[i] for i in distances.argmin(axis=1)]
