"""Whether a network is still what it was: its modules, their classes and attributes, and the functions that they call.

What a call computes follows from code, from what that code looks at, and from the values of tensors. A `Structure` writes down
the first two; the third is read anew by whoever replays a call, or compared by `weight_sums`. It answers two questions:

- *Can it be checked at all?* Only code of this library, of what it is built on and of Python's own is known to look at nothing
  but its arguments, attributes and module namespaces. A module of one's own, a hook, a replaced `forward`, a patched function
  of PyTorch may look at anything: `unknown` then says what was found, and nothing that was computed before is used again.
- *Is it unchanged?* `holds` compares every attribute of every module, every entry of the classes, and the functions in
  the namespaces, by identity: an attribute that is set to something else is seen, however that came about, and one that
  is set back is as good as never changed.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .torch_private import FORWARD_HOOKS, compiled_in_place, hooked_everywhere, hooks_of, version

_PACKAGE = __name__.partition(".")[0]
_DEPENDENCIES = {"torch", "typing_extensions", "numpy", "safetensors", "PIL", "huggingface_hub", "tokenizers", "tqdm", "triton"}
_KNOWN_PACKAGES = {_PACKAGE, *_DEPENDENCIES, *sys.stdlib_module_names} - {"unittest"}
_COMPUTING = {f"{_PACKAGE}.runtime.{name}" for name in (
    "attention", "differentiable", "fused", "packed", "triton_kernels", "winograd", "winograd_training")}
_VALUES = (type(None), bool, int, float, complex, str, bytes, type, enum.Enum, torch.dtype, torch.device, torch.memory_format)
_BUILT_IN = (
    types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType,
    types.GetSetDescriptorType, types.MemberDescriptorType, types.MethodWrapperType,
)
_KEPT = "_structure"  # where a model has its own
_OURS = {_KEPT, "_recordings", "_remembered", "_unit"}  # what the library itself keeps on a module, and no call looks at
_NOT_LOOKED_AT = {*FORWARD_HOOKS, *_OURS}


def structure_of(model: nn.Module) -> Structure:
    """The structure of `model` as it is now: the same object as long as nothing has changed."""
    found: Structure | None = vars(model).get(_KEPT)
    if found is None or not found.holds(model):
        found = vars(model)[_KEPT] = Structure(model)
    return found


class Structure:
    """All that a call of `model` depends on, but for its arguments and the values of its tensors.

    It holds no reference to the model itself, which may hold it.

    Attributes:
        unknown: what makes it impossible to say what a call depends on, in words; `None` where all code is known.
        tensors: all that modules hold: parameters, buffers, and other attributes.
    """

    def __init__(self, model: nn.Module):
        self.unknown: str | None = None
        self._root, self._kind = id(model), type(model)
        self._parts: list[nn.Module] = []  # without the model itself
        self._dicts: list[dict[Any, Any]] = []
        self._hooks: list[dict[Any, Any]] = []  # of modules, by the dictionaries in which hooks are put
        self._collections: list[tuple[Any, Any]] = []  # a list or set, and a copy of it
        self.tensors: list[Tensor] = []
        self._seen: set[int] = set()
        self._classes: dict[type, None] = {}
        self._visit_module(model)
        if hooked_everywhere():
            self._give_up("there are hooks for all modules")
        self._watchers = self._who_hooks_in()
        self._namespaces = namespaces()
        self.unknown = self.unknown or self._namespaces.unknown or _first(
            _unknown_in_class(kind, self._namespaces.names) for kind in self._classes)
        self._modules_kept = list(map(type, self._parts))
        self._names, self._values = self._entries(model)
        self._class_entries = self._entries_of_classes()
        self._places = self._places_of_tensors()

    def holds(self, model: nn.Module) -> bool:
        """Whether nothing has changed since this was written down of `model`."""
        names, values = self._entries(model)
        entries = self._entries_of_classes()
        return (
            type(model) is self._kind and len(values) == len(self._values) and all(map(is_, values, self._values))
            and names == self._names and len(entries) == len(self._class_entries) and all(map(is_, entries, self._class_entries))
            and list(map(type, self._parts)) == self._modules_kept
            and all(len(now) == len(then) and all(map(is_, now, then)) for now, then in self._collections)
            and self._places_of_tensors() == self._places and self._who_hooks_in() == self._watchers
            and self._namespaces.holds()
        )

    def __reduce__(self) -> Any:
        return _nothing, ()  # a copy of a model has none

    # -- what is written down ------------------------------------------------------------------------------------------

    def _entries(self, model: nn.Module) -> tuple[list[Any], list[Any]]:
        """Names and values of all attributes, of the model itself first."""
        own = {name: value for name, value in list(vars(model).items()) if name not in _OURS}
        return (list(chain(own, chain.from_iterable(self._dicts))),
                list(chain(own.values(), chain.from_iterable(map(dict.values, self._dicts)))))

    def _entries_of_classes(self) -> list[Any]:
        return list(chain.from_iterable(map(types.MappingProxyType.values, map(vars, self._classes))))

    def _who_hooks_in(self) -> list[Any]:
        """Numbers for hooks: they themselves may hold the model."""
        hooks = chain.from_iterable(map(dict.values, self._hooks))
        return [hooked_everywhere(), *map(len, self._hooks), *map(id, hooks)]

    def _places_of_tensors(self) -> list[Any]:
        """Where tensors are in memory, how that is read, and how often they were written to, as far as that is counted."""
        tensors = self.tensors
        return [*map(_address, tensors), *map(Tensor.stride, tensors), *map(version, tensors),
                *[(each.shape, each.dtype) for each in tensors]]

    # -- the walk --------------------------------------------------------------------------------------------------------

    def _visit_module(self, module: nn.Module) -> None:
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        name = type(module).__name__
        self._classes.update(dict.fromkeys(type(module).__mro__[:-1]))
        if id(module) != self._root:
            self._parts.append(module)
            self._dicts.append(vars(module))
        hooks = hooks_of(module)
        self._hooks += hooks
        if not all(map(_brings_weights, chain.from_iterable(map(dict.values, hooks)))):
            self._give_up(f"a {name} has hooks")
        if compiled_in_place(module) or hasattr(module, "_orig_mod"):
            self._give_up(f"a {name} is compiled")
        for attribute, value in vars(module).items():
            if attribute in _NOT_LOOKED_AT or attribute.endswith("_hooks"):
                continue
            if callable(value) and attribute in dir(type(module)) and not isinstance(value, nn.Module):
                self._give_up(f"{attribute} of a {name} was replaced")
            self._visit(value, f"{attribute} of a {name}")

    def _visit(self, value: Any, what: str) -> None:
        if isinstance(value, _VALUES):
            return
        if isinstance(value, nn.Module):
            self._visit_module(value)
        elif isinstance(value, Tensor):
            if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
                self._give_up(f"{what} is a {type(value).__name__}")
            self.tensors.append(value)
        elif isinstance(value, dict):
            self._dicts.append(value)
            self._visit_all(value.values(), what)
        elif isinstance(value, (list, set)):
            self._collections.append((value, type(value)(value)))
            self._visit_all(value, what)
        elif isinstance(value, (tuple, frozenset)):
            self._visit_all(value, what)
        elif isinstance(value, functools.partial):
            self._visit_all([value.func, *value.args, *value.keywords.values()], what)
        elif isinstance(value, types.MethodType):
            self._visit_all([value.__func__], what)
            if id(value.__self__) not in self._seen:
                self._visit(value.__self__, what)
        elif isinstance(value, types.FunctionType) and value.__closure__ and known(value):
            self._visit_all([cell.cell_contents for cell in value.__closure__], what)
        elif type(value).__module__.partition(".")[0] == _PACKAGE and hasattr(value, "__dict__"):
            self._classes.update(dict.fromkeys(type(value).__mro__[:-1]))
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self._dicts.append(vars(value))
                self._visit_all(vars(value).values(), what)
        elif not known(value):
            self._give_up(f"{what} is a {type(value).__name__}")

    def _visit_all(self, values: Iterable[Any], what: str) -> None:
        for value in values:
            self._visit(value, what)

    def _give_up(self, why: str) -> None:
        self.unknown = self.unknown or why


def _nothing() -> None:
    return None


def known(value: Any) -> bool:
    """Whether `value` is a function (or what classes make of one) of this library, of what it is built on or of Python's own.

    Told by the namespace that its code looks names up in, which `functools.wraps` does not change.
    """
    if isinstance(value, types.FunctionType):
        return str(value.__globals__.get("__name__")).partition(".")[0] in _KNOWN_PACKAGES
    if isinstance(value, (staticmethod, classmethod, types.MethodType)):
        return known(value.__func__)
    if isinstance(value, property):
        return all(function is None or known(function) for function in (value.fget, value.fset, value.fdel))
    if isinstance(value, functools.cached_property):
        return known(value.func)
    if isinstance(value, (type, *_BUILT_IN)):
        return True
    kind = type(value).__module__.partition(".")[0]
    return kind in _KNOWN_PACKAGES and known(getattr(value, "__wrapped__", len))


def _brings_weights(hook: Any) -> bool:
    """Whether a hook is one of `offload.py`, which only has weights come and go."""
    return type(hook).__module__ == f"{_PACKAGE}.runtime.offload"


def _unknown_in_class(kind: type, names: Container[str]) -> str | None:
    """What in a class is not known to look at nothing else, in words; of the `names` that somebody looks up.

    Others put functions of other names into PyTorch's classes (transformers does), which no model calls.
    """
    if kind.__module__.partition(".")[0] not in _KNOWN_PACKAGES:
        return f"{kind.__qualname__} is a class of {kind.__module__}"
    wrong = (name for name, value in vars(kind).items() if (name in names or name.startswith("__"))
             and (callable(value) or hasattr(value, "__get__")) and not known(value))
    return next((f"{name} of {kind.__name__} was replaced" for name in wrong), None)


def called_plainly(layer: nn.Module) -> bool:
    """Whether to call `layer` is to call the `forward` of its class and nothing else: no hooks, and no other function there."""
    return not (any(hooks_of(layer)) or "forward" in vars(layer) or compiled_in_place(layer) or hooked_everywhere())


class Originals:
    """Functions of PyTorch that a quick way goes around, to be asked whether somebody has put others in their place.

    Args:
        places: where each is found: a module or class, and a name in it.
    """

    def __init__(self, *places: tuple[Any, str]):
        self._places = places
        self._functions = [getattr(space, name) for space, name in places]
        self._known = all(map(known, self._functions))

    def are_in_place(self) -> bool:
        """Whether all of them are what they were when this library was imported, and were PyTorch's own then."""
        return self._known and all(
            getattr(space, name) is function for (space, name), function in zip(self._places, self._functions, strict=True))


