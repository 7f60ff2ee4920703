"""Whether the fast path is on: so it is within a generation, where weights stay as they are and nobody wants gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Scope = set[int]
"""What was already compared within one generation, by `id`: the layers whose prepared weights are known to be current."""

_scope: ContextVar[Scope | None] = ContextVar("fast_path", default=None)


@contextmanager
def fast_path(enabled: bool = True, scope: Scope | None = None) -> Iterator[None]:
    """Let what runs inside this block take its fast path, or with `enabled=False` the plain one.

    Several blocks may share a `scope`, so that weights are compared once for all of them.
    """
    token = _scope.set((set() if scope is None else scope) if enabled else None)
    try:
        yield
    finally:
        _scope.reset(token)


def current() -> Scope | None:
    """The scope of the innermost block, or `None` where the fast path is off."""
    return _scope.get()
