"""A function's operations on tensors, recorded once and replayed: for the CPU what a captured graph is for a GPU.

On small pictures a network of a thousand operations spends a good part of its time between them, in Python: looking up layers,
checking arguments, making views. All of that is the same in every call. A tape is the list of what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from .torch_private import composite_key, is_composite, run_composite

_LOOK = {"tolist", "numpy", "__array__", "__dlpack__", "__repr__", "__format__"}  # at values, and PyTorch tells no operation
_DETACHED, _ATTACHED = torch.Tensor.data.__get__, torch.Tensor.data.__set__  # type: ignore[attr-defined]


class CannotRecord(RuntimeError):
    """A function does something that a recording could not repeat."""


class _Place(NamedTuple):
    """Where a tensor is: in a register, or in the memory of what is in one."""

    register: int
    view: tuple[Sequence[int], Sequence[int], int] | None  # size, stride and offset in the register's storage


@dataclass
class _Operation:
    function: Callable[..., Any]
    arguments: list[Any]
    keywords: Mapping[str, Any]
    registers: list[tuple[int, int]] = field(default_factory=list)  # argument, register
    named: list[tuple[str, int]] = field(default_factory=list)  # keyword, register
    lists: list[tuple[int, list[int]]] = field(default_factory=list)  # argument, registers of its members
    results: Sequence[int] | int | None = None
    dead: Sequence[int] = ()  # registers that nothing needs any more


class Tape:
    """`function()`, recorded in one call of it.

    Tensors that it reads and has not made are read again in every replay, where they are in memory: to give it other
    values, copy them there. Its decisions in Python, and all that is not a tensor, stay as they were in the first call.
    Random numbers are drawn anew in every replay, and none by the recording: the generator is put back where it was.

    Raises:
        CannotRecord: Python looked at a value, or a tensor was given another place in memory.
    """

    def __init__(self, function: Callable[[], Tensor]):
        recorder = _Recorder(composite_key())
        with torch.random.fork_rng(devices=[]), _Watched(), recorder:
            result = function()
        register = recorder.register_of(result)
        if register is None:
            raise CannotRecord("the result was not computed in the call")
        self._result = register
        self._operations, self._registers = recorder.operations, recorder.registers
        self._mark_dead()

    def replay(self) -> Tensor:
        """What `function()` would return now."""
        registers: list[Any] = list(self._registers)
        for operation in self._operations:
            arguments = operation.arguments
            if operation.registers or operation.lists:
                arguments = list(arguments)
                for i, register in operation.registers:
                    arguments[i] = registers[register]
                for i, members in operation.lists:
                    arguments[i] = [registers[register] for register in members]
            keywords = operation.keywords
            if operation.named:
                keywords = {**keywords, **{name: registers[register] for name, register in operation.named}}
            made = operation.function(*arguments, **keywords)
            if isinstance(operation.results, int):
                registers[operation.results] = made
            elif operation.results is not None:
                for register, tensor in zip(operation.results, made, strict=True):
                    registers[register] = tensor
            for register in operation.dead:
                registers[register] = None
        return registers[self._result]

    def _mark_dead(self) -> None:
        """Let each operation free what it is the last to need."""
        needed = {self._result, *(i for i, tensor in enumerate(self._registers) if tensor is not None)}
        for operation in reversed(self._operations):
            results = (operation.results,) if isinstance(operation.results, int) else operation.results or ()
            read = {register for _, register in (*operation.registers, *operation.named)}
            read = read.union(*(members for _, members in operation.lists))
            operation.dead = sorted((read | set(results)) - needed)
            needed |= read


class _Watched(TorchFunctionMode):
    """Sees what is done to tensors without an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", None) in _LOOK or func == _ATTACHED:
            raise CannotRecord(f"{func.__name__} of a tensor cannot be repeated without Python")
        return args[0].detach() if func == _DETACHED else func(*args, **kwargs or {})


