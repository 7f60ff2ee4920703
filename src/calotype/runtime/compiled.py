"""A function's operations on tensors, compiled: what stands between convolutions and matrix products becomes one kernel.

A `Tape` and a CUDA graph repeat operations as they are; PyTorch's inductor fuses them, which takes it up to a minute. It is given
a graph that reads everything from its inputs, weights too, so that the compiled code depends on shapes alone: it is kept in a
private folder (`private_folders`), for other weights of these shapes and for other processes of this user.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .private_folders import Untrusted, compilers_kept_private, folder, read
from .tape import CannotRecord
from .torch_private import inductor, onednn_convolution, onednn_convolution_operator

_log = logging.getLogger(__name__)
_FURTHEST = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far the compiled result may be from the plain one, of its size."""


class Compiled:
    """`function()`, compiled from the operations of one call of it.

    Tensors that it reads and has not made are read again in every replay, where they are in memory. Its decisions in Python stay
    as they were in the first call.

    Raises:
        CannotRecord: it draws random numbers, which compiled code would draw in another way; or the compiled result is not the
            plain one.
        Exception: whatever the compiler says; a C++ compiler is missing, say.
    """

    def __init__(self, function: Callable[[], Tensor]):
        expected = function()
        with compilers_kept_private():
            graph, self._given, self._layouts = _traced(function)
            self._run = _compiled(graph, self._given)
            apart = float((self.replay() - expected).norm() / expected.norm())
        if not apart <= _FURTHEST.get(expected.dtype, 0.0):
            raise CannotRecord(f"compiled, it is {apart:.0e} away from the plain result")

    def replay(self) -> Tensor:
        """What `function()` would return now."""
        token = _layouts.set(self._layouts)
        try:
            result: Tensor = self._run(*self._given)[0]
            return result
        finally:
            _layouts.reset(token)


# -- tracing ------------------------------------------------------------------------------------------------------------


def _traced(function: Callable[[], Tensor]) -> tuple[GraphModule, list[Tensor], list[Tensor]]:
    """The operations of `function()` as a graph of tensors that are given; those; and oneDNN's layouts in it."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.random.fork_rng():
        before = _random_states()
        traced = make_fx(lambda: (function(),))()
        if not all(map(torch.equal, before, _random_states())):
            raise CannotRecord("it draws random numbers")
    for node in traced.graph.nodes:  # the compiler need not lay tensors out as they were, and then a view may not do
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default
    layouts = _replace_layouts(traced)
    given = _lift(traced)
    return GraphModule({}, traced.graph), given, layouts


def _random_states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def _lift(traced: GraphModule) -> list[Tensor]:
    """Make an input of every tensor that the graph holds, and return them in order."""
    graph, given = traced.graph, dict[int, tuple[Tensor, Node]]()
    start: Node = next(iter(graph.nodes))
    with graph.inserting_before(start):
        start = graph.call_function(tuple)  # stays the first while others come and go
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(traced, node.target)
        if id(tensor) not in given:
            with graph.inserting_before(start):
                given[id(tensor)] = tensor, graph.placeholder(f"given_{len(given)}")
        node.replace_all_uses_with(given[id(tensor)][1])
        graph.erase_node(node)
    graph.erase_node(start)
    return [tensor.detach() for tensor, _ in given.values()]


# -- oneDNN's layouts ----------------------------------------------------------------------------------------------------

_layouts: ContextVar[Sequence[Tensor]] = ContextVar("layouts")


def _replace_layouts(traced: GraphModule) -> list[Tensor]:
    """Take oneDNN's layouts out of a graph: a compiler cannot look at them. Their convolutions are told a number instead."""
    layouts, convolution = list[Tensor](), onednn_convolution_operator()
    for node in [node for node in traced.graph.nodes if node.target is convolution]:
        x, layout, *others = node.args
        made = node.meta["val"]
        told = x, len(layouts), *others[:5], list(made.shape), list(made.stride())
        with traced.graph.inserting_before(node):
            instead = traced.graph.call_function(torch.ops.calotype.convolution.default, told)
        layouts.append(getattr(traced, layout.target))
        node.replace_all_uses_with(instead)
        traced.graph.erase_node(node)
        traced.graph.erase_node(layout)
    return layouts


def _convolve(x: Tensor, layout: int, bias: Tensor | None, padding: list[int], stride: list[int], dilation: list[int],
              groups: int, size: list[int], strides: list[int]) -> Tensor:
    """oneDNN's convolution by a layout that is known by its number."""
    made = onednn_convolution(x, _layouts.get()[layout], bias, padding, stride, dilation, groups)
    return made if made.stride() == tuple(strides) else made.new_empty_strided(size, strides).copy_(made)


def _told(x: Tensor, layout: int, bias: Tensor | None, padding: list[int], stride: list[int], dilation: list[int],
          groups: int, size: list[int], strides: list[int]) -> Tensor:
    return x.new_empty_strided(size, strides)


_library = torch.library.Library("calotype", "FRAGMENT")
_library.define("convolution(Tensor x, int layout, Tensor? bias, int[] padding, int[] stride, int[] dilation, int groups, "
                "int[] size, int[] strides) -> Tensor", tags=(torch.Tag.needs_fixed_stride_order,))
_library.impl("convolution", _convolve, "CPU")
_library.impl("convolution", _told, "Meta")


# -- compiling -----------------------------------------------------------------------------------------------------------


def _compiled(graph: GraphModule, given: Sequence[Tensor]) -> Callable[..., Any]:
    """Compiled code for a graph, from the folder where it is known, if nobody else can have put it there."""
    standalone_compile, kind = inductor()
    kept = folder("compiled")
    path = None if kept is None else kept / f"{_key(graph.code, given)}.bin"
    if path is not None and os.path.lexists(path):
        try:
            return _load(kind, read(path))
        except Untrusted as error:
            _log.warning("compiled code is not used, and made anew: %s", error)
        except Exception as error:  # of another build, or damaged
            _log.info("%s cannot be used, and is made anew: %s", path, str(error).split("\n")[0])
    started = time.monotonic()
    artifact = standalone_compile(graph, list(given), dynamic_shapes="from_example_inputs")
    _log.info("compiled in %.0f s", time.monotonic() - started)
    try:
        if path is not None:
            _save(artifact, path)
    except Exception as error:  # a disk that is full, or code that cannot be kept
        _log.info("compiled code is not kept: %s", str(error).split("\n")[0])
    return artifact


def _load(kind: Any, content: bytes) -> Callable[..., Any]:
    """Compiled code from the bytes that were checked: PyTorch opens a file by name, so it gets one that was not there before."""
    with tempfile.TemporaryDirectory(prefix="calotype-") as scratch:  # this user's alone, by a name that cannot be guessed
        copy = Path(scratch) / "code.bin"
        copy.write_bytes(content)
        loaded: Callable[..., Any] = kind.load(path=str(copy), format="binary")
        return loaded


def _save(artifact: Any, path: Path) -> None:
    """Write compiled code into a private folder, for this user alone; whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        artifact.save(path=str(made), format="binary")
        made.chmod(0o600)
        os.replace(made, path)


def _key(code: str, given: Sequence[Tensor]) -> str:
    """What compiled code depends on, as a name."""
    devices = {tensor.device for tensor in given if tensor.is_cuda}
    said = [code, torch.__version__, platform.python_version(), platform.machine(), torch.backends.cpu.get_cpu_capability(),
            torch.get_num_threads(), sorted(str(torch.cuda.get_device_properties(device)) for device in devices),
            [(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device) for tensor in given]]
    return hashlib.sha256(repr(said).encode()).hexdigest()[:32]
