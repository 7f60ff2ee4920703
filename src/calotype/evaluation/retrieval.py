"""Which pictures of a data set a picture is like: how near it is to them, and whether they are what its prompt says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Neighbours:
    """For N pictures the nearest of a data set, nearest first: `indices` [N, K] and `distances` [N, K] (Euclidean)."""

    indices: Tensor
    distances: Tensor


@dataclass(frozen=True)
class Retrieval:
    """How often the nearest pictures show what was asked for.

    Attributes:
        count: the pictures whose label the data set has; the others are left out. NaN stands for a share of none.
        top1, top5: the share whose nearest picture, or any of whose nearest five, has their label.
    """

    count: int
    top1: float
    top5: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def nearest(features: Tensor, reference: Tensor, count: int = 5, *, batch: int = 256) -> Neighbours:
    """The `count` nearest rows of `reference` [M, D] (or all) for each row of `features` [N, D].

    Raises:
        ValueError: other channels, none of either, or values that are not finite.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1] or not len(reference):
        raise ValueError(f"features are {list(features.shape)} and {list(reference.shape)}, but must be [N, D] and [M, D]")
    if not (torch.isfinite(features).all() and torch.isfinite(reference).all()):
        raise ValueError("features have values that are not finite")
    # not by the product of the two, which rounds the distance of a copy to anything but 0
    parts = [torch.cdist(some, reference, compute_mode="donot_use_mm_for_euclid_dist").topk(
        min(count, len(reference)), largest=False) for some in features.split(batch)]
    return Neighbours(torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts]))


Label = str | tuple[str, ...] | None
"""What is asked for: a label, any of several, or none."""


def fits(label: str | None, asked: Label) -> bool:
    """Whether a picture with `label` shows what was asked for."""
    return label is not None and (label == asked if asked is None or isinstance(asked, str) else label in asked)


def retrieval(indices: Tensor, labels: Sequence[Label], reference_labels: Sequence[str | None]) -> Retrieval:
    """Whether the nearest pictures have the labels that were asked for.

    Args:
        indices: [N, K] of the nearest pictures of a data set, as `nearest` gives them.
        labels: N that were asked for; of several together, any is right. reference_labels: those of the data set.

    Raises:
        ValueError: not as many labels as pictures; or nobody has a label, so that there is nothing to count.
    """
    if len(indices) != len(labels):
        raise ValueError(f"there are {len(indices)} pictures and {len(labels)} labels: there must be one for each")
    if not any(labels) or not any(reference_labels):
        who = "the prompts" if not any(labels) else "the data set's pictures"
        raise ValueError(f"{who} have no labels, and so it cannot be told whether the nearest picture has the right one")
    there = {label for label in reference_labels if label}
    hits = [[fits(reference_labels[i], label) for i in row]
            for row, label in zip(indices[:, :5].tolist(), labels, strict=True) if any(fits(one, label) for one in there)]
    shares = [sum(each) / len(hits) if hits else float("nan") for each in ([hit[0] for hit in hits], [any(hit) for hit in hits])]
    return Retrieval(len(hits), *shares)
