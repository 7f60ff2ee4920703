"""Which words go with a picture each time that it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Captions:
    """Draws a caption: `captions(["a cat", "a tabby on a sofa"], generator)`.

    A picture's captions are equally likely. What is drawn from the generator is always the same in number and order but for
    the tags, which come last.

    Args:
        dropout: how often the caption is empty, from 0 to 1, so that the model also learns to do without one
            (classifier-free guidance, Ho and Salimans 2022, arXiv:2207.12598; often 0.1).
        shuffle_tags: a caption is tags with commas between them, and they come in random order.
        keep_tags: so many tags at the beginning stay there.
        constant: the caption of every picture, whatever its own ("a photo of sks dog"); or several, equally likely.

    Raises:
        ValueError: a number out of range, or tags to keep where none are shuffled.
    """

    dropout: float = 0.0
    shuffle_tags: bool = False
    keep_tags: int = 0
    constant: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout is {self.dropout}, but must be from 0 to 1")
        if self.keep_tags < 0 or (self.keep_tags and not self.shuffle_tags):
            raise ValueError(f"keep_tags is {self.keep_tags}, but must be 0, or more where shuffle_tags is True")
        if self.constant is not None and not isinstance(self.constant, str) and not self.constant:
            raise ValueError("constant is an empty list; give one caption or several, or None for each picture's own")

    def of(self, captions: Sequence[str]) -> list[str]:
        """What a picture's captions are, none dropped: its own, or those that take their place."""
        if self.constant is None:
            return list(captions)
        return [self.constant] if isinstance(self.constant, str) else list(self.constant)

    def first(self, captions: Sequence[str]) -> str:
        """What a picture is called where nothing is drawn: its first caption, or "" if it has none."""
        return next(iter(self.of(captions)), "")

    def __call__(self, captions: Sequence[str], generator: torch.Generator) -> str:
        """One of `captions`, or "" if it is dropped or there are none."""
        dropped, which = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        allowed = self.of(captions)
        if not allowed or dropped < self.dropout:
            return ""
        caption = allowed[int(which * len(allowed))]
        return self._shuffled(caption, generator) if self.shuffle_tags else caption

    def _shuffled(self, caption: str, generator: torch.Generator) -> str:
        tags = [tag for tag in (part.strip() for part in caption.split(",")) if tag]
        kept, moved = tags[: self.keep_tags], tags[self.keep_tags :]
        return ", ".join([*kept, *(moved[i] for i in torch.randperm(len(moved), generator=generator).tolist())])
