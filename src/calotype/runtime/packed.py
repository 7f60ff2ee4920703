"""Convolutions on the CPU with weights prepared in advance.

oneDNN wants weights in blocks of its own and PyTorch gives them to it row by row, so that every call lays them out again;
for the small pictures of a latent UNet that is a good part of the whole call. Here they are laid out once for each input
size. Kernels of one pixel become matrix products, a convolution of a picture whose pixels were all doubled is done on the
picture itself, and kernels of 3 x 3 among many channels go by way of `winograd.py`.

Layouts are used only on the fast path (`scope.py`), and each is compared with its weight when a scope first meets it: a
change of weights between generations is seen, however it came about.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import winograd
from .scope import Scope, current, touched

_log = logging.getLogger(__name__)
_SIZES_KEPT = 3  # input sizes a layer remembers; a layout is as large as the weight


class _Layouts:
    """The layouts of one layer's weight, by what they were made for."""

    def __init__(self) -> None:
        self.mark: tuple[Any, ...] = ()
        self.made: dict[tuple[Any, ...], Tensor] = {}


_layouts: WeakKeyDictionary[nn.Module, _Layouts] = WeakKeyDictionary()


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """`layer(x)` by the fast path, or `None` where there is none."""
    scope = _scope_of(layer, x)
    if scope is None:
        return None
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0):
        return F.linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
    if _plain_3x3(layer) and winograd.pays(layer.in_channels, layer.out_channels, x.shape):
        kernels = _layout(layer, ("winograd",), scope, lambda: winograd.transformed(layer.weight.detach()))
        return winograd.convolve(x, kernels, layer.bias)
    return _convolution(layer, scope, x, layer.bias, "as it is", lambda weight: weight)


def convolve_doubled(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """`layer` on `x` with every pixel repeated in both directions, by the fast path, or `None` where there is none.

    Of the nine pixels that a 3 x 3 kernel sees there, at most four are different ones, which four depending on whether row
    and column are even: four kernels of 2 x 2, whose weights are sums, do with 16 products what takes 36.
    """
    if not isinstance(layer, nn.Conv2d) or touched(layer) or not _plain_3x3(layer):  # it is not called here
        return None
    scope = _scope_of(layer, x)
    if scope is None:
        return None
    bias = None if layer.bias is None else layer.bias.repeat_interleave(4)
    batch, _, height, width = x.shape
    made = _convolution(layer, scope, x, bias, "doubled", lambda weight: _summed(_summed(weight, 2, 1), 4, 2).flatten(0, 2))
    parts = made.view(batch, -1, 2, 2, height + 1, width + 1)  # even and odd rows, even and odd columns
    rows = [torch.stack([parts[:, :, p, q, p : p + height, q : q + width] for q in (0, 1)], -1) for p in (0, 1)]
    return torch.stack(rows, 3).view(batch, -1, 2 * height, 2 * width)


def _summed(kernels: Tensor, dim: int, to: int) -> Tensor:
    """Of the three entries along `dim`, the two that an even pixel sees and the two of an odd one; which, in a new dim `to`."""
    first, second, third = kernels.unbind(dim)
    even, odd = torch.stack([first, second + third], dim), torch.stack([first + second, third], dim)
    return torch.stack([even, odd], to)


def _plain_3x3(layer: nn.Conv2d) -> bool:
    given = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
    return given == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


def marks(layers: Iterable[nn.Module]) -> dict[nn.Module, Any]:
    """What the layouts of `layers` were made for; for `unchanged`."""
    return {layer: _layouts[layer].mark for layer in layers if layer in _layouts}


def unchanged(marks: Mapping[nn.Module, Any]) -> bool:
    """Whether the weights of layers are those of their `marks`."""
    return all(mark == _mark(layer.weight) for layer, mark in marks.items())  # type: ignore[arg-type]


def version(tensor: Tensor) -> int:
    """How often a tensor was written to, as far as PyTorch counts."""
    return 0 if tensor.is_inference() else tensor._version


def _scope_of(layer: nn.Conv2d, x: Tensor) -> Scope | None:
    """The scope to prepare weights in: on the CPU, in single precision, where nobody wants gradients."""
    scope = current()
    if scope is None or x.device.type != "cpu" or torch.is_grad_enabled() or layer.padding_mode != "zeros":
        return None
    single = x.dtype is torch.float32 and layer.weight.dtype is torch.float32
    fits = x.ndim == 4 and len(x) and x.shape[1] == layer.in_channels and not isinstance(layer.padding, str)
    return scope if single and fits and _works() else None


def _convolution(
    layer: nn.Conv2d, scope: Scope, x: Tensor, bias: Tensor | None, kind: str, prepared: Callable[[Tensor], Tensor]
) -> Tensor:
    size, places = list(x.shape), (layer.padding, layer.stride, layer.dilation, layer.groups)
    # the best layout depends on the number of threads too, and any other would be laid out anew in every call
    layout = _layout(layer, (kind, *size, torch.get_num_threads()), scope, lambda: (
        torch.ops.mkldnn._reorder_convolution_weight(prepared(layer.weight.detach()), *places, size)))
    return torch.ops.mkldnn._convolution_pointwise(x, layout, bias, *places, "none", [], "")


def _layout(layer: nn.Module, key: tuple[Any, ...], scope: Scope, make: Callable[[], Tensor]) -> Tensor:
    """The layout for `key`, made when first met: rounding must not depend on what was computed before."""
    kept = _layouts.get(layer)
    if kept is None:
        kept = _layouts[layer] = _Layouts()
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if layer not in scope or kept.mark[0] != version(weight):
        mark = _mark(weight)
        if mark != kept.mark:
            kept.made = {}
        kept.mark = mark
        scope.add(layer)
    made = kept.made
    layout = made.get(key)
    if layout is None:
        layout = make()
        if len(made) >= _SIZES_KEPT:
            made.pop(next(iter(made)), None)
        made[key] = layout
    return layout


def _mark(weight: Tensor) -> tuple[Any, ...]:
    """What tells a weight from what it was: in-place changes through `.data` leave the version as it is."""
    return version(weight), weight.data_ptr(), float(weight.sum()), float(torch.linalg.vector_norm(weight))


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
