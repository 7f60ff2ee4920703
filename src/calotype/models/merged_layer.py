"""What adapters have added to the weights of one layer, and how it is taken out of them again.

What is taken out depends on what has become of the weights since:

- They are, bit for bit, what the sum was (wherever they were moved, and rounded if they were): the weights from before come back,
  bit for bit.
- They were changed where they are (by an optimiser, an average of weights, or in place): the change stays, and what adapters add
  is taken off,

      W = W_before + (W_now - W_sum)

- Others were put in by `load_state_dict`, or as another parameter: those stay, exactly. No adapter is in them.

Changes do not show in a tensor's version, which fused optimisers and whoever writes to `.data` leave as it is. So the bits are
compared with a number that was computed from all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..runtime.weight_sums import weight_sums


@dataclass(frozen=True, eq=False)  # a pair is itself: its tensors are never compared
class Pair:
    """What an adapter has for one layer: `down` [rank, in, …], `up` [out, rank, …]; their product counts `scale`."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def added(self, weight: Tensor, factor: float) -> Tensor:
        """`factor · scale · up · down`, in the shape, the type and on the device of `weight`."""
        up, down = (matrix.to(weight.device, weight.dtype).flatten(1) for matrix in (self.up, self.down))
        return torch.mm(up * (factor * self.scale), down).view_as(weight)


Parts = tuple[tuple[Pair, float], ...]
"""What is added: pairs, and how much each counts."""


class MergedLayer:
    """The weights of a layer that adapters are added to.

    Attributes:
        original: what they were before, on the CPU. parts: what was added.
        change: [as the weights] what somebody has added since, in double precision, so that nothing of it is lost; or `None`.
    """

    def __init__(self, original: Tensor, change: Tensor | None = None, parts: Parts = ()):
        self.original, self.change, self.parts = original, change, parts
        self._weight: Tensor | None = None
        self._made: tuple[torch.device, torch.dtype] = original.device, original.dtype
        self._mark, self._replaced = 0, False
        self._watching: RemovableHandle | None = None

    def with_parts(self, parts: Parts, weight: Tensor) -> tuple[MergedLayer, Tensor]:
        """The layer with other parts, and the weights that it has then; `weight` says where and in which type."""
        made = MergedLayer(self.original, self.change, parts)
        data = made._sum(weight.device, weight.dtype)
        made._weight, made._made = weight, (weight.device, weight.dtype)
        made._mark = mark(data) if parts else 0
        return made, data

    def found(self, weight: Tensor) -> MergedLayer | None:
        """The layer with what has become of its weights; `None` if other weights stand in their place."""
        if self._is_sum(weight):
            return self
        if self._replaced or weight is not self._weight:
            return None
        plain = MergedLayer(self.original, None, self.parts)._sum(weight.device, weight.dtype)
        found = MergedLayer(self.original, _exact(weight) - _exact(plain), self.parts)
        found._weight, found._made, found._mark = weight, (weight.device, weight.dtype), mark(weight)
        return found

    def _is_sum(self, weight: Tensor) -> bool:
        device, dtype = self._made
        if weight.dtype == dtype:
            return mark(weight) == self._mark
        summed = self._sum(device, dtype)
        return mark(summed) == self._mark and torch.equal(summed.to(weight.device, weight.dtype), weight)

    def _sum(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if self.parts:
            total = self.original.to(device, torch.promote_types(dtype, torch.float32), copy=True)
            for pair, factor in self.parts:
                total += pair.added(total, factor)
        else:
            total = self.original.to(device)
        plain = total.to(dtype)
        return plain if self.change is None else (_exact(plain) + self.change.to(_exact(plain).device)).to(device, dtype)

    # -- other weights by `load_state_dict` ------------------------------------------------------------------------------

    def watch(self, layer: nn.Module) -> None:
        """Be told what is loaded into the layer."""
        self._watching = layer.register_load_state_dict_pre_hook(self._loading)

    def forget(self) -> None:
        """Undo `watch`."""
        if self._watching is not None:
            self._watching.remove()
            self._watching = None

    def _loading(self, layer: Any, tensors: Mapping[str, Any], prefix: str, *_: Any) -> None:
        given = tensors.get(f"{prefix}weight")
        if isinstance(given, Tensor) and given.shape == layer.weight.shape:
            with torch.no_grad():
                self._replaced = mark(given.to(layer.weight.dtype)) != self._mark  # what was merged may have been saved, too


def _exact(tensor: Tensor) -> Tensor:
    """In double precision, where there is such a thing."""
    return tensor.detach().to("cpu" if tensor.device.type == "mps" else tensor.device).double()


# -- telling weights from others ----------------------------------------------------------------------------------------------

_AT_ONCE = 2**17  # words
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}


def mark(weight: Tensor) -> int:
    """A number that tells the bits of a matrix or kernel, in their order, from others; the same on every device."""
    matrix = weight.detach().flatten(1).contiguous()
    return hash((matrix.shape, weight_sums(matrix).cpu().numpy().tobytes()))
