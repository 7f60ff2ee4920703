"""Group norm with SiLU, gated GELU, a sum with its layer norm: by one kernel on a GPU, by PyTorch's operators elsewhere.

The kernels (`triton_kernels`) are used inside `scope.fast_path()`, on a GPU, without gradients or autocast, in float16, bfloat16
or float32, for tensors that lie in memory as the models make them, and for norms that are just what they say: no hooks, weights
in the same place and precision. Everything else gets the plain operators, and so does a device where a kernel is wrong: each
is compared with them once, at its first use in a precision. `check` does that ahead of time, for CUDA graphs: nothing can be
compared while one is captured, and an unknown kernel is not used then.

With TRITON_INTERPRET=1 in the environment, Triton runs kernels on the CPU, and they are used there too. That is for tests.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .private_folders import keep_triton_private
from .scope import current
from .structure import Originals, called_plainly
from .torch_private import dispatch_modes

_log = logging.getLogger(__name__)
_INSTEAD_OF = Originals((nn.GroupNorm, "forward"), (nn.LayerNorm, "forward"), (nn.SiLU, "forward"), (F, "group_norm"),
                        (F, "layer_norm"), (F, "silu"), (F, "gelu"))
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_MOST_CHANNELS = 8192  # of a row, or a group, that one program holds

_TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""How far a kernel may be from the plain operators in float32, absolutely and relatively: a few units in the last place."""

_verdicts: dict[tuple[str, torch.device, torch.dtype], bool] = {}
_lock = threading.Lock()


def norm_silu(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None = None) -> Tensor:
    """silu(norm(x + shift)) of `x` [B, C, ...], with `shift` [B or 1, C] the same for all positions.

    The kernel keeps the layout of `x` (contiguous, or channels last); the plain operators choose for themselves.
    """
    fast = _group_norm(norm, x, shift, silu=True)
    if fast is not None:
        return fast
    return F.silu(norm(x if shift is None else x + shift.reshape(shift.shape + (1,) * (x.ndim - 2))))


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """norm(x) of `x` [B, C, ...]. The kernel keeps the layout of `x` (contiguous, or channels last)."""
    fast = _group_norm(norm, x, None, silu=False)
    return norm(x) if fast is None else fast


def gated(wide: Tensor) -> Tensor:
    """value · gelu(gate) [..., C] of the halves of `wide` [..., 2C] (GEGLU, Shazeer 2020)."""
    if _may_use(wide) and wide.is_contiguous() and wide.ndim and wide.shape[-1] % 2 == 0 and _agrees("gated", wide):
        return _kernels().gated(wide)
    return _plain_gated(wide)


