"""What all pipelines are: named components that are loaded, saved, moved and shared together."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from .. import defaults
from ..config import Configured, FrozenConfig
from ..console import progress_bar
from ..files import read_json, staged_folder
from ..hub import Source, split_options
from ..load_options import drop_needless, take_device, take_dtype
from ..models.base import Model
from ..outputs import Output
from ..prompts.remembered import forget
from ..registry import PIPELINES, check_component, entry, find, known
from ..runtime import packed, recording
from ..runtime.offload import check_stays
from ..weight_files import replaced
from ..words import check_keywords, listing, nearest
from .generation import Step, Stop
from .loading import INDEX, choose_files, options_of, read_components
from .offloading import Offloading

_log = logging.getLogger(__name__)
_Self = TypeVar("_Self", bound="DiffusionPipeline")


@dataclass
class ImagePipelineOutput(Output):
    """`images`: a list of PIL images, an array [B, H, W, C] or a tensor [B, C, H, W], as asked for."""

    images: Any


class DiffusionPipeline(Offloading, Configured):
    """Base of all pipelines, and the way to load one whose class is not known: `DiffusionPipeline.from_pretrained(name)`.

    A subclass takes its components as arguments of `__init__` and hands them to `register_modules`; arguments with a
    default are options. Its `__call__` keeps what belongs to one generation in local variables, so that threads can share
    a pipeline.

    Attributes:
        fast: use what makes it faster without changing its pictures (on by default). To set it to false drops what was kept
            for that.
    """

    config_name = INDEX
    optional_components: ClassVar[tuple[str, ...]] = ()
    """Components that may be `None`."""

    _names: tuple[str, ...] = ()
    _progress: Mapping[str, Any] = MappingProxyType({})
    _fast: bool = True
    _loaded_from: Path | None = None

    @property
    def fast(self) -> bool:
        """Whether to use what makes calls faster without changing their pictures."""
        return self._fast

    @fast.setter
    def fast(self, wanted: bool) -> None:
        self._fast = bool(wanted)
        if not wanted:
            self.release_prepared()

    def release_prepared(self) -> None:
        """Drop what was kept of earlier calls to make later ones quicker: recorded steps, prepared weights, and texts.

        They are made again when they are needed; with `fast = False`, never.
        """
        for model in self._models():
            recording.release(model)
            packed.release(model)
            forget(model)

    def register_modules(self, **components: Any) -> None:
        """Make `components` attributes of the pipeline, and part of what it saves, beside those that are registered already."""
        if not self._names:
            self._stop = Stop()
        self._names = tuple({**dict.fromkeys(self._names), **components})
        for name, component in components.items():
            setattr(self, name, component)

    @property
    def components(self) -> dict[str, Any]:
        """All components by name, to make another pipeline of: `Other(**pipeline.components)`."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def config(self) -> FrozenConfig:
        """What `model_index.json` says: for each component its library and class."""
        entries = {name: entry(part) for name, part in self.components.items()}
        options = {name: value for name, value in self._config.items() if name not in entries and not name.startswith("_use")}
        return FrozenConfig({**options, **{name: tuple(said) for name, said in entries.items()}})

    def _config_to_save(self) -> dict[str, Any]:
        shown = {name: list(value) if isinstance(value, tuple) else value for name, value in self.config.items()}
        return super()._config_to_save() | shown | {"_class_name": type(self).__name__}

    # -- loading and saving -----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls: type[_Self], pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> _Self:
        """Load a pipeline with all its components.

        Args:
            pretrained_model_name_or_path: a bundled name (`"calotype/emoji"`), a folder, or a Hub repository.
            torch_dtype: the parameters' type (float32 by default, `"auto"` keeps the files'); a dictionary gives it by component,
                with `"default"`. `dtype` is the same.
            variant: load `….variant.safetensors` (`"fp16"`), and the plain weights of components that have none.
            use_safetensors: `False` reads pickled weights where there are such, by PyTorch's weights-only reader.
            device_map: the device (`"cuda"`; `"auto"` or `"balanced"`: the best there is); the CPU by default.
            **kwargs: components to use instead of the checkpoint's (`scheduler=…`, `safety_checker=None`), options of the
                pipeline, and the options of `hub.Source` (`revision`, `token`, `cache_dir`, `local_files_only`, …).

        Raises:
            FileNotFoundError: no such checkpoint, a component's files are missing, or none has weights of the variant.
            ValueError: the checkpoint names a class that there is not, or a file is damaged; names it.
        """
        source, given = split_options(pretrained_model_name_or_path, kwargs)
        drop_needless(given, "trust_remote_code")
        device = take_device(given)
        index_file = source.file(cls.config_name)
        index = read_json(index_file)
        pipeline_class = cls._class_for(index, str(source.name))
        parameters = inspect.signature(pipeline_class.__init__).parameters
        takes = [name for name in parameters if name != "self"]
        loading = {"torch_dtype": take_dtype(given, takes), **{name: given.pop(name, None) for name in (
            "variant", "use_safetensors", "disable_mmap")}}
        check_keywords(f"{pipeline_class.__name__}.from_pretrained", given, takes + list(loading))
        named = read_components(index, parameters, index_file)
        for name in named:
            if name not in given:
                check_component(name, index[name], repr(str(index_file)))
        wanted = {name: class_name for name, class_name in named.items() if class_name and name not in given}
        folder = source.folder(lambda names: choose_files(names, wanted, loading, str(source.name)))
        choose_files([path.relative_to(folder).as_posix() for name in wanted for path in (folder / name).glob("*")], wanted,
                     loading, str(source.name))  # a local folder was not asked for
        parts: dict[str, Any] = {}
        for name in _progress(takes, wanted):
            if name in given:
                parts[name] = given[name]
            elif name in wanted:
                parts[name] = pipeline_class._load_component(name, wanted[name], folder, loading)
            elif name in named:
                parts[name] = None
            elif name in index:
                parts[name] = index[name]
            elif parameters[name].default is inspect.Parameter.empty:
                if name not in pipeline_class.optional_components:
                    raise ValueError(f"{str(source.name)!r} has no component {name!r}, which {pipeline_class.__name__} needs: "
                                     f"give it as from_pretrained(…, {name}=…)")
                parts[name] = None
        pipeline = pipeline_class(**parts)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        pipeline._loaded_from = folder
        return pipeline if device is None else pipeline.to(device)  # type: ignore[return-value]

    @classmethod
    def _class_for(cls, index: dict[str, Any], where: str) -> type[DiffusionPipeline]:
        if cls is not DiffusionPipeline:
            return cls
        name = str(index.get("_class_name"))
        if name not in PIPELINES:
            raise ValueError(f"{where!r} is a checkpoint for {name!r}, a pipeline that there is not{nearest(name, PIPELINES)}"
                             f" (there are {listing(PIPELINES)})")
        return find(name)

    @classmethod
    def _load_component(cls, name: str, class_name: str, folder: Path, loading: dict[str, Any]) -> Any:
        if not known(class_name) and name in cls.optional_components:
            _log.warning("%s is left out: there is no %s", name, class_name)
            return None
        component, place = find(class_name), Source(folder, subfolder=name).folder(list)
        if not issubclass(component, nn.Module):
            return component.from_pretrained(place)
        return component.from_pretrained(place, **options_of(name, component, place, loading))

    @classmethod
    def from_pipe(cls: type[_Self], pipeline: DiffusionPipeline, **kwargs: Any) -> _Self:
        """A pipeline of this class from another one's components, without copying weights.

        `kwargs` replace components and options.
        """
        takes = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        check_keywords(f"{cls.__name__}.from_pipe", kwargs, takes)
        options = {name: value for name, value in pipeline._config.items() if not isinstance(value, nn.Module)}
        held = {**options, **pipeline.components, **kwargs}
        lacking = [name for name, parameter in inspect.signature(cls.__init__).parameters.items()
                   if name in takes and name not in held and parameter.default is inspect.Parameter.empty]
        if lacking:
            raise ValueError(f"a {type(pipeline).__name__} has no {listing(lacking)}, which {cls.__name__} needs: "
                             f"give it as from_pipe(…, {lacking[0]}=…)")
        return cls(**{name: held[name] for name in takes if name in held})

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, safe_serialization: bool = True, variant: str | None = None,
        max_shard_size: int | str = "10GB",
    ) -> None:
        """Write the pipeline as a folder that `from_pretrained`, here and in Diffusers, reads. Whole or not at all.

        Args:
            safe_serialization: must stay true; pickles are not written.
            variant: written into the weights' file names (`"fp16"`).
            max_shard_size: weights larger than this are divided into several files.
        """
        for name, component in self.components.items():
            if component is not None and not known(str(entry(component)[1])):
                raise ValueError(f"{name} is a {type(component).__name__}, which files have no name for: it cannot be saved")
        stems = {name: part.weights_stem for name, part in self.components.items() if isinstance(part, nn.Module)}

        def stale(path: str) -> bool:
            name, _, file = path.partition("/")
            return name in stems and replaced(file, str(stems[name]), variant)

        with staged_folder(save_directory, stale) as scratch:
            for name, component in self.components.items():
                if isinstance(component, nn.Module):
                    component.save_pretrained(  # type: ignore[operator]
                        scratch / name, variant=variant, max_shard_size=max_shard_size, safe_serialization=safe_serialization)
                elif component is not None:
                    component.save_pretrained(scratch / name)
            self.save_config(scratch)
            defaults.carry(self._loaded_from, scratch)

    # -- where it is --------------------------------------------------------------------------------------------------

    def _models(self) -> list[nn.Module]:
        return [part for part in self.components.values() if isinstance(part, nn.Module)]

    @property
    def device(self) -> torch.device:
        """Where the models work: where they are, or, offloaded, where they will be."""
        return next((part.device for part in self._models()), torch.device("cpu"))  # type: ignore[return-value]

    _execution_device = device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the models' parameters."""
        return next((part.dtype for part in self._models()), torch.float32)  # type: ignore[return-value]

    @property
    def name_or_path(self) -> str | None:
        """The name by which the pipeline was loaded."""
        return self._config.get("_name_or_path")

    def to(self: _Self, *args: Any, **kwargs: Any) -> _Self:
        """Move all models: `to("cuda")`, `to(torch.float16)`, `to("cuda", torch.float16)`.

        Raises:
            ValueError: the models are offloaded.
        """
        names = ("device", "torch_device", "dtype", "torch_dtype")
        check_keywords(f"{type(self).__name__}.to", kwargs, [*names, "silence_dtype_warnings"])
        targets = [*args, *(kwargs[name] for name in names if kwargs.get(name) is not None)]
        for target in targets:
            if not isinstance(target, (str, int, torch.device, torch.dtype)):
                raise TypeError(f"a pipeline is moved to a device or a dtype, and {target!r} is neither")
        for model in self._models():
            check_stays(model)
        for model in self._models():
            for target in targets:
                model.to(target)
        return self

    def compile(self: _Self, enabled: bool = True) -> _Self:
        """Have the steps of generations compiled: quicker ones, after the first generation of each size took a minute longer.

        PyTorch's inductor fuses what stands between convolutions and matrix products; pictures change by rounding. The code is
        kept in `~/.cache/calotype/compiled` (or below `CALOTYPE_CACHE`): another process has it in seconds, and so has a
        model with other weights of the same shapes. On a CPU it takes a C++ compiler. What cannot be compiled runs as usual.

        Args:
            enabled: whether to, or not any more.

        Returns:
            The pipeline itself.
        """
        for model in self._models():
            if isinstance(model, Model):
                model.compile_steps(enabled)
        return self

    # -- while it runs --------------------------------------------------------------------------------------------------

    _streaming: bool = False

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Step]:
        """The call with these arguments, step by step: `for step in pipeline.stream("a cat"): step.preview()[0].show()`.

        A generation goes no further than its consumer: leave the loop, and it has ended. The last step's `output` is what
        the call returns.
        """
        own = copy.copy(self)
        own._streaming = True
        return own(*args, **kwargs)  # type: ignore[operator]

    @property
    def interrupt(self) -> bool:
        """Set it, in a callback or from another thread, to end generations after the step that they are in.

        On the pipeline that a callback is given, it ends that generation; on the one that was called, all that run.
        """
        return self._stop.wanted

    @interrupt.setter
    def interrupt(self, wanted: bool) -> None:
        self._stop.want(bool(wanted))

    _interrupt = interrupt

    # -- progress -----------------------------------------------------------------------------------------------------

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Arguments for the progress bar (tqdm's): `disable=True` silences it."""
        self._progress = kwargs

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """A tqdm progress bar over `iterable` or up to `total`; none where there is no console."""
        return progress_bar(iterable, total=total, **self._progress)

    # -- calls that scripts make, and that have nothing to do here ------------------------------------------------------

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Nothing to do: attention never holds all scores at once (see `docs/differences.md`)."""

    def disable_attention_slicing(self) -> None:
        """Nothing to do, as for `enable_attention_slicing`."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Nothing to do: PyTorch's own memory-efficient attention is always used."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Nothing to do, as for `enable_xformers_memory_efficient_attention`."""


def _progress(names: list[str], loaded: dict[str, Any]) -> Iterable[str]:
    """`names`, with a progress bar on a terminal where several components are loaded."""
    return progress_bar(names, desc="Loading pipeline components", disable=None if len(loaded) > 1 else True, leave=False)


