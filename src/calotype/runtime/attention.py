"""Which kernel computes attention: the quickest that can, or one by name."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from ..words import check_choice
from .scope import current

BACKENDS = ("auto", "native", "cudnn", "flash", "efficient", "math", "xformers")
"""`native` is PyTorch's own choice. `auto` is that, but on the fast path of a GPU the first of a list that takes the shape."""

_KINDS = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, backend: str = "auto") -> Tensor:
    """softmax(query · keyᵀ / sqrt(d) + mask) · value.

    Args:
        query: [B, heads, N, d]. key, value: [B, heads, L, d]. mask: added to the scores, broadcast to [B, heads, N, L].
        backend: one of `BACKENDS`.

    Raises:
        RuntimeError: the back end does not take these shapes, this type or this device; PyTorch says why.
    """
    if backend == "auto" and (current() is None or not query.is_cuda or mask is not None):
        backend = "native"
    if backend == "native":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    if backend == "xformers":
        return _xformers(query, key, value, mask)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = _preference(query.device) if backend == "auto" else (backend,)
    with sdpa_kernel([getattr(SDPBackend, _KINDS[name]) for name in names], set_priority=True):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def check_backend(name: str) -> str:
    """`name`, or what its private spelling in Diffusers (`_native_flash`) means here.

    Raises:
        ValueError: no such back end.
        ModuleNotFoundError: xformers is wanted and not installed.
    """
    name = name.removeprefix("_native_")
    check_choice("attention backend", name, BACKENDS)
    if name == "xformers" and importlib.util.find_spec("xformers") is None:
        raise ModuleNotFoundError("the attention backend 'xformers' needs the package xformers, which is not installed")
    return name


def usable(device: torch.device | str) -> dict[str, bool]:
    """For every back end by name, whether it computes a small attention on `device`, in the type that is usual there."""
    device = torch.device(device)
    kind = torch.float16 if device.type == "cuda" else torch.float32
    one = torch.zeros(1, 1, 16, 64, device=device, dtype=kind)

    def works(name: str) -> bool:
        try:
            return attend(one, one, one, backend=check_backend(name)).shape == one.shape
        except (RuntimeError, ImportError, NotImplementedError, ValueError):
            return False

    return {name: works(name) for name in BACKENDS}


@functools.cache
def _preference(device: torch.device) -> tuple[str, ...]:
    """cuDNN's kernels are the quickest on Hopper and later for the heads of 40 to 160 channels that these models have."""
    hopper = torch.cuda.get_device_capability(device) >= (9, 0)
    return ("cudnn", "flash", "efficient", "math") if hopper else ("flash", "efficient", "cudnn", "math")


def _xformers(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    from xformers.ops import memory_efficient_attention

    shape = (*query.shape[:2], query.shape[2], key.shape[2])
    seen = memory_efficient_attention(*(part.transpose(1, 2) for part in (query, key, value)),
                                      attn_bias=None if mask is None else mask.expand(shape))
    return seen.transpose(1, 2)
