"""What all pipelines are: named components that are loaded, saved, moved and shared together."""

from __future__ import annotations

import copy
import inspect
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from .. import defaults
from ..config import Configured, FrozenConfig
from ..files import read_json, staged_folder
from ..hub import split_options
from ..models.base import Model
from ..outputs import Output
from ..registry import PIPELINES, entry, find, known
from ..runtime.offload import check_stays
from ..weight_files import is_weights
from ..words import check_keywords, listing, nearest
from .generation import Step, Stop
from .offloading import Offloading

_log = logging.getLogger(__name__)
_Self = TypeVar("_Self", bound="DiffusionPipeline")
_HOW_TO_LOAD = ("low_cpu_mem_usage", "device_map", "use_onnx", "custom_pipeline", "custom_revision", "trust_remote_code")


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
        fast: use what makes it faster without changing its pictures (on by default).
    """

    config_name = "model_index.json"
    optional_components: ClassVar[tuple[str, ...]] = ()
    """Components that may be `None`."""

    fast: bool = True
    _loaded_from: Path | None = None

    def register_modules(self, **components: Any) -> None:
        """Make `components` attributes of the pipeline, and part of what it saves."""
        self._names: tuple[str, ...] = tuple(components)
        self._progress: dict[str, Any] = {}
        self._stop = Stop()
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
            torch_dtype: the parameters' type (float32 by default); a dictionary gives it by component, with `"default"`.
            variant: load `….variant.safetensors` (`"fp16"`) where there is one.
            use_safetensors: `False` allows pickled weights, read by PyTorch's weights-only reader.
            **kwargs: components to use instead of the checkpoint's (`scheduler=…`, `safety_checker=None`), options of the
                pipeline, and the options of `hub.Source` (`revision`, `token`, `cache_dir`, `local_files_only`, …).

        Raises:
            FileNotFoundError: no such checkpoint; says what was tried.
            ValueError: the checkpoint names a class that there is not, or a file is damaged; names it.
        """
        source, given = split_options(pretrained_model_name_or_path, kwargs)
        for ignored in _HOW_TO_LOAD:
            given.pop(ignored, None)
        if "dtype" in given:
            given.setdefault("torch_dtype", given.pop("dtype"))
        loading = {name: given.pop(name, None) for name in ("torch_dtype", "variant", "use_safetensors")}
        index = read_json(source.file(cls.config_name))
        pipeline_class = cls._class_for(index, str(source.name))
        parameters = inspect.signature(pipeline_class.__init__).parameters
        takes = [name for name in parameters if name != "self"]
        check_keywords(f"{pipeline_class.__name__}.from_pretrained", given, takes + list(loading))
        named = {name: tuple(said) for name, said in index.items() if isinstance(said, (list, tuple)) and len(said) == 2}
        wanted = {name: said for name, said in named.items() if name in takes and name not in given and said[1]}
        folder = source.folder(lambda names: _choose_files(names, wanted, loading))
        parts: dict[str, Any] = {}
        for name in _progress(takes, wanted):
            if name in given:
                parts[name] = given[name]
            elif name in wanted:
                parts[name] = pipeline_class._load_component(name, wanted[name][1], folder, loading)
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
        return pipeline  # type: ignore[return-value]

    @classmethod
    def _class_for(cls, index: dict[str, Any], where: str) -> type[DiffusionPipeline]:
        if cls is not DiffusionPipeline:
            return cls
        name = str(index.get("_class_name"))
        if not known(name):
            raise ValueError(f"{where!r} is a checkpoint for {name!r}, a pipeline that there is not{nearest(name, PIPELINES)}"
                             f" (there are {listing(PIPELINES)})")
        return find(name)

    @classmethod
    def _load_component(cls, name: str, class_name: str, folder: Path, loading: dict[str, Any]) -> Any:
        if not known(class_name) and name in cls.optional_components:
            _log.warning("%s is left out: there is no %s", name, class_name)
            return None
        component = find(class_name)
        if not issubclass(component, nn.Module):
            return component.from_pretrained(folder / name)
        dtype = loading["torch_dtype"]
        options = {**loading, "torch_dtype": dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype}
        return component.from_pretrained(folder / name, **options)

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
        stems = {str(component.weights_stem) for component in self._models()}
        with staged_folder(save_directory, lambda name: any(is_weights(name, stem, variant) for stem in stems)) as scratch:
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
        self._stop.wanted = bool(wanted)

    _interrupt = interrupt

    # -- progress -----------------------------------------------------------------------------------------------------

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Arguments for the progress bar (tqdm's): `disable=True` silences it."""
        self._progress = kwargs

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> Any:
        """A tqdm progress bar over `iterable` or up to `total`."""
        from tqdm.auto import tqdm

        return tqdm(iterable, total=total, **self._progress)

    # -- calls that scripts make, and that have nothing to do here ------------------------------------------------------

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Nothing to do: attention never holds all scores at once (see `docs/differences.md`)."""

    def disable_attention_slicing(self) -> None:
        """Nothing to do, as for `enable_attention_slicing`."""

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Nothing to do: PyTorch's own memory-efficient attention is always used."""

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Nothing to do, as for `enable_xformers_memory_efficient_attention`."""


def _choose_files(names: list[str], wanted: dict[str, tuple[str, str]], loading: dict[str, Any]) -> list[str]:
    """Of a repository's files, those that the wanted components are loaded from."""
    chosen = [DiffusionPipeline.config_name, *(name for name in names if name == defaults.FILE)]
    for part, (_, class_name) in wanted.items():
        inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        if known(class_name) and issubclass(find(class_name), nn.Module):
            inside = find(class_name).choose_files(inside, loading["variant"], loading["use_safetensors"])
        else:
            inside = [name for name in inside if name.endswith((".json", ".txt")) and "/" not in name]
        chosen += [f"{part}/{name}" for name in inside]
    return chosen


def _progress(names: list[str], loaded: dict[str, Any]) -> Iterable[str]:
    """`names`, with a progress bar on a terminal where several components are loaded."""
    from tqdm.auto import tqdm

    return tqdm(names, desc="Loading pipeline components", disable=None if len(loaded) > 1 else True, leave=False)


