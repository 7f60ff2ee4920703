"""Frozen configurations: what an object was made with, as a dictionary, as attributes and as a JSON file."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, TypeVar

from . import hub
from .files import local_path, read_json, to_json, write_json
from .words import check_keywords

FORMAT_VERSION = "0.42.1"
"""The release of Diffusers whose file format is written, so that it reads our files without a question."""

WRITTEN_BY = "_diffusers_version"  # the format's name for the release that wrote a file
_DEFAULTED = "_use_default_values"  # the format's name for the arguments that nobody gave
_log = logging.getLogger(__name__)
_Self = TypeVar("_Self", bound="Configured")
_Init = TypeVar("_Init", bound=Callable[..., None])


class FrozenList(list[Any]):
    """A list that cannot be changed, as configs hold them; equal to a list of the same values, and written as one."""

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("a config is frozen, and so are its lists: make a new object with `from_config(config, name=[…])`")

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenList, (list(self),)


class FrozenConfig(dict[str, Any]):
    """A dictionary that cannot be changed, nor what is in it, and whose entries can be read as attributes.

    Lists and arrays are copied into it, so that it does not change either where those that were given do.
    """

    def __init__(self, entries: Mapping[str, Any] = MappingProxyType({}), /):
        super().__init__({name: frozen(value) for name, value in entries.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no entry {name!r}; it has {', '.join(sorted(self))}") from None

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("a config is frozen; make a new object with `from_config(config, name=value)`")

    __setitem__ = __delitem__ = __setattr__ = __delattr__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __repr__(self) -> str:
        return f"FrozenConfig {to_json(self)}"

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenConfig, (dict(self),)


def frozen(value: Any) -> Any:
    """`value` as configs hold it: lists and mappings frozen, at any depth, arrays copied; all else as it is."""
    if isinstance(value, (FrozenList, FrozenConfig)):
        return value
    if type(value) is tuple:  # most often of numbers: nothing to copy
        return value if all(isinstance(one, (str, int, float)) for one in value) else tuple(frozen(one) for one in value)
    if isinstance(value, list):
        return FrozenList(frozen(one) for one in value)
    if isinstance(value, dict):
        return FrozenConfig(value)
    if isinstance(value, (set, bytearray)):
        return (frozenset if isinstance(value, set) else bytes)(value)
    if hasattr(value, "setflags") and hasattr(value, "copy"):  # NumPy's, without importing it
        value = value.copy()
        value.setflags(write=False)
    elif hasattr(value, "requires_grad") and hasattr(value, "clone") and not hasattr(value, "parameters"):  # PyTorch's
        value = value.detach().clone()
    return value


def register_to_config(init: _Init) -> _Init:
    """Decorate `__init__` so that its arguments, defaults included, become `self.config`."""
    signature = inspect.signature(init)
    self_name, parameters = next(iter(signature.parameters)), list(signature.parameters.values())[1:]

    @functools.wraps(init)
    def wrapper(self: Configured, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        # the object sees the copies too: what a caller does to a list of theirs afterwards must not reach it
        bound.arguments.update({name: frozen(value) for name, value in bound.arguments.items() if name != self_name})
        if "_config" not in self.__dict__:  # a subclass that calls this `__init__` has told its own arguments
            values = {p.name: bound.arguments[p.name] for p in parameters if not p.name.startswith("_")}
            object.__setattr__(self, "_config", FrozenConfig(values | {_DEFAULTED: sorted(values.keys() - given)}))
        init(*bound.args, **bound.kwargs)

    return wrapper  # type: ignore[return-value]


class Configured:
    """Something made from a config: it can show it, save it and be made again from it."""

    config_name: ClassVar[str] = "config.json"
    _config: FrozenConfig = FrozenConfig()

    @property
    def config(self) -> FrozenConfig:
        """What this object was made with (frozen)."""
        return self._config

    def register_to_config(self, **entries: Any) -> None:
        """Replace or add config entries. For the object's own use when it changes what it is."""
        defaulted = [name for name in self._config.get(_DEFAULTED, ()) if name not in entries]
        object.__setattr__(self, "_config", FrozenConfig({**self._config, **entries, _DEFAULTED: defaulted}))

    def with_entries(self: _Self, **entries: Any) -> _Self:
        """The same, made anew with other values for entries of its config. What counts as given by default does not change."""
        defaulted = self._config.get(_DEFAULTED, ())
        made: _Self = type(self).from_config(
            {**self._config, **entries, _DEFAULTED: [name for name in defaulted if name not in entries]})
        object.__setattr__(made, "_config", FrozenConfig({**made._config, _DEFAULTED: defaulted}))
        return made

    # -- making ---------------------------------------------------------------------------------------------------

    @classmethod
    def _arguments(cls) -> set[str]:
        return {name for name in inspect.signature(cls.__init__).parameters if name != "self"}

    @classmethod
    def _known_elsewhere(cls) -> set[str]:
        """Config entries that this class does not take but knows to be another's, so need not be reported."""
        return set()

    @classmethod
    def from_config(
        cls: type[_Self], config: Mapping[str, Any] | str | os.PathLike[str], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Make an object from a config: a mapping, or a name or folder whose config file is read.

        Keyword arguments replace entries. Entries that the config's own class had only by default are left to this
        class's defaults. Entries that this class does not take are kept in `config`, so that they come back when the
        first class is made again.

        Returns:
            The object; with `return_unused_kwargs`, also the keyword arguments that it does not take.
        """
        if isinstance(config, (str, os.PathLike)):
            config, kwargs = cls.load_config(config, return_unused_kwargs=True, **kwargs)
        if not isinstance(config, Mapping):
            raise TypeError(f"a config is a mapping, a name or a folder, and this is a {type(config).__name__}")
        takes = cls._arguments()
        if not return_unused_kwargs:
            check_keywords(f"{cls.__name__}.from_config", kwargs, takes)
        defaulted = set(config.get(_DEFAULTED, ()))
        entries = {name: value for name, value in config.items() if name not in defaulted}
        made = cls(**{name: value for name, value in {**entries, **kwargs}.items() if name in takes})
        foreign = {name: value for name, value in entries.items()
                   if name not in takes and (name == WRITTEN_BY or not name.startswith("_"))}
        _report_foreign(cls, foreign.keys() - cls._known_elsewhere() - kwargs.keys() - {WRITTEN_BY})
        object.__setattr__(made, "_config", FrozenConfig({**foreign, **made._config}))
        unused = {name: value for name, value in kwargs.items() if name not in takes}
        return (made, unused) if return_unused_kwargs else made

    @classmethod
    def load_config(
        cls, name_or_path: str | os.PathLike[str], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Read the config file of a checkpoint, without making anything.

        Args:
            name_or_path: a bundled name, a folder, a JSON file or a Hub repository.
            **kwargs: `subfolder` and the options of `hub.Source`.

        Returns:
            The config as a dictionary; with `return_unused_kwargs`, also the keyword arguments left over.
        """
        source, unused = hub.split_options(name_or_path, kwargs)
        path = local_path(name_or_path)
        file = path if path.suffix == ".json" and path.is_file() else source.file(cls.config_name)
        config = read_json(file)
        return (config, unused) if return_unused_kwargs else config

    # -- showing and saving -----------------------------------------------------------------------------------------

    def _config_to_save(self) -> dict[str, Any]:
        shown = {name: value for name, value in self._config.items() if name != _DEFAULTED}
        return shown | {"_class_name": type(self).__name__, WRITTEN_BY: FORMAT_VERSION}

    def to_json_string(self) -> str:
        """The config as the text of its file."""
        return to_json(self._config_to_save())

    def save_config(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the config file into the folder `save_directory`."""
        write_json(local_path(save_directory) / self.config_name, self._config_to_save())

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


_reported: set[tuple[str, frozenset[str]]] = set()


def _report_foreign(cls: type, names: set[str]) -> None:
    """Say once which config entries a class does not know."""
    report = (cls.__name__, frozenset(names))
    if names and report not in _reported:
        _reported.add(report)
        _log.warning("%s does not know the config entries %s; they are kept, and change nothing",
                     cls.__name__, ", ".join(sorted(names)))
