"""Convolutions, and wide linear layers, on the CPU with weights laid out in advance.

oneDNN wants weights in blocks of its own and PyTorch gives them to it row by row, so that every call lays them out again;
for the small pictures of a latent UNet that is a good part of the whole call. Here they are laid out once for each input
size. Kernels of one pixel become matrix products.

Layouts are used only inside `packed_convolutions()`, and each is compared with its weight when a scope first meets it: a
change of weights between generations is seen, however it came about.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_log = logging.getLogger(__name__)
_SIZES_KEPT = 3  # input sizes a layer remembers; a layout is as large as the weight
_MOST_ROWS = 1024  # of a matrix product: with more, laying the weight out is a small part of it



Scope = set[int]
"""The layers whose layouts were compared with their weights; one a generation."""

_scope: ContextVar[Scope | None] = ContextVar("packed_convolutions", default=None)


class _Layouts:
    """The layouts of one layer's weight, by input size."""

    def __init__(self) -> None:
        self.mark: tuple[Any, ...] = ()
        self.by_size: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()


_layouts: WeakKeyDictionary[nn.Module, _Layouts] = WeakKeyDictionary()


@contextmanager
def packed_convolutions(enabled: bool = True, scope: Scope | None = None) -> Iterator[None]:
    """Let convolutions inside this block, on the CPU and without gradients, use layouts of their own.

    Several blocks may share a `scope`, so that weights are compared once for all of them.
    """
    token = _scope.set((set() if scope is None else scope) if enabled and _works() else None)
    try:
        yield
    finally:
        _scope.reset(token)


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """`layer(x)` by the fast path, or `None` where there is none."""
    scope = _scope.get()
    if scope is None or not _suits(layer, x) or layer.padding_mode != "zeros" or x.ndim != 4 or not len(x):
        return None
    weight = layer.weight
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
    size, places = list(x.shape), (layer.padding, layer.stride, layer.dilation, layer.groups)
    layout = _layout(layer, tuple(size), scope, lambda: torch.ops.mkldnn._reorder_convolution_weight(
        weight.detach(), *places, size))
    return torch.ops.mkldnn._convolution_pointwise(x, layout, layer.bias, *places, "none", [], "")


def project(layer: nn.Linear, x: Tensor) -> Tensor | None:
    """`layer(x)` by the fast path, or `None` where there is none. It pays for wide layers of few tokens."""
    scope = _scope.get()
    rows = x.numel() // max(x.shape[-1], 1)
    if scope is None or not _suits(layer, x) or not 0 < rows <= _MOST_ROWS:
        return None
    layout = _layout(layer, (rows,), scope, lambda: torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows))
    return torch.ops.mkldnn._linear_pointwise(x, layout, layer.bias, "none", [], "")


def _suits(layer: nn.Conv2d | nn.Linear, x: Tensor) -> bool:
    """On the CPU, in single precision, and nobody wants gradients."""
    single = x.dtype is torch.float32 and layer.weight.dtype is torch.float32
    return single and x.device.type == "cpu" and not torch.is_grad_enabled()


def _layout(layer: nn.Module, size: tuple[int, ...], scope: Scope, make: Callable[[], Tensor]) -> Tensor:
    """The layout for an input size, made when first met: rounding must not depend on what was computed before."""
    kept = _layouts.get(layer)
    if kept is None:
        kept = _layouts[layer] = _Layouts()
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if id(layer) not in scope or kept.mark[0] != weight._version:
        mark = _mark(weight)
        if mark != kept.mark:
            kept.by_size.clear()
        kept.mark = mark
        scope.add(id(layer))
    layout = kept.by_size.pop(size, None)
    if layout is None:
        layout = make()
    kept.by_size[size] = layout
    if len(kept.by_size) > _SIZES_KEPT:
        kept.by_size.popitem(last=False)
    return layout


def _mark(weight: Tensor) -> tuple[Any, ...]:
    """What tells a weight from what it was: in-place changes through `.data` leave the version as it is."""
    return weight._version, weight.data_ptr(), float(weight.sum()), float(torch.linalg.vector_norm(weight))


@functools.cache
def _works() -> bool:
    """Whether this build and processor have the operators, and they agree with the plain convolution."""
    if not torch.backends.mkldnn.is_available():
        return False
    own = torch.Generator().manual_seed(0)  # the user's random numbers stay untouched
    x, weight, bias = (torch.randn(*shape, generator=own) for shape in ((2, 16, 8, 8), (16, 16, 3, 3), (16,)))
    arguments = ([1, 1], [1, 1], [1, 1], 1)
    try:
        with torch.no_grad():
            layout = torch.ops.mkldnn._reorder_convolution_weight(weight, *arguments, list(x.shape))
            fast = torch.ops.mkldnn._convolution_pointwise(x, layout, bias, *arguments, "none", [], "")
            agrees = torch.allclose(fast, F.conv2d(x, weight, bias, padding=1), rtol=1e-4, atol=1e-4)
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        _log.info("convolutions run without prepared layouts: %s", str(error).split("\n")[0])
        return False
    if not agrees:
        _log.warning("convolutions run without prepared layouts: on this processor they do not agree with the plain ones")
    return agrees