class _Recorder(TorchDispatchMode):
    """Writes down every operation below autograd, and where its tensors come from."""

    def __init__(self, composite: Any) -> None:
        super().__init__()
        if composite is None:
            raise CannotRecord("this release of PyTorch does not say what operations are made of")
        self.composite = composite
        self.operations: list[_Operation] = []
        self.registers: list[Tensor | None] = []  # before the first operation: only tensors from outside
        self._places = WeakTensorKeyDictionary()  # weak: a recording needs no more memory than a call

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would import its compiler to tell it that there is nothing to compile: two seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_composite(func, self.composite):
            with self:  # outside of autograd, composite operations come here whole
                return run_composite(func, self.composite, *args, **kwargs)
        if func is torch.ops.aten.lift_fresh.default:
            func = torch.ops.aten.clone.default  # a tensor made of numbers: of its own in every replay
        made = func(*args, **kwargs)
        given = [each for each in _flat([*args, *kwargs.values()]) if isinstance(each, Tensor)]
        results = [] if made is None else _flat(made)
        fresh = [result for result in results if not self._is_there(result, given)]
        moved = torch.Tag.inplace_view in func.tags and func is not torch.ops.aten.detach_.default
        if moved or (fresh and not all(isinstance(each, Tensor) for each in fresh)):
            raise CannotRecord(f"{func} cannot be repeated without Python")
        if fresh or func._schema.is_mutable:
            self._write(func, args, kwargs, made if fresh else None)
        return made

    def register_of(self, tensor: Tensor) -> int | None:
        """The register of a tensor that was made here, or `None`."""
        place = self._places.get(tensor)
        if place is None or place.view is None:
            return None if place is None else place.register
        register = self._new(tensor)
        self.operations.append(_Operation(torch.as_strided, [None, *place.view], {}, [(0, place.register)], results=register))
        return register

    def _is_there(self, result: Any, given: list[Tensor]) -> bool:
        """Whether a result is a given tensor or a view of one. A view is noted, and made when somebody wants it."""
        if not isinstance(result, Tensor):
            return False
        memory = _memory(result)
        for tensor in given:
            if memory and _memory(tensor) == memory and _kind(tensor) == _kind(result):
                if result is not tensor and tensor in self._places:
                    view = tuple(result.shape), result.stride(), int(result.storage_offset())
                    self._places[result] = _Place(self._places[tensor].register, view)
                return True
        return False

    def _write(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        operation = _Operation(func, list(args), dict(kwargs))
        for i, argument in enumerate(args):
            if isinstance(argument, Tensor):
                register = self.register_of(argument)
                if register is not None:
                    operation.arguments[i] = None
                    operation.registers.append((i, register))
            elif isinstance(argument, (list, tuple)) and any(self._made(member) for member in argument):
                operation.arguments[i] = None
                operation.lists.append((i, [self._register(member) for member in argument]))
        for name, value in kwargs.items():
            register = self.register_of(value) if isinstance(value, Tensor) else None
            if register is not None:
                operation.named.append((name, register))
            elif self._made(value) or any(map(self._made, _flat(value))):
                raise CannotRecord(f"{func} takes several tensors by one keyword")
        self.operations.append(operation)
        if isinstance(made, Tensor):
            operation.results = self._new(made)
        elif made is not None:
            operation.results = [self._new(tensor) for tensor in made]

    def _made(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value in self._places

    def _register(self, tensor: Tensor | None) -> int:
        """A register that holds `tensor`; one of its own for a tensor from outside, and for none."""
        register = None if tensor is None else self.register_of(tensor)
        if register is None:
            self.registers.append(tensor)
            register = len(self.registers) - 1
        return register

    def _new(self, tensor: Tensor) -> int:
        self.registers.append(None)
        self._places[tensor] = _Place(len(self.registers) - 1, None)
        return len(self.registers) - 1


def _memory(tensor: Tensor) -> int:
    """Where a tensor's memory begins; 0 for one that has none, or none that can be looked at (oneDNN's layouts)."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _kind(tensor: Tensor) -> Any:
    """How memory is read: a view that reads it otherwise is an operation."""
    return tensor.dtype, tensor.is_conj(), tensor.is_neg()


def _flat(values: Any) -> list[Any]:
    """What is in nested lists and tuples."""
    if isinstance(values, (list, tuple)):
        return [leaf for value in values for leaf in _flat(value)]
    return [values]