# -- the functions that modules call -------------------------------------------------------------------------------------


class Namespaces:
    """The functions that code of models calls by name: of this library's models, and of PyTorch.

    Attributes:
        names: all that this code looks up. unknown: what was put in the place of a function, in words, if anything was.
    """

    def __init__(self) -> None:
        ours = {name: vars(module) for name, module in list(sys.modules.items()) if _is_of_models(name) and module is not None}
        self.names = set(chain.from_iterable(map(_names_in, ours.values())))
        wanted = dict.fromkeys(("torch", "torch.nn.functional", "torch.Tensor", "builtins", "math"), self.names)
        self._watched: list[tuple[Mapping[str, Any], tuple[str, ...]]] = [
            (space, tuple(name for name, value in space.items() if callable(value) and name in wanted.get(where, space)))
            for where, space in (*ours.items(), *_outside().items())]
        self._found = self._lookup()
        self.unknown = _first(
            None if known(value) or isinstance(value, type) or not isinstance(value, types.FunctionType)
            else f"{name} was replaced by {value.__module__}.{value.__qualname__}"
            for name, value in zip(chain.from_iterable(names for _, names in self._watched), self._found, strict=True))

    def holds(self) -> bool:
        """Whether every name still stands for the same function."""
        try:
            return all(map(is_, self._lookup(), self._found))
        except KeyError:
            return False

    def _lookup(self) -> list[Any]:
        return list(chain.from_iterable(map(space.__getitem__, names) for space, names in self._watched))


_current: Namespaces | None = None


def namespaces() -> Namespaces:
    """What is in the namespaces now: the same object as long as nothing was replaced."""
    global _current
    found = _current
    if found is None or not found.holds():
        found = _current = Namespaces()
    return found


def _is_of_models(name: str) -> bool:
    return name.startswith((f"{_PACKAGE}.models.", "torch.nn.modules.")) or name in _COMPUTING


def _outside() -> dict[str, Mapping[str, Any]]:
    import builtins
    import math

    return {"torch": vars(torch), "torch.nn.functional": vars(F), "torch.Tensor": vars(Tensor), "builtins": vars(builtins),
            "math": vars(math)}


def _names_in(space: Mapping[str, Any]) -> Iterator[str]:
    """Every name that functions of a module, and methods of its classes, look up."""
    for value in list(space.values()):
        members = list(vars(value).values()) if isinstance(value, type) else [value]
        for member in members:
            function = getattr(member, "__func__", getattr(member, "fget", member))
            code = getattr(function, "__code__", None)
            if isinstance(code, types.CodeType):
                yield from _names_of_code(code)


def _names_of_code(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_of_code(constant)


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)


def _first(found: Iterable[str | None]) -> str | None:
    return next((each for each in found if each is not None), None)
