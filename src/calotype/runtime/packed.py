"""Convolutions on the CPU with weights prepared in advance.

oneDNN wants weights in blocks of its own and PyTorch gives them to it row by row, so that every call lays them out again;
for the small latents of a UNet that is a good part of the whole call. Here they are laid out once. Kernels of one pixel become
matrix products, and kernels of 3 x 3 among many channels go by way of `winograd.py`.

A layer has one prepared weight at a time, for all input sizes, and it goes with the layer; `release` drops it. It is used on the
fast path alone (`scope.py`), by layers that do just what their class says, and each is compared with the weight that it was made
from when a scope first meets it: by sums over its values (`weight_sums.py`), since nothing else tells how a weight was changed.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import winograd
from .scope import Scope, current
from .structure import Originals
from .torch_private import onednn_convolution, onednn_layout, version
from .weight_sums import weight_sums

_CONV_FORWARD = nn.Conv2d._conv_forward
_CALLED = Originals((nn.Conv2d, "forward"), (nn.Conv2d, "_conv_forward"), (F, "conv2d"), (F, "linear"))
PREPARE = True  # without, convolutions go PyTorch's way: for benchmarks
_log = logging.getLogger(__name__)


@dataclass
class _Prepared:
    """A layer's prepared weight, for what it was made, and what tells the weight that it was made from."""

    kind: Any
    weight: Tensor
    place: tuple[Any, ...]
    sums: Tensor


_prepared: WeakKeyDictionary[nn.Module, _Prepared] = WeakKeyDictionary()
_lock = threading.RLock()  # a dictionary that one thread goes through must not be changed by another


def convolve(layer: nn.Conv2d, x: Tensor) -> Tensor | None:
    """`layer(x)` by the fast path, or `None` where there is none."""
    scope = _scope_of(layer, x)
    if scope is None:
        return None
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1 and layer.padding == (0, 0):
        return F.linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
    if _plain_3x3(layer) and winograd.pays(layer.in_channels, layer.out_channels, x.shape):
        kernels = _weight(layer, "winograd", scope, lambda weight: winograd.transformed(weight))
        return winograd.convolve(x, kernels, layer.bias)
    options = layer.padding, layer.stride, layer.dilation, layer.groups
    # The best layout depends on the number of threads, and any other would be laid out anew in every call.
    layout = _weight(layer, (*options, torch.get_num_threads()), scope,
                     lambda weight: onednn_layout(weight, *options, list(x.shape)))
    return onednn_convolution(x, layout, layer.bias, *options)


def is_plain(layer: nn.Conv2d) -> bool:
    """Whether nobody has put other functions in place of those that a convolution calls: of this layer, its class or PyTorch."""
    return ("_conv_forward" not in vars(layer) and type(layer)._conv_forward is _CONV_FORWARD and _CALLED.are_in_place())


def sums_of(layers: Iterable[nn.Module]) -> dict[nn.Module, Tensor]:
    """What tells the weights that the prepared ones of `layers` were made from; for `unchanged`."""
    with _lock:
        return {layer: _prepared[layer].sums for layer in layers if layer in _prepared}


def unchanged(sums: Mapping[nn.Module, Tensor]) -> bool:
    """Whether the weights of layers have the values that they had when their `sums_of` were taken."""
    return all(torch.equal(known, weight_sums(layer.weight)) for layer, known in sums.items())  # type: ignore[arg-type]


def release(model: nn.Module) -> None:
    """Drop the prepared weights of all layers of a model. They are made again when they are needed."""
    with _lock:
        for part in model.modules():
            _prepared.pop(part, None)


def prepared_bytes(model: nn.Module) -> int:
    """How much memory the prepared weights of a model take."""
    with _lock:
        return sum(each.weight.numel() * each.weight.element_size() for part in model.modules()
                   if (each := _prepared.get(part)) is not None)


def _plain_3x3(layer: nn.Conv2d) -> bool:
    given = layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups
    return given == ((3, 3), (1, 1), (1, 1), (1, 1), 1)


def _scope_of(layer: nn.Conv2d, x: Tensor) -> Scope | None:
    """The scope to prepare weights in: on the CPU, in single precision, where nobody wants gradients."""
    scope = current()
    if scope is None or x.device.type != "cpu" or torch.is_grad_enabled() or layer.padding_mode != "zeros":
        return None
    single = x.dtype is torch.float32 and layer.weight.dtype is torch.float32
    fits = x.ndim == 4 and len(x) and x.shape[1] == layer.in_channels and not isinstance(layer.padding, str)
    return scope if PREPARE and single and fits and is_plain(layer) and _works() else None


def _weight(layer: nn.Module, kind: Any, scope: Scope, make: Callable[[Tensor], Tensor]) -> Tensor:
    """The layer's weight, prepared by `make` when it is first met, or was made for another `kind` or from other values."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    place = weight.data_ptr(), weight.shape, weight.stride(), version(layer.weight)  # type: ignore[arg-type]
    with _lock:
        found = _prepared.get(layer)
        current_one = found is not None and found.place == place and (
            layer in scope or torch.equal(found.sums, weight_sums(weight)))
        if found is None or not current_one or found.kind != kind:
            sums = found.sums if found is not None and current_one else weight_sums(weight)
            found = _prepared[layer] = _Prepared(kind, make(weight), place, sums)
        scope.add(layer)
        return found.weight


@functools.cache
def _works() -> bool:
    """Whether this build and processor have the operators, and they agree with the plain convolution."""
    if not torch.backends.mkldnn.is_available():
        return False
    own = torch.Generator().manual_seed(0)  # the user's random numbers stay untouched
    x, weight, bias = (torch.randn(*shape, generator=own) for shape in ((2, 16, 8, 8), (16, 16, 3, 3), (16,)))
    try:
        with torch.no_grad():
            layout = onednn_layout(weight, [1, 1], [1, 1], [1, 1], 1, list(x.shape))
            fast = onednn_convolution(x, layout, bias, [1, 1], [1, 1], [1, 1], 1)
            agrees = torch.allclose(fast, F.conv2d(x, weight, bias, padding=1), rtol=1e-4, atol=1e-4)
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        _log.info("convolutions run without prepared layouts: %s", str(error).split("\n")[0])
        return False
    if not agrees:
        _log.warning("convolutions run without prepared layouts: on this processor they do not agree with the plain ones")
    return agrees
