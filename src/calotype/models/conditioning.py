"""What conditions every layer of a network, call after call: the time and the prompt.

Both are constant where a naive loop computes them again: a prompt's keys and values do not change from step to step, and
all timesteps are known before the first. A `Kept` tensor remembers what each layer made of it; the layers need not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..runtime.torch_private import copy_each

_Made = TypeVar("_Made")


class Kept:
    """A tensor together with what layers have made of it. For inference: it must not outlive a change of weights."""

    def __init__(self, value: Tensor):
        self.value = value
        self._made: dict[nn.Module, tuple[Callable[[Tensor], Any], Any]] = {}

    def through(self, layer: nn.Module, function: Callable[[Tensor], _Made]) -> _Made:
        """`function(value)`, computed when `layer` first asks."""
        if layer not in self._made:
            self._made[layer] = function, function(self.value)
        return self._made[layer][1]

    # -- for recordings (`runtime/recording.py`) --------------------------------------------------------------------------

    @property
    def key(self) -> Any:
        """What a recording depends on."""
        return self.value.shape, self.value.dtype

    @property
    def ready(self) -> bool:
        """Whether layers have asked."""
        return bool(self._made)

    def fixed(self, row: slice = slice(None)) -> Kept:
        """A copy in memory of its own; of some rows of everything."""
        fixed = Kept(self.value[row].clone())
        fixed._made = {layer: (function, _each(made, lambda tensor: tensor[row].clone()))
                       for layer, (function, made) in self._made.items()}
        return fixed

    def update(self, other: Kept, row: slice = slice(None)) -> None:
        """Take over what `other` says, in the memory that this has."""
        mine, theirs = [self.value], [other.value[row]]
        for layer, (function, made) in self._made.items():
            _each(made, mine.append)
            _each(other.through(layer, function), lambda tensor: theirs.append(tensor[row]))
        copy_each(mine, theirs)


@dataclass(frozen=True)
class Moment:
    """One of many timesteps whose embeddings are kept together: `times.value` is [steps, B or 1, channels]."""

    times: Kept
    row: int

    @property
    def size(self) -> int:
        """B, or 1 where all samples are told the same."""
        return self.times.value.shape[1]

    def through(self, layer: nn.Module, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of this timestep's embedding, computed for all timesteps when `layer` first asks."""
        return self.times.through(layer, function)[self.row]

    @property
    def key(self) -> Any:
        """What a recording depends on."""
        return self.times.value.shape[1:], self.times.value.dtype

    @property
    def ready(self) -> bool:
        """Whether layers have asked."""
        return self.times.ready

    def fixed(self) -> Moment:
        """A copy in memory of its own."""
        return Moment(self.times.fixed(slice(self.row, self.row + 1)), 0)

    def update(self, other: Moment) -> None:
        """Take over what `other` says, in the memory that this has."""
        self.times.update(other.times, slice(other.row, other.row + 1))

    def receive(self, other: Moment) -> None:
        """Take over what a call has left in `other`: nothing."""


@dataclass(frozen=True)
class Context:
    """What cross-attention looks at.

    Attributes:
        states: [B, L, C] the prompt's hidden states.
        mask: [B, 1, 1, L] added to attention scores, or `None`.
        self_mask: the same for the picture's own tokens.
    """

    states: Tensor | Kept | None
    mask: Tensor | None = None
    self_mask: Tensor | None = None

    def for_each_text(self, x: Tensor) -> Tensor:
        """`x` [B, …] as it is; or, if it came once for the k texts of a `Kept` [k·B, L, C], k times over.

        What is done to a sample before it first meets a text (in Stable Diffusion, two convolutions and the largest of all
        self-attentions) is the same for the texts of both halves of guidance: it is done once.
        """
        if not isinstance(self.states, Kept) or len(x) == len(self.states.value):
            return x
        return repeated(x, len(self.states.value))


def _each(made: Any, function: Callable[[Tensor], Any]) -> Any:
    """`function` of a tensor, or of each of several."""
    return tuple(map(function, made)) if isinstance(made, tuple) else function(made)


def repeated(x: Tensor, size: int) -> Tensor:
    """[size, …] `x` [B, …] over and over, in the memory format that it has."""
    return x if len(x) == size else torch.cat([x] * (size // len(x)))


def for_all(told: Tensor, x: Tensor) -> Tensor:
    """What layers are told, [B or 1, C], for `x`: over and over, where B samples have become those of k texts."""
    return told if len(told) in (1, len(x)) or len(x) % len(told) else repeated(told, len(x))


def through(condition: Tensor | Kept | Moment, layer: nn.Module, function: Callable[[Tensor], _Made]) -> _Made:
    """`function(condition)`, by way of what is kept where something is."""
    return function(condition) if isinstance(condition, Tensor) else condition.through(layer, function)  # type: ignore[return-value,arg-type]
