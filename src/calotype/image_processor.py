"""From pictures to what CLIP's picture encoder reads: resized, cropped to the middle, and scaled channel by channel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .config import Configured, FrozenConfig, register_to_config
from .outputs import Output
from .words import check_choice, check_keywords, some

Size = int | Sequence[int] | Mapping[str, int]
_Self = TypeVar("_Self", bound="CLIPImageProcessor")


@dataclass
class Processed(Output):
    """`pixel_values`: of B pictures, [B, C, H, W] or a list of [C, H, W]."""

    pixel_values: Any

    def to(self, *args: Any, **kwargs: Any) -> Processed:
        """The same as a tensor on another device or of another dtype."""
        return Processed(self.pixel_values.to(*args, **kwargs))


class CLIPImageProcessor(Configured):
    """Pictures as CLIP was trained on them (Radford et al. 2021, arXiv:2103.00020), prepared with Pillow. Its arguments
    are those of transformers' class of this name; they are its attributes, and a call may replace them.

    Args:
        do_resize, size, resample: resize; `{"shortest_edge": 224}`, or just 224, keeps the proportions (rounding the longer
            side down), `{"height": 224, "width": 224}` does not. `resample` is Pillow's number: 3 is bicubic.
        do_center_crop, crop_size: cut out the middle, `{"height": 224, "width": 224}` or just 224; what is missing is black.
        do_rescale, rescale_factor: multiply the values 0 … 255.
        do_normalize, image_mean, image_std: then subtract and divide; one number, or one a channel.
        do_convert_rgb: make every picture RGB; what is transparent is laid on white.
    """

    config_name = "preprocessor_config.json"

    @register_to_config
    def __init__(
        self, do_resize: bool = True, size: Size = 224, resample: int = 3, do_center_crop: bool = True, crop_size: Size = 224,
        do_rescale: bool = True, rescale_factor: float = 1 / 255, do_normalize: bool = True,
        image_mean: float | Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: float | Sequence[float] = (0.26862954, 0.26130258, 0.27577711), do_convert_rgb: bool = True,
    ) -> None:
        sizes = {"size": _size(size, "shortest_edge"), "crop_size": _size(crop_size, "height", "width")}
        self.register_to_config(**sizes, resample=int(resample))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)

    def __call__(self, images: Any, return_tensors: str | None = None, **changes: Any) -> Processed:
        """Prepare pictures.

        Args:
            images: a PIL image, or an array or tensor, [H, W], [H, W, C] or [C, H, W], of bytes or of floats in [0, 1]
                (which are rescaled already, and not again); a list of such; or a batch in one array.
            return_tensors: `"pt"` or `"np"` for one [B, C, H, W], else a list of arrays [C, H, W].

        Raises:
            ValueError: what is no picture, or pictures of several sizes that should become one tensor.
        """
        check_choice("return_tensors", return_tensors, (None, "pt", "np"))
        check_keywords(type(self).__name__, changes, self._arguments())
        how = self.from_config(self.config, **changes).config
        single = isinstance(images, Image.Image) or (hasattr(images, "ndim") and images.ndim < 4)
        arrays: Any = [_prepare(picture, how) for picture in ([images] if single else images)]
        if return_tensors and len(shapes := {str(array.shape) for array in arrays}) != 1:
            raise ValueError(f"one tensor is of pictures of one size, and these are {some(sorted(shapes)) or 'no pictures'}")
        arrays = np.stack(arrays) if return_tensors else arrays
        if return_tensors == "pt":
            import torch

            arrays = torch.from_numpy(arrays)
        return Processed(arrays)

    preprocess = __call__

    @classmethod
    def from_pretrained(cls: type[_Self], pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> _Self:
        """Read `preprocessor_config.json`; `subfolder` says where in a checkpoint, other arguments replace entries."""
        config, entries = cls.load_config(pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs)
        check_keywords(f"{cls.__name__}.from_pretrained", entries, cls._arguments())
        return cls.from_config(config, **entries)

    save_pretrained = Configured.save_config

    @classmethod
    def _known_elsewhere(cls) -> set[str]:
        return {"feature_extractor_type", "image_processor_type", "processor_class", "use_square_size"}

    def _config_to_save(self) -> dict[str, Any]:
        return {name: self._config[name] for name in self._arguments()} | {
            "image_processor_type": "CLIPImageProcessor", "feature_extractor_type": "CLIPFeatureExtractor"}


def _size(size: Any, *one: str) -> dict[str, int]:
    """`size` as the format has it: edges by name, `one` number being those named in it."""
    edges = dict.fromkeys(one, size) if isinstance(size, int) else size
    edges = dict(zip(("height", "width"), edges, strict=True)) if isinstance(edges, (list, tuple)) else edges
    if not isinstance(edges, Mapping) or set(edges) not in ({"height", "width"}, set(one)) or min(edges.values()) < 1:
        told = dict(size) if isinstance(size, Mapping) else size
        raise ValueError(f"a size is {told!r}, but must be a number of pixels, or by name: {some(one)} or height, width")
    return dict(edges)


def _prepare(picture: Any, how: FrozenConfig) -> NDArray[Any]:
    """[C, H, W] of one picture."""
    scale = how.rescale_factor if how.do_rescale else None
    if not isinstance(picture, Image.Image):
        array = _array(picture)
        scale = scale or (1 / 255 if array.dtype.kind == "f" else None)
        picture = _to_pil(array)
    if how.do_convert_rgb and (picture.mode in ("I", "F") or picture.mode.startswith("I;16")):
        from .images.reading import plain  # which loads torch

        picture = plain(picture)
    if how.do_convert_rgb and (picture.mode.endswith("A") or "transparency" in picture.info):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    picture = picture.convert("RGB") if how.do_convert_rgb else picture
    if how.do_resize:
        shortest, size = how.size.get("shortest_edge"), [how.size.get("width"), how.size.get("height")]
        size = [edge * shortest // min(picture.size) for edge in picture.size] if shortest else size
        picture = picture.resize(size, how.resample)
    if how.do_center_crop:
        width, height = how.crop_size["width"], how.crop_size["height"]
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    array = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
    array = array if scale is None else (array * scale).astype(np.float32)
    if how.do_normalize:
        mean, deviation = (np.float32(value).reshape(-1, 1, 1) for value in (how.image_mean, how.image_std))
        if not {len(mean), len(deviation)} <= {1, len(array)}:
            raise ValueError(f"image_mean is for {len(mean)} channels, image_std for {len(deviation)}; these are {len(array)}")
        array = (array - mean) / deviation
    return np.ascontiguousarray(array)


def _array(picture: Any) -> NDArray[Any]:
    """An array of what is one, or of a tensor wherever it is."""
    if hasattr(picture, "detach"):
        picture = picture.detach().cpu()
        picture = picture.float() if picture.is_floating_point() and picture.element_size() == 2 else picture  # bfloat16 too
    return np.asarray(picture)


def _to_pil(array: NDArray[Any]) -> Image.Image:
    """[H, W], [H, W, C] or [C, H, W], of bytes, booleans, 16 bits or floats in [0, 1], as a picture of 8 bits."""
    if array.dtype == bool:
        array = array * np.uint8(255)
    if array.dtype == np.uint16 and array.size and array.max() > 255:
        array = array / 65535
    top = {"u": 255, "i": 255, "f": 1}.get(array.dtype.kind, 0)
    if not (top and array.size and array.min() >= 0 and array.max() <= top):
        raise ValueError(f"a picture is a PIL image, bytes from 0 to 255 or floats from 0 to 1, and this is {array!r:.60}")
    if array.ndim == 3 and (array.shape[0] in (1, 3) or (array.shape[0] == 4 and array.shape[2] not in (1, 3, 4))):
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(f"a picture is an array {list(array.shape)}, but must be [H, W], [H, W, C] or [C, H, W], "
                         "C one of 1, 3, 4")
    array = array[..., 0] if array.shape[2:] == (1,) else array
    return Image.fromarray((array * (255 // top)).round().astype(np.uint8))
