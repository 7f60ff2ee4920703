"""How near the places of a picture are, estimated by DPT (Ranftl et al. 2021): classes of transformers, imported when used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from .runtime.offload import device_of
from .weight_files import choose_weights


class DPTForDepthEstimation(nn.Module):
    """Holds transformers' model of this name, as `model`. Needs the extra `depth`."""

    weights_stem: ClassVar[str] = "model"

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    @classmethod
    def of(cls, model: Any) -> DPTForDepthEstimation | None:
        """Itself, or what holds a model of transformers; `None` of `None`."""
        return model if model is None or isinstance(model, cls) else cls(model)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, torch_dtype: torch.dtype | str | None = None, variant: str | None = None,
        use_safetensors: bool | None = None,
    ) -> DPTForDepthEstimation:
        """Load the model of a folder; of safetensors only. In float32 unless `torch_dtype` says otherwise.

        Raises:
            ModuleNotFoundError: transformers is not installed.
        """
        import transformers

        named = variant is not None and any(f".{variant}." in file.name for file in Path(folder).iterdir())
        return cls(transformers.DPTForDepthEstimation.from_pretrained(
            str(folder), dtype=torch_dtype or torch.float32, variant=variant if named else None, use_safetensors=True,
            local_files_only=True).eval())

    def save_pretrained(self, save_directory: str | os.PathLike[str], safe_serialization: bool = True, **options: Any) -> None:
        """Write a folder that `from_pretrained`, here and in transformers, reads; with transformers' `options`."""
        self.model.save_pretrained(str(save_directory), **options)

    @classmethod
    def choose_files(cls, names: list[str], variant: str | None, use_safetensors: bool | None = None) -> list[str]:
        """Of the names in a model's folder, those that are needed to load it."""
        return [name for name in names if name == "config.json"] + choose_weights(names, cls.weights_stem, variant)

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the model is; of an offloaded one, where it works."""
        return device_of(self) or self.model.device

    def forward(self, pixel_values: torch.Tensor) -> Any:
        """`predicted_depth` [n, h, w] of pictures [n, 3, H, W], as `DPTImageProcessor` prepares them."""
        return self.model(pixel_values)


class DPTImageProcessor:
    """Holds transformers' class of this name, as `processor`: pictures for `DPTForDepthEstimation`. Needs the extra `depth`."""

    def __init__(self, processor: Any):
        self.processor = processor

    @classmethod
    def of(cls, processor: Any) -> DPTImageProcessor | None:
        """Itself, or what holds a processor of transformers; `None` of `None`."""
        return processor if processor is None or isinstance(processor, cls) else cls(processor)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> DPTImageProcessor:
        """Read a folder's `preprocessor_config.json`.

        Raises:
            ModuleNotFoundError: transformers is not installed.
        """
        import transformers

        known = getattr(transformers, "DPTImageProcessorPil", None) or transformers.DPTImageProcessor  # by Pillow, where it can
        return cls(known.from_pretrained(str(folder), local_files_only=True))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `preprocessor_config.json`."""
        self.processor.save_pretrained(str(save_directory))

    def __call__(self, images: Any, return_tensors: str | None = None) -> Any:
        """`pixel_values` [n, 3, H, W] of a picture or a list of them."""
        return self.processor(images=images, return_tensors=return_tensors)
