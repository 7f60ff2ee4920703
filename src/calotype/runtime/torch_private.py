"""What PyTorch (and Accelerate) do not promise to keep: every such name that the library uses stands here.

Each is looked up when it is first used, and has something to fall back on where a release no longer has it: an own way to
the same result, or the answer that makes its caller take the plain path. Importing this module uses none of them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)


@functools.cache
def _missing(name: str, instead: str) -> None:
    """Tell once that a name is gone."""
    _log.warning("this release of PyTorch (%s) has no %s: %s", torch.__version__, name, instead)


# -- who looks on while a module is called -------------------------------------------------------------------------------


def hooked_everywhere() -> bool:
    """Whether hooks were registered for all modules."""
    try:
        return bool(nn.modules.module._has_any_global_hook())
    except AttributeError:
        _missing("nn.modules.module._has_any_global_hook", "nothing is recorded or remembered")
        return True


FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_UNKNOWN_HOOKS = {"unknown": True}


def hooks_of(module: nn.Module) -> list[dict[Any, Any]]:
    """The dictionaries in which a module has the hooks that are told of its calls, or change what goes in or comes out."""
    return [vars(module).get(name, _UNKNOWN_HOOKS) for name in FORWARD_HOOKS]


def remove_hooks(module: nn.Module, which: str, unwanted: Callable[[Any], bool]) -> None:
    """Remove the hooks that are `unwanted` from one of `FORWARD_HOOKS` of a module."""
    hooks = getattr(module, which, {})
    for key, hook in list(hooks.items()):
        if unwanted(hook):
            del hooks[key]


def compiled_in_place(module: nn.Module) -> bool:
    """Whether `module.compile()` was called."""
    return getattr(module, "_compiled_call_impl", None) is not None


def dispatch_modes() -> int:
    """How many `TorchDispatchMode`s look at operators."""
    try:
        return int(torch._C._len_torch_dispatch_stack())
    except AttributeError:
        _missing("_C._len_torch_dispatch_stack", "fused kernels are not used, and nothing is recorded")
        return 1


def function_modes() -> int:
    """How many `TorchFunctionMode`s look at functions."""
    try:
        return int(torch._C._len_torch_function_stack())
    except AttributeError:
        _missing("_C._len_torch_function_stack", "nothing is recorded")
        return 1


def transformed_or_traced() -> bool:
    """Whether `torch.func`, forward-mode differentiation or `torch.jit.trace` is at work."""
    try:
        from torch.autograd import forward_ad

        return bool(torch._C._is_tracing() or torch._C._functorch.maybe_current_level() is not None
                    or forward_ad._current_level >= 0)
    except AttributeError:
        _missing("way to tell functional transforms", "gradients of convolutions are PyTorch's own")
        return True


# -- below autograd ------------------------------------------------------------------------------------------------------


def composite_key() -> Any:
    """The dispatch key of operations that are made of others; `None` where they cannot be taken apart."""
    key = getattr(getattr(torch._C, "DispatchKey", None), "CompositeImplicitAutograd", None)
    if key is None or not hasattr(torch._C, "_dispatch_has_kernel_for_dispatch_key"):
        _missing("_C.DispatchKey.CompositeImplicitAutograd", "calls on the CPU are not recorded")
        return None
    return key


def is_composite(operator: Any, key: Any) -> bool:
    """Whether `operator` is made of others under a `composite_key`."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), key))


def run_composite(operator: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
    """What `operator` does, by the operations that it is made of. `decompose` would prefer a slower way, meant for compilers."""
    by_key = getattr(operator, "_op_dk", None)
    return operator.decompose(*args, **kwargs) if by_key is None else by_key(key, *args, **kwargs)


def version(tensor: Tensor) -> int:
    """How often a tensor was written to, as far as PyTorch counts: not by fused optimisers, and not through `.data`."""
    return 0 if tensor.is_inference() else int(getattr(tensor, "_version", 0))


def raise_version(tensor: Tensor) -> None:
    """Have autograd notice that `tensor` was written to in a way that it does not see."""
    increment = getattr(torch.autograd.graph, "increment_version", None)
    if increment is not None and not tensor.is_inference():
        increment(tensor)


# -- several tensors at once -----------------------------------------------------------------------------------------------


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source to its target, in one operation where that is possible."""
    together = getattr(torch, "_foreach_copy_", None)
    if together is not None:
        together(list(targets), list(sources))
    else:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)


def lerp_each(targets: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Move each target towards its end by a share of the way, in place."""
    together = getattr(torch, "_foreach_lerp_", None)
    if together is not None:
        together(list(targets), list(ends), weight)
    else:
        for target, end in zip(targets, ends, strict=True):
            target.lerp_(end, weight)


# -- oneDNN's layouts --------------------------------------------------------------------------------------------------------


def onednn_layout(weight: Tensor, padding: Any, stride: Any, dilation: Any, groups: int, size: Sequence[int]) -> Tensor:
    """A convolution's weight as oneDNN wants it for inputs of `size`.

    Raises:
        AttributeError, RuntimeError: this build has no such operator.
    """
    made: Tensor = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, stride, dilation, groups, size)
    return made


def onednn_convolution(
    x: Tensor, layout: Tensor, bias: Tensor | None, padding: Any, stride: Any, dilation: Any, groups: int
) -> Tensor:
    """The convolution of `x` by a weight in the layout of `onednn_layout`.

    Raises:
        AttributeError, RuntimeError: this build has no such operator.
    """
    made: Tensor = torch.ops.mkldnn._convolution_pointwise(x, layout, bias, padding, stride, dilation, groups, "none", [], "")
    return made


def onednn_convolution_operator() -> Any:
    """The operator behind `onednn_convolution`, as graphs name it."""
    return torch.ops.mkldnn._convolution_pointwise.default


# -- the compiler ----------------------------------------------------------------------------------------------------------


def inductor() -> tuple[Callable[..., Any], Any]:
    """`standalone_compile`, and the class of what it makes, which can be saved and loaded.

    Raises:
        ImportError: this release has none.
    """
    from torch._inductor import standalone_compile
    from torch._inductor.standalone_compile import CompiledArtifact

    return standalone_compile, CompiledArtifact


@contextmanager
def inductor_headers_in(folder: Path) -> Iterator[None]:
    """A block in which headers that inductor compiles ahead lie in `folder`; where that cannot be said, there are none.

    By itself it has them in a folder that is fixed when it is imported, and that is never the one that it is told.
    """
    from torch._inductor import codecache, config  # where PyTorch makes its usual folder, if it is told none

    names = {"_HEADER_DIR": str(folder), "_HEADER_LOCK_DIR": str(folder / "locks")}
    module = vars(codecache)
    if not names.keys() <= module.keys():
        known = hasattr(config, "cpp_cache_precompile_headers")
        with config.patch(cpp_cache_precompile_headers=False) if known else nullcontext():
            yield
        return
    before = {name: module[name] for name in names}
    module.update(names)
    try:
        compiled: Any = module.get("_precompile_header")
        if hasattr(compiled, "cache_clear"):
            compiled.cache_clear()  # it may know some in the shared folder
        yield
    finally:
        module.update(before)


# -- Accelerate ------------------------------------------------------------------------------------------------------------


def forget_other_precision(mixed_precision: str) -> None:
    """Let the next `Accelerator` of this process have this precision, whatever one before it had."""
    from accelerate.state import AcceleratorState

    known = getattr(AcceleratorState, "_shared_state", None)
    if known and AcceleratorState().mixed_precision != mixed_precision:
        reset = getattr(AcceleratorState, "_reset_state", known.clear)
        reset()
