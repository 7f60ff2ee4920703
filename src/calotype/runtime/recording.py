"""A model's call, recorded once and replayed in every further step of a generation, and of later ones like it.

On a GPU the recording is a CUDA graph: one launch instead of a thousand. On the CPU it is a `Tape`. Either repeats what
was done on the very same memory, so sample, text and time are copied to where the recording reads them. What cannot be
repeated, or has changed since, runs as usual. A model with `compiled_steps` has its call compiled first.

Weights are read where they are in every replay. Everything else that a call depends on is written down by `structure.py`, and
compared before each.
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
from .scope import Scope, current, fast_path
from .structure import Structure, structure_of
from .tape import Tape
from .torch_private import dispatch_modes, function_modes

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
        self.structure: Structure | None = None  # of the model, in all of them
        self.calls: dict[Any, int | None] = {}  # so far; `None` where nothing can be recorded
        self.by_inputs: OrderedDict[Any, _Recording] = OrderedDict()

    def begin_anew(self, structure: Structure) -> None:
        """Forget everything, for the model is another now."""
        self.structure, self.calls, self.by_inputs = structure, {}, OrderedDict()

    def __deepcopy__(self, memo: Any) -> Recordings:
        return Recordings()

    def __reduce__(self) -> Any:
        return Recordings, ()


def call(model: nn.Module, sample: Tensor, time: Any, text: Any = None, structure: Structure | None = None) -> Tensor:
    """What `model(sample, time[, text])` predicts, from a recording where there is one or one can be made.

    Args:
        model: a network whose forward takes these, and `return_dict`.
        sample: [B, C, H, W].
        time, text: a `Condition` each, kept for a generation; or whatever else the model takes, and then nothing is recorded.
        structure: what `checked` has just said of the model, if it was asked.
    """
    scope, device = current(), sample.device.type
    if scope is None or torch.is_grad_enabled():
        return _predict(model, sample, time, text)
    structure = structure or checked(model)
    if structure is None:  # what it holds may change anything in the middle of a call, prepared weights too
        with fast_path(False):
            return _predict(model, sample, time, text)
    if (torch.is_autocast_enabled(device) or device not in _CALLS_BEFORE or dispatch_modes() or function_modes()
            or in_parts(model) or not all(condition is None or hasattr(condition, "fixed") for condition in (time, text))):
        return _predict(model, sample, time, text)
    kept: Recordings = vars(model).setdefault("_recordings", Recordings())
    if not kept.lock.acquire(blocking=False):  # another thread's generation is in the middle of a call
        return _predict(model, sample, time, text)
    try:
        if kept.structure is not structure:
            kept.begin_anew(structure)
        key = (sample.shape, sample.dtype, sample.device, time.key, text and text.key, torch.get_num_threads(),
               torch.get_default_dtype(), torch.is_inference_mode_enabled())
        recording = kept.by_inputs.get(key)
        if recording is not None and not recording.serves(model, scope):
            recording = kept.by_inputs.pop(key) and None
        if recording is None:
            recording = _recorded(kept, key, model, sample, time, text, scope)
        return _predict(model, sample, time, text) if recording is None else recording(sample, time, text)
    finally:
        kept.lock.release()


def checked(model: nn.Module) -> Structure | None:
    """The structure of a model as it is now, the same object as long as nothing has changed.

    It is `None` where that cannot be told (see `structure.py`); then nothing that was made of the model must be used again.
    """
    structure = structure_of(model)
    return structure if structure.unknown is None else None


def release(model: nn.Module) -> None:
    """Drop the recordings of a model. They are made again when they are needed."""
    vars(model).pop("_recordings", None)


def _recorded(
    kept: Recordings, key: Any, model: nn.Module, sample: Tensor, time: Time, text: Condition | None, scope: Scope
) -> _Recording | None:
    """A new recording for these inputs, once they were seen often enough and if there can be one."""
    calls = kept.calls.get(key, 0)
    if calls is None:
        return None
    kept.calls[key] = calls + 1
    before = 1 if _compiles(model) else _CALLS_BEFORE[sample.device.type]
    if calls < before:
        return None
    if not all(each is None or each.ready for each in (time, text)):
        if model.training:  # a call more would draw random numbers more
            return None
        _predict(model, sample, time, text)  # layers make what they make of conditions that are new in every step
    try:
        recording = _Recording(model, sample, time, text, scope)
    except Exception as error:  # whatever it is, the model's own call would raise it too
        kept.calls[key] = None
        _log.warning("%s runs without being recorded: %s", type(model).__name__, str(error).split("\n")[0])
        return None
    if sample.is_cuda:
        kept.structure = structure_of(model)  # its weights may have been laid out anew
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
        function = partial(_predict, model, self.sample, self.time, self.text)
        compiled = _compiled(model, function) if _compiles(model) else None
        self.run: Tape | CudaGraph | Compiled
        if sample.is_cuda:
            self.run = CudaGraph(compiled.replay if compiled else function)
        else:
            self.run = compiled or Tape(function)
        self.prepared = packed.sums_of(scope & set(model.modules()))
        scope.add(model)

    def serves(self, model: nn.Module, scope: Scope) -> bool:
        """Whether the weights that were prepared for it have the values that they had: compared once in a `scope`."""
        if model in scope:
            return True
        same = packed.unchanged(self.prepared)
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