def add_norm(x: Tensor, delta: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """(x + delta, norm(x + delta)) of two tensors [..., C]."""
    suits = (
        _may_use(x) and x.is_contiguous() and delta.is_contiguous() and x.shape == delta.shape and _same_kind(x, delta)
        and norm.normalized_shape == x.shape[-1:] and x.shape[-1] <= _MOST_CHANNELS and _fits(norm, nn.LayerNorm, x)
    )
    if suits and _agrees("add_norm", x):
        return _kernels().add_norm(x, delta, norm.weight, norm.bias, norm.eps)
    total = x + delta
    return total, norm(total)


def check(device: torch.device | str, dtype: torch.dtype) -> bool:
    """Compare every kernel with the plain operators on a device, in a precision; whether all may be used there.

    What was compared before is not compared again. Call it before a CUDA graph is captured.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if not (_INTERPRETED or device.type == "cuda") or dtype not in _TOLERANCES:
        return False
    one = torch.empty(1, device=device, dtype=dtype)
    verdicts = [_agrees(kernel, one) for kernel in _CASES]
    return all(verdicts)


def _group_norm(norm: nn.GroupNorm, x: Tensor, shift: Tensor | None, silu: bool) -> Tensor | None:
    """By the kernel, or `None` where it cannot be used."""
    suits = (
        _may_use(x) and x.ndim > 1 and x.shape[1] == norm.num_channels and _fits(norm, nn.GroupNorm, x)
        and norm.num_channels // norm.num_groups <= _MOST_CHANNELS
        and (norm.weight is None) == (norm.bias is None)
        and (x.is_contiguous() or x.movedim(1, -1).is_contiguous())
        and (shift is None or (_same_kind(x, shift) and shift.shape in (x.shape[:2], (1, x.shape[1]))))
    )
    if not suits or not _agrees("group_norm", x):
        return None
    return _kernels().group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, shift, silu)


def _may_use(x: Tensor) -> bool:
    """Whether kernels are wanted here, and might take such a tensor.

    Who looks at operators (a compiler, which fuses them itself; a recorder; a counter of products) sees the plain ones.
    """
    return (
        not torch.compiler.is_compiling() and not dispatch_modes() and current() is not None
        and (x.is_cuda or _INTERPRETED) and not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)
        and type(x) is Tensor and x.dtype in _TOLERANCES and x.numel() > 0 and _INSTEAD_OF.are_in_place()
    )


def _same_kind(x: Tensor, other: Tensor) -> bool:
    return other.dtype == x.dtype and other.device == x.device and type(other) in (Tensor, nn.Parameter)


def _fits(norm: nn.GroupNorm | nn.LayerNorm, kind: type[nn.Module], x: Tensor) -> bool:
    """Nobody has put anything in its place or on it, and its weights are where `x` is."""
    return type(norm) is kind and called_plainly(norm) and all(
        weight is None or (_same_kind(x, weight) and weight.is_contiguous()) for weight in (norm.weight, norm.bias))


def _agrees(kernel: str, x: Tensor) -> bool:
    """Whether a kernel may be used for tensors like `x`."""
    key = kernel, x.device, x.dtype
    verdict = _verdicts.get(key)
    if verdict is None:
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        with _lock:
            verdict = _verdicts.get(key)
            if verdict is None:
                verdict = _verdicts[key] = _compare(*key)
    return verdict


def _compare(kernel: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Run a kernel on small inputs and compare it with the plain operators in float32."""
    if not _importable():
        return False
    own = torch.Generator().manual_seed(0)  # the user's random numbers stay untouched

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=own).to(device, dtype)

    bound = _TOLERANCES[dtype]
    try:
        with torch.no_grad():
            agrees = all(
                torch.allclose(fast.float(), plain, rtol=bound, atol=bound) for fast, plain in _CASES[kernel](draw))
    except Exception as error:  # compilers and drivers raise what they like
        _log.info("%s runs by PyTorch's operators on %s in %s: %s", kernel, device, dtype, str(error).strip().split("\n")[0])
        return False
    if not agrees:
        _log.warning("%s runs by PyTorch's operators: in %s on %s the kernel does not agree with them", kernel, dtype, device)
    return agrees


Draw = Callable[..., Tensor]
Pairs = Iterator[tuple[Tensor, Tensor]]


def _group_norm_cases(draw: Draw) -> Pairs:
    """Small groups and groups of more values than one program takes; either layout; with everything and with nothing."""
    for height, width, channels, groups in ((5, 7, 20, 2), (23, 23, 66, 2)):
        weight, bias, shift = draw(channels) + 1, draw(channels), draw(2, channels)
        for last in (True, False):
            x = 2 * draw(2, channels, height, width) + 3
            x = x.to(memory_format=torch.channels_last) if last else x
            fast = _kernels().group_norm(x, groups, weight, bias, 1e-5, shift if last else None, last)
            moved = x.float() + shift.float()[..., None, None] if last else x.float()
            plain = F.group_norm(moved, groups, weight.float(), bias.float(), 1e-5)
            yield fast, F.silu(plain) if last else plain


def _gated_cases(draw: Draw) -> Pairs:
    wide = 2 * draw(9, 2 * 257)
    yield _kernels().gated(wide), _plain_gated(wide.float())


def _add_norm_cases(draw: Draw) -> Pairs:
    x, delta, weight, bias = 2 * draw(5, 320) + 3, draw(5, 320), draw(320) + 1, draw(320)
    total, normed = _kernels().add_norm(x, delta, weight, bias, 1e-5)
    plain = x.float() + delta.float()
    yield total, plain
    yield normed, F.layer_norm(plain, (320,), weight.float(), bias.float(), 1e-5)


_CASES: dict[str, Callable[[Draw], Pairs]] = {
    "group_norm": _group_norm_cases, "gated": _gated_cases, "add_norm": _add_norm_cases,
}


def _plain_gated(wide: Tensor) -> Tensor:
    value, gate = wide.chunk(2, dim=-1)
    return value * F.gelu(gate)


def _kernels() -> ModuleType:
    from . import triton_kernels
    return triton_kernels


@functools.cache
def _importable() -> bool:
    """Whether Triton is there; said once, not for each kernel."""
    try:
        _kernels()
        keep_triton_private()
    except Exception as error:  # a broken installation raises more than ImportError
        _log.info("norms and gates run by PyTorch's operators, without Triton: %s", str(error).split("\n")[0])
        return False
    return True
