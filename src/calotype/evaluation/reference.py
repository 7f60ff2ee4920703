"""A data set as evaluations see it: looked at once, for any number of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .data import TRAINED, Row, evenly, read_pictures
from .features import Features, Seen
from .retrieval import Neighbours, fits, nearest, retrieval


@dataclass(frozen=True)
class Reference:
    """What is seen in the pictures of a data set.

    Attributes:
        rows: the pictures. seen: of each, in this order. features: by what.
    """

    rows: list[Row]
    seen: Seen
    features: Features

    @classmethod
    def of(
        cls, rows: Sequence[Row], features: Features, batch: int = 32,
        on_done: Callable[[int], object] = lambda done: None,
    ) -> Reference:
        """Look at all pictures of a data set; `on_done` is told how many were."""
        def batches() -> Iterator[Tensor]:
            for start in range(0, len(rows), batch):
                yield read_pictures(rows[start:start + batch], features.size, features.size)

        return cls(list(rows), features(batches(), on_done), features)

    @property
    def trained(self) -> list[int]:
        """Which pictures a model was trained on, so far as `split` says."""
        return [i for i, row in enumerate(self.rows) if row.split in TRAINED]

    def search(self, shape: Tensor, leave_out: Sequence[int] | None = None) -> Neighbours:
        """The five training pictures nearest to pictures with the vectors `shape` [N, L], as indices into `rows`.

        `leave_out` is for pictures of the data set: [N] which they are, so that none finds itself.
        """
        among = self.trained
        found = nearest(shape, self.seen.shape[among], 5 if leave_out is None else 6)
        indices, distances = torch.tensor(among)[found.indices], found.distances
        if leave_out is not None:
            own = (indices == torch.tensor(leave_out)[:, None]).long()
            order = own.argsort(dim=1, stable=True)[:, :5]
            indices, distances = indices.gather(1, order), distances.gather(1, order)
        return Neighbours(indices, distances)

    def baseline(self, most: int = 512) -> dict[str, Any]:
        """What the same measures say of real pictures that are not in the training set: what a perfect model would reach.

        Of those held out; where there are none, of at most `most` training pictures, each without itself.
        """
        chosen = [i for i, row in enumerate(self.rows) if row.split not in TRAINED] or evenly(self.trained, most)
        found = self.search(self.seen.shape[chosen], chosen)
        return {"count": len(chosen), **self.judged(found, self.seen.style[chosen], [self.rows[i] for i in chosen])}

    def judged(self, found: Neighbours, style: Tensor, asked: Sequence[Any]) -> dict[str, Any]:
        """What is told of pictures by their neighbours: see `docs/evaluation.md`."""
        first = found.distances[:, 0]
        return {"nearest": float(first.mean()), "least": float(first.min()), "label": self.retrieved(found.indices, asked),
                "style": self.styled(style, asked)}

    def retrieved(self, indices: Tensor, asked: Sequence[Any]) -> dict[str, Any] | None:
        """What `retrieval` says of neighbours, if those `asked` for and the training pictures have labels; else `None`."""
        labels = [row.label if row.split in TRAINED else None for row in self.rows]
        if not any(labels) or not any(one.label for one in asked):
            return None
        return retrieval(indices, [one.label for one in asked], labels).to_dict()

    def styled(self, style: Tensor, asked: Sequence[Any]) -> float | None:
        """How often the training picture most alike in style, and not of the same label, has the style that was asked for.

        Args:
            style: [N, S] vectors. asked: N prompts or rows, of which those with a style count; `None` if there are none.
        """
        among = [i for i in self.trained if self.rows[i].style]
        which = [i for i, one in enumerate(asked) if one.style]
        if not among or not which:
            return None
        distances = torch.cdist(style[which], self.seen.style[among])
        labels = [self.rows[j].label for j in among]
        same = torch.tensor([[fits(label, asked[i].label) for label in labels] for i in which])
        best = distances.masked_fill(same, torch.inf).argmin(1).tolist()
        return sum(self.rows[among[j]].style == asked[i].style for i, j in zip(which, best, strict=True)) / len(which)
