"""A model's call, recorded once and replayed in every further step of a generation, and of later ones like it.

On a GPU the recording is a CUDA graph: one launch instead of a thousand. On the CPU it is a `Tape`. Either repeats what
was done on the very same memory, so sample, text and time are copied to where the recording reads them. What cannot be
repeated, or has changed since, runs as usual. A model with `compiled_steps` has its call compiled first.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from . import packed
from .compiled import Compiled
from .cuda_graph import CudaGraph, prepared
from .offload import in_parts
from .scope import Scope, current, watched
from .tape import Tape

_log = logging.getLogger(__name__)
_KEPT = 4  # recordings a model: each has activations of its own on a GPU
_CALLS_BEFORE = {"cpu": 6, "cuda": 1}  # a recording takes about as long as one to two calls, and saves a tenth of each there


class Condition(Protocol):
    """What a model is told beside the sample, and what its layers have made of it."""

    key: Any
    """What a recording depends on, beside the model and the sample."""
    ready: bool
    """Whether layers have made what they make of it."""

    def fixed(self) -> Condition:
        """A copy of this in memory of its own."""

    def update(self, other: Any) -> None:
        """Take over what `other` says, in the same memory."""


class Time(Condition, Protocol):
    """A condition that a call may leave something in."""

    def receive(self, other: Any) -> None:
        """Take over what a call has left in `other`."""


class Recordings:
    """The recordings of one model, by what its inputs look like. They stay with this very object, and are never saved."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: dict[Any, int | None] = {}  # so far; `None` where nothing can be recorded
        self.by_inputs: OrderedDict[Any, _Recording] = OrderedDict()

    def __deepcopy__(self, memo: Any) -> Recordings:
        return Recordings()

    def __reduce__(self) -> Any:
        return Recordings, ()


def call(model: nn.Module, sample: Tensor, time: Any, text: Any = None) -> Tensor:
    """What `model(sample, time[, text])` predicts, from a recording where there is one or one can be made.

    Args:
        model: a network whose forward takes these, and `return_dict`.
        sample: [B, C, H, W].
        time, text: a `Condition` each, kept for a generation; or whatever else the model takes, and then nothing is recorded.
    """
    scope, device = current(), sample.device.type
    if (scope is None or torch.is_grad_enabled() or torch.is_autocast_enabled(device) or device not in _CALLS_BEFORE
            or in_parts(model) or not all(condition is None or hasattr(condition, "fixed") for condition in (time, text))):
        return _predict(model, sample, time, text)
    kept: Recordings = vars(model).setdefault("_recordings", Recordings())
    if not kept.lock.acquire(blocking=False):  # another thread's generation is in the middle of a call
        return _predict(model, sample, time, text)
    try:
        key = (sample.shape, sample.dtype, sample.device, time.key, text and text.key, model.training,
               torch.get_num_threads(), torch.is_inference_mode_enabled())
        recording = kept.by_inputs.get(key)
        if recording is not None and not recording.serves(model, scope):
            recording = kept.by_inputs.pop(key) and None
        if recording is None:
            recording = _recorded(kept, key, model, sample, time, text, scope)
        return _predict(model, sample, time, text) if recording is None else recording(sample, time, text)
    finally:
        kept.lock.release()


def _recorded(
    kept: Recordings, key: Any, model: nn.Module, sample: Tensor, time: Time, text: Condition | None, scope: Scope
) -> _Recording | None:
    """A new recording for these inputs, once they were seen often enough and if there can be one."""
    calls = kept.calls.get(key, 0)
    if calls is None or watched(model, sample.is_cuda):
        return None
    kept.calls[key] = calls + 1
    before = 1 if _compiles(model) else _CALLS_BEFORE[sample.device.type]
    if calls < before or not all(each is None or each.ready for each in (time, text)):
        return None
    try:
        recording = _Recording(model, sample, time, text, scope)
    except Exception as error:  # whatever it is, the model's own call would raise it too
        kept.calls[key] = None
        _log.warning("%s runs without being recorded: %s", type(model).__name__, str(error).split("\n")[0])
        return None
    kept.by_inputs[key] = recording
    if len(kept.by_inputs) > _KEPT:
        kept.by_inputs.popitem(last=False)
    return recording


class _Recording:
    def __init__(self, model: nn.Module, sample: Tensor, time: Time, text: Condition | None, scope: Scope):
        if sample.is_cuda:
            sample = prepared(model, sample)
        self.sample, self.time, self.text = sample.clone(), time.fixed(), text and text.fixed()
        self.served: weakref.ref[Condition] | None = None  # the text whose generation it served last
        self.tensors, self.parts = _tensors(model), _parts(model)
        function = partial(_predict, model, self.sample, self.time, self.text)
        compiled = _compiled(model, function) if _compiles(model) else None
        self.run: Tape | CudaGraph | Compiled
        if sample.is_cuda:
            self.run = CudaGraph(compiled.replay if compiled else function)
        else:
            self.run = compiled or Tape(function)
        self.prepared = packed.marks(scope & set(model.modules()))
        scope.add(model)

    def serves(self, model: nn.Module, scope: Scope) -> bool:
        """Whether the model is what it was: at a glance in every call, thoroughly in the first of a generation."""
        if any(holder.get(name) is not tensor or (tensor is not None and _state(tensor) != state)
               for holder, name, tensor, state in self.tensors):
            return False
        if model in scope:
            return True
        same = _parts(model) == self.parts and not watched(model, self.sample.is_cuda) and packed.unchanged(self.prepared)
        if same:
            scope.update({model, *self.prepared})
        return same

    def __call__(self, sample: Tensor, time: Time, text: Condition | None) -> Tensor:
        if text is not None and self.text is not None and (self.served is None or self.served() is not text):
            self.text.update(text)
            self.served = weakref.ref(text)
        self.sample.copy_(sample)
        self.time.update(time)
        result = self.run.replay()
        time.receive(self.time)
        return result


def _compiles(model: nn.Module) -> bool:
    return getattr(model, "compiled_steps", False)


def _compiled(model: nn.Module, function: Callable[[], Tensor]) -> Compiled | None:
    """`function()`, compiled, if that is possible."""
    try:
        return Compiled(function)
    except Exception as error:  # compilers raise what they like
        _log.warning("%s runs without being compiled: %s", type(model).__name__, str(error).strip().split("\n")[0])
        return None


def _predict(model: nn.Module, sample: Tensor, time: Any, text: Any) -> Tensor:
    given = (sample, time) if text is None else (sample, time, text)
    return model(*given, return_dict=False)[0]


def _tensors(model: nn.Module) -> list[tuple[Any, str, Tensor | None, Any]]:
    """Every parameter and buffer, also those that are `None`: where it is held, and what tells whether it is still the same."""
    return [(holder, name, tensor, tensor if tensor is None else _state(tensor))
            for module in model.modules() for holder in (module._parameters, module._buffers)
            for name, tensor in holder.items()]


def _state(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), packed.version(tensor)


def _parts(model: nn.Module) -> list[Any]:
    """All modules, and whether they train. They are held, since another could come to be at the same address; but not the
    model itself, which holds its recordings."""
    return [(id(part) if part is model else part, part.training) for part in model.modules()]
