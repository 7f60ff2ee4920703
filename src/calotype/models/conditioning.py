"""What conditions every layer of a network, call after call: the time and the prompt.

Both are constant where a naive loop computes them again: a prompt's keys and values do not change from step to step, and
all timesteps are known before the first. A `Kept` tensor remembers what each layer made of it; the layers need not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

_Made = TypeVar("_Made")


class Kept:
    """A tensor together with what layers have made of it. For inference: it must not outlive a change of weights."""

    def __init__(self, value: Tensor):
        self.value = value
        self._made: dict[nn.Module, Any] = {}

    def through(self, layer: nn.Module, function: Callable[[Tensor], _Made]) -> _Made:
        """`function(value)`, computed when `layer` first asks."""
        if layer not in self._made:
            self._made[layer] = function(self.value)
        return self._made[layer]


@dataclass(frozen=True)
class Moment:
    """One of many timesteps whose embeddings are kept together: `times.value` is [steps, B or 1, channels]."""

    times: Kept
    row: int

    def through(self, layer: nn.Module, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of this timestep's embedding, computed for all timesteps when `layer` first asks."""
        return self.times.through(layer, function)[self.row]


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


def through(condition: Tensor | Kept | Moment, layer: nn.Module, function: Callable[[Tensor], _Made]) -> _Made:
    """`function(condition)`, by way of what is kept where something is."""
    return function(condition) if isinstance(condition, Tensor) else condition.through(layer, function)  # type: ignore[return-value,arg-type]
