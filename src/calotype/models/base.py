"""What all models share: they are made from a config, loaded from and saved to a folder, and know what they are."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..config import Configured
from ..files import staged_folder
from ..hub import split_options
from ..load_options import drop_needless, take_device, take_dtype
from ..runtime.attention import check_backend
from ..runtime.offload import check_stays, device_of
from ..weight_files import check_variant, choose_weights, kinds_of, replaced, weight_files
from ..weights import assign_weights, read_tensors, write_tensors
from ..words import check_keywords

_log = logging.getLogger(__name__)
_Self = TypeVar("_Self", bound="Model")


class _Unfilled(TorchFunctionMode):
    """Leaves out all initialisation. On the meta device it would change nothing, but import a compiler to do so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs or {})


class Model(nn.Module, Configured):
    """A network with a config.

    A subclass decorates its `__init__` with `register_to_config`. It keeps no buffers that are not in its checkpoints,
    since a model is built on the meta device and only what a checkpoint holds is ever put in place.
    """

    weights_stem: ClassVar[str] = "diffusion_pytorch_model"
    """The weights' file name before `.safetensors`."""

    gradient_checkpointing: bool = False
    compiled_steps: bool = False

    # -- loading and saving -----------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls: type[_Self], pretrained_model_name_or_path: str | os.PathLike[str], *,
        variant: str | None = None, use_safetensors: bool | None = None, disable_mmap: bool = False, **kwargs: Any,
    ) -> _Self:
        """Load a model, ready to use (in evaluation mode).

        Args:
            pretrained_model_name_or_path: a bundled name, a folder, or a Hub repository.
            variant: load `….variant.safetensors` (`"fp16"`).
            use_safetensors: `False` reads pickled weights (`.bin`) where there are such, by PyTorch's weights-only reader.
            disable_mmap: read files at once, which can be quicker on a network's drive, rather than map them.
            **kwargs: `torch_dtype` (or `dtype`), the parameters' type: float32 by default, whatever is in the file, and
                `"auto"` keeps the file's; `device_map`, the device (`"cuda"`; `"auto"`: the best there is); `subfolder`,
                the options of `hub.Source`, and config entries to replace.

        Raises:
            FileNotFoundError: no such checkpoint, or it has no weights, or none of the variant; says what was tried or found.
            ValueError: a file is damaged, or tensors are missing or have wrong shapes; names them.
        """
        source, entries = split_options(pretrained_model_name_or_path, kwargs)
        torch_dtype, device = take_dtype(entries), take_device(entries)
        drop_needless(entries)
        check_keywords(f"{cls.__name__}.from_pretrained", entries, cls._arguments())

        def choose(names: list[str]) -> list[str]:
            check_variant(names, cls.weights_stem, variant, str(source.name), use_safetensors)
            return cls.choose_files(names, variant, use_safetensors)

        folder = source.folder(choose)
        choose([path.name for path in folder.iterdir()])  # a local folder was not asked for
        files = weight_files(folder, cls.weights_stem, variant, use_safetensors)
        config = cls.load_config(folder)
        with torch.device("meta"), _Unfilled():
            model = cls.from_config(config, **entries)
        tensors = {cls.current_name(name): tensor for name, tensor in read_tensors(files, mapped=not disable_mmap).items()}
        dtype = None if torch_dtype == "auto" else torch_dtype or torch.float32
        unexpected = [n for n in assign_weights(model, tensors, str(folder), dtype) if not cls.is_stale(n)]
        if unexpected:
            _log.warning("%s has no use for %d tensors in %r: %s", cls.__name__, len(unexpected), str(folder),
                         ", ".join(unexpected[:12]))
        model.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return (model if device is None else model.to(device)).eval()

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, variant: str | None = None, max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
    ) -> None:
        """Write config and weights into a folder, so that Diffusers reads them too.

        Args:
            variant: written into the file names (`"fp16"`).
            max_shard_size: weights larger than this (bytes, or text such as `"5GB"`) are divided into several files.
            safe_serialization: must stay true; pickles are not written.
        """
        if not safe_serialization:
            raise ValueError("weights are saved as safetensors only; leave safe_serialization as it is")
        if "_lora" in vars(self):
            raise ValueError(f"the {type(self).__name__} has LoRA adapters under training, which its files have no place for: "
                             "save those by save_lora_weights of a pipeline, or call remove_lora first")
        with staged_folder(save_directory, lambda name: replaced(name, self.weights_stem, variant)) as scratch:
            write_tensors(self.state_dict(), scratch, self.weights_stem, variant, max_shard_size)
            self.save_config(scratch)

    @classmethod
    def choose_files(cls, names: list[str], variant: str | None, use_safetensors: bool | None = None) -> list[str]:
        """Of the names in a model's folder, those that are needed to load it."""
        weights = choose_weights(names, cls.weights_stem, variant, *kinds_of(use_safetensors))
        return [name for name in names if name == cls.config_name] + weights

    @classmethod
    def current_name(cls, name: str) -> str:
        """The present name of a parameter that older checkpoints call `name`."""
        return name

    @classmethod
    def is_stale(cls, name: str) -> bool:
        """Whether `name` is a tensor that older checkpoints hold and no model needs."""
        return False

    @classmethod
    def _known_elsewhere(cls) -> set[str]:  # what averages of a model in training leave in its config
        return {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "sigma_rel", "update_after_step",
                "use_ema_warmup"}

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first floating-point parameter."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def device(self) -> torch.device:
        """Where the first parameter is; of an offloaded model, where it works."""
        return device_of(self) or next((p.device for p in self.parameters()), torch.device("cpu"))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        check_stays(self)  # `to`, `half`, `cuda`, … come here
        return super()._apply(fn, recurse)

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the parameters hold."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    __repr__ = nn.Module.__repr__

    # -- how it runs ----------------------------------------------------------------------------------------------------

    def set_attention_backend(self, backend: str) -> None:
        """Let attention be computed by one of `"auto"`, `"native"`, `"cudnn"`, `"flash"`, `"efficient"`, `"math"`, `"xformers"`.

        Raises:
            ValueError: there is none of that name. Whether it takes a model's shapes shows when it is called.
        """
        name = check_backend(backend)
        for module in self.modules():
            if isinstance(getattr(module, "backend", None), str):
                vars(module)["backend"] = name
        vars(self).pop("_recordings", None)

    def compile_steps(self, enabled: bool = True) -> None:
        """Have the calls of a generation compiled from now on: see `DiffusionPipeline.compile`."""
        self.compiled_steps = enabled
        vars(self).pop("_recordings", None)

    def compile_repeated_blocks(self, *args: Any, **kwargs: Any) -> None:
        """`compile_steps`, by the name that Diffusers has for the nearest thing; arguments of `torch.compile` change nothing."""
        self.compile_steps()

    # -- training -----------------------------------------------------------------------------------------------------

    def enable_gradient_checkpointing(self) -> None:
        """Keep no activations inside blocks while training: compute them again on the way back (less memory, slower)."""
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        """Undo `enable_gradient_checkpointing`."""
        self.gradient_checkpointing = False

    def run(self, block: Callable[..., Any], *args: Any) -> Any:
        """Call a block, under gradient checkpointing where that is enabled and gradients are recorded."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            from torch.utils.checkpoint import checkpoint

            return checkpoint(block, *args, use_reentrant=False)
        return block(*args)
