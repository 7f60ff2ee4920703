"""How near the places of a picture are, estimated by DPT (Ranftl et al. 2021): classes of transformers, imported when used.

Transformers is given no folder that was downloaded: what a config may say stands here, and weights are read by our own reader.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from .checked_config import FLAG, NULL, Kind, by_name, checked, either, list_of, matching, number, one_of, optional, whole
from .files import read_json
from .runtime.offload import device_of
from .weight_files import choose_weights, weight_files
from .weights import read_tensors
from .words import some

_LENGTH, _COUNT, _SHARE = whole(1, 2**16), whole(1, 2**10), number(0, 1)
_ACTIVATION = one_of("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")
_STAGES = list_of(whole(-64, 1023), 64)
_AREA = either(_LENGTH, list_of(_LENGTH, 2))

_BACKBONE: dict[str, Kind] = {  # BiT (Kolesnikov et al. 2020), of DPT-Hybrid; no other is made from a file
    "model_type": one_of("bit"), "num_channels": _COUNT, "embedding_size": _LENGTH, "hidden_sizes": list_of(_LENGTH, 64),
    "depths": list_of(_COUNT, 64), "layer_type": one_of("preactivation", "bottleneck"), "hidden_act": _ACTIVATION,
    "global_padding": optional(one_of("same", "valid", "SAME", "VALID")), "num_groups": _LENGTH, "drop_path_rate": _SHARE,
    "embedding_dynamic_padding": FLAG, "output_stride": _LENGTH, "width_factor": _COUNT,
    "out_features": optional(list_of(matching(r"stem|stage\d{1,3}"), 64)), "out_indices": optional(_STAGES),
}
_MODEL: dict[str, Kind] = {
    "hidden_size": _LENGTH, "num_hidden_layers": _COUNT, "num_attention_heads": _COUNT, "intermediate_size": _LENGTH,
    "hidden_act": _ACTIVATION, "hidden_dropout_prob": _SHARE, "attention_probs_dropout_prob": _SHARE,
    "initializer_range": number(0, 100), "layer_norm_eps": _SHARE, "image_size": _AREA, "patch_size": _AREA,
    "num_channels": _COUNT, "is_hybrid": FLAG, "qkv_bias": FLAG, "backbone_out_indices": optional(_STAGES),
    "readout_type": one_of("ignore", "add", "project"), "reassemble_factors": list_of(number(0, 64), 64),
    "neck_hidden_sizes": list_of(_LENGTH, 64), "fusion_hidden_size": _LENGTH, "head_in_index": whole(-64, 63),
    "use_batch_norm_in_fusion_residual": FLAG, "use_bias_in_fusion_residual": optional(FLAG), "add_projection": FLAG,
    "use_auxiliary_head": FLAG, "auxiliary_loss_weight": number(0, 100), "semantic_loss_ignore_index": whole(-2**16, 2**16),
    "semantic_classifier_dropout": _SHARE, "backbone_featmap_shape": optional(list_of(_LENGTH, 4)),
    "neck_ignore_stages": optional(_STAGES), "pooler_output_size": optional(_LENGTH), "pooler_act": _ACTIVATION,
    "backbone_config": either(NULL, Kind("an object of 'model_type': 'bit'",
                                         lambda value: isinstance(value, dict) and value.get("model_type") == "bit")),
}
_EDGES = either(_LENGTH, by_name(_LENGTH, "height", "width", "shortest_edge", "longest_edge"))
_BY_CHANNEL = either(number(-1000, 1000), list_of(number(-1000, 1000), 4))
_PROCESSOR: dict[str, Kind] = {
    "do_resize": optional(FLAG), "size": optional(_EDGES), "default_to_square": optional(FLAG), "resample": optional(whole(0, 5)),
    "do_rescale": optional(FLAG), "rescale_factor": optional(number(0, 1000)), "do_normalize": optional(FLAG),
    "image_mean": optional(_BY_CHANNEL), "image_std": optional(_BY_CHANNEL), "do_pad": optional(FLAG),
    "do_center_crop": optional(FLAG), "crop_size": optional(_EDGES), "do_convert_rgb": optional(FLAG),
    "ensure_multiple_of": _LENGTH, "size_divisor": optional(_LENGTH), "keep_aspect_ratio": FLAG, "do_reduce_labels": FLAG,
}


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
        """Load the model of a folder. In float32 unless `torch_dtype` says otherwise; `"auto"` is what is in the file.

        Raises:
            ModuleNotFoundError: transformers is not installed.
            FileNotFoundError: there is no config, or there are no weights.
            ValueError: the config says what is not allowed here, or the weights do not fit it.
        """
        import transformers

        folder = Path(folder)
        config = _model_config(folder / "config.json", transformers)
        files = weight_files(folder, cls.weights_stem, variant, use_safetensors is not False)
        tensors = read_tensors(files)
        if torch_dtype == "auto":
            torch_dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), None)
        if not isinstance(torch_dtype, torch.dtype | None):
            raise ValueError(f"torch_dtype is {torch_dtype!r}, but must be a torch dtype such as torch.float16, or 'auto'")
        try:
            loaded: Any = transformers.DPTForDepthEstimation.from_pretrained(
                None, config=config, state_dict=tensors, dtype=torch_dtype or torch.float32, local_files_only=True,
                output_loading_info=True)
        except (RuntimeError, ValueError, TypeError, ZeroDivisionError, IndexError) as error:
            raise ValueError(f"the weights in {str(folder)!r} do not fit its config ({error})") from error
        model, about = loaded
        if missing := sorted(about["missing_keys"]):
            raise ValueError(f"the weights in {str(folder)!r} do not fit its config; missing: {some(missing)}")
        return cls(model.eval())

    def save_pretrained(self, save_directory: str | os.PathLike[str], safe_serialization: bool = True, **options: Any) -> None:
        """Write a folder that `from_pretrained`, here and in transformers, reads; with transformers' `options`."""
        self.model.save_pretrained(str(save_directory), **options)

    @classmethod
    def choose_files(cls, names: list[str], variant: str | None, use_safetensors: bool | None = None) -> list[str]:
        """Of the names in a model's folder, those that are needed to load it."""
        weights = choose_weights(names, cls.weights_stem, variant)
        if not weights and use_safetensors is False:
            weights = choose_weights(names, cls.weights_stem, variant, "bin")
        return [name for name in names if name == "config.json"] + weights

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
            ValueError: the file says what is not allowed here.
        """
        import transformers

        known = getattr(transformers, "DPTImageProcessorPil", None) or transformers.DPTImageProcessor  # by Pillow, where it can
        file = Path(folder) / "preprocessor_config.json"
        return cls(known(**checked(read_json(file), _PROCESSOR, str(file))))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `preprocessor_config.json`."""
        self.processor.save_pretrained(str(save_directory))

    def __call__(self, images: Any, return_tensors: str | None = None) -> Any:
        """`pixel_values` [n, 3, H, W] of a picture or a list of them."""
        return self.processor(images=images, return_tensors=return_tensors)


def _model_config(file: Path, transformers: Any) -> Any:
    """The `DPTConfig` that a file describes."""
    entries = checked(read_json(file), _MODEL, str(file))
    if entries.get("backbone_config") is not None:
        entries["backbone_config"] = transformers.BitConfig(**{
            name: value for name, value in checked(entries["backbone_config"], _BACKBONE, f"{file}: backbone_config").items()
            if name != "model_type"})
    try:
        return transformers.DPTConfig(**entries)
    except Exception as error:  # its own checks, whatever they raise
        raise ValueError(f"{str(file)!r} cannot be used ({error})") from error
