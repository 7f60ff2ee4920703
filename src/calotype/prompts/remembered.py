"""The hidden states of texts that were encoded lately: of no negative prompt above all, and of a prompt for several pictures."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.recording import checked
from ..runtime.structure import Structure
from ..runtime.torch_private import dispatch_modes
from ..runtime.weight_sums import weight_sums

_PLACE = "_remembered"  # where an encoder has its own
_KEPT = 16  # batches of texts an encoder remembers

_scope: ContextVar[set[nn.Module] | None] = ContextVar("remembering", default=None)
"""Inside `remembering`: the encoders that were found to be what they were."""


class _Memory:
    """What one text encoder, as it is, made of token ids. It stays with this very object, and is never saved."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.structure: Structure | None = None
        self.sums: list[Tensor] = []
        self.states: OrderedDict[Any, Tensor] = OrderedDict()

    def check(self, structure: Structure) -> None:
        """Forget everything if the encoder, whose structure this is, is not what it was."""
        sums = [weight_sums(tensor) for tensor in structure.tensors]
        if structure is not self.structure or not all(map(torch.equal, sums, self.sums)):
            self.states.clear()
        self.structure, self.sums = structure, sums

    def __reduce__(self) -> Any:
        return _Memory, ()

    def recall(self, key: Any) -> Tensor | None:
        if key in self.states:
            self.states.move_to_end(key)
        return self.states.get(key)

    def remember(self, key: Any, states: Tensor) -> None:
        self.states[key] = states
        if len(self.states) > _KEPT:
            self.states.popitem(last=False)


@contextmanager
def remembering(enabled: bool = True) -> Iterator[None]:
    """Let texts that were encoded in such a block be known in the next: to the last bit what the encoder said of them.

    Encoders must not change inside the block.
    """
    token = _scope.set(set() if enabled else None)
    try:
        yield
    finally:
        _scope.reset(token)


def remembered(
    encoder: nn.Module, ids: Tensor, mask: Tensor | None, clip_skip: int | None, encode: Callable[[], Tensor]
) -> Tensor:
    """`encode()`, which is what `encoder` makes of these token ids, or a copy of what it said before."""
    compared = _scope.get()
    structure = None if compared is None or not _is_a_function(encoder) else checked(encoder)
    if compared is None or structure is None:
        return encode()
    memory: _Memory = vars(encoder).setdefault(_PLACE, _Memory())
    key = ids.shape, tuple(ids.flatten().tolist()), None if mask is None else tuple(mask.flatten().tolist()), clip_skip
    if not memory.lock.acquire(blocking=False):  # another thread is at it
        return encode()
    try:
        if encoder not in compared:
            memory.check(structure)
            compared.add(encoder)
        states = memory.recall(key)
        if states is None:
            states = encode()
            memory.remember(key, states)
        return states.clone()
    finally:
        memory.lock.release()


def forget(encoder: nn.Module) -> None:
    """Let an encoder be asked again for every text."""
    vars(encoder).pop(_PLACE, None)


def _is_a_function(encoder: nn.Module) -> bool:
    """Whether the same ids give the same states, nobody wants gradients, and nobody looks at operators."""
    device = next((parameter.device.type for parameter in encoder.parameters()), "cpu")
    return not (torch.is_grad_enabled() or encoder.training or torch.is_autocast_enabled(device) or dispatch_modes())
