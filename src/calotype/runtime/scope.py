"""Whether models take the fast path: inside a block of code, in this thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

Scope = set[nn.Module]
"""The layers whose prepared weights, and the models whose recordings, were found to be still right since somebody else's code
could last have changed them. Whoever has run such code (a callback, the consumer of a stream) clears it."""

_scope: ContextVar[Scope | None] = ContextVar("fast_path", default=None)


@contextmanager
def fast_path(enabled: bool = True, scope: Scope | None = None) -> Iterator[None]:
    """Let models inside this block run by the fast path, where there is one for their device; results differ by rounding.

    Several blocks may share a `scope`, so that weights are compared once for all of them.
    """
    token = _scope.set((set() if scope is None else scope) if enabled else None)
    try:
        yield
    finally:
        _scope.reset(token)


def current() -> Scope | None:
    """The scope of the block around, or `None` outside of one, and where PyTorch compiles or exports what is called."""
    return None if torch.compiler.is_compiling() else _scope.get()
