"""Whether models take the fast path: inside a block of code, in this thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

Scope = set[nn.Module]
"""The layers whose prepared weights, and the models whose recordings, were found to be still right; one a generation."""

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


def touched(layer: nn.Module, compiled: bool = True) -> bool:
    """Whether a call of `layer` may do more than its class says: somebody is told of it, or has put another function there.

    Args:
        compiled: whether to have it compiled is such a thing.
    """
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
                or (compiled and layer._compiled_call_impl is not None))


def watched(model: nn.Module, gpu: bool) -> bool:
    """Whether calls of layers do more than compute: somebody is told of them, or has put in another function.

    Compiled layers are kernels to a GPU, and can be captured as others are; elsewhere nobody could tell what they do.
    """
    return _has_any_global_hook() or any(
        touched(part, compiled=not gpu) or (not gpu and "_orig_mod" in part._modules) for part in model.modules())


def current() -> Scope | None:
    """The scope of the block around, or `None` outside of one."""
    return _scope.get()
