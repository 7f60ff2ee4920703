"""Pictures as people have them: PIL images of any mode, arrays and tensors of bytes or of floats."""

from __future__ import annotations

import functools
import logging
import math
import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_log = logging.getLogger(__name__)
_ROUNDING = 1e-3  # a quarter of a grey level beyond the range of floats is nobody's mistake


def plain(picture: Any, background: str = "white") -> Any:
    """A PIL image of any mode as one of 8 bits that hides nothing, of mode "L" or "RGB".

    What is transparent is laid on `background` (and said once a process). 16 bits ("I;16", "I" above 255) are scaled to 8
    rather than cut off, and so are floats in [0, 1] ("F", which is otherwise of 0 … 255). Palettes, ink and bits ("P",
    "CMYK", "1") become what they show. Orientation noted in EXIF is left alone: `PIL.ImageOps.exif_transpose` applies it.

    Raises:
        ValueError: numbers below 0, not finite, or above what the mode can mean.
    """
    from PIL import Image

    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _eight_bits(picture)
    grey = picture.mode in ("1", "L", "LA", "La")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema()[0] < 255:
            _say_laid(background)
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, background), picture)
    mode = "L" if grey else "RGB"
    return picture if picture.mode == mode else picture.convert(mode)


def pictures_of(given: Any, grey: bool = False, latent_channels: int | None = None) -> list[Any]:
    """One by one, the pictures of a PIL image, an array, a tensor or a list of such.

    Args:
        given: arrays are [H, W], [H, W, C] or [B, H, W, C], tensors [H, W], [C, H, W] or [B, C, H, W], of 1 or 3 channels;
            bytes may have 4 (RGBA), floats `latent_channels`, which are latents.
        grey: three axes without one of 1, 3 or 4 colours at the end of an array, and any of a tensor, are [B, H, W].

    Returns:
        Bytes, 16 bits and booleans as PIL images of 8 bits; floats in [-1, 1] as tensors [B, C, H, W], latents too.

    Raises:
        ValueError: what is no picture, or one out of range or not finite.
    """
    from PIL import Image

    if isinstance(given, (list, tuple)):
        if not given:
            raise ValueError("the list of pictures is empty; at least one is needed")
        return [picture for one in given for picture in pictures_of(one, grey, latent_channels)]
    if isinstance(given, Image.Image):
        return [given]
    if isinstance(given, (str, bytes, os.PathLike)):
        raise ValueError(f"a picture is {given!r:.80}, but names of files and addresses are not opened here: "
                         "give PIL.Image.open(file), or a list of PIL images, arrays or tensors")
    if not isinstance(given, (np.ndarray, Tensor)):
        raise ValueError(f"a picture is a PIL image, a NumPy array, a tensor or a list of them, not a {type(given).__name__}")
    is_array = isinstance(given, np.ndarray)
    batch = _batch(given if _is_floating(given) else _bytes(given), grey, channels_last=is_array)
    floats = batch.is_floating_point()
    channels = sorted({1, 3, latent_channels or 3} if floats else {1, 3, 4})
    if batch.ndim != 4 or batch.shape[1] not in channels or not batch.numel():
        layout = "[H, W], [H, W, C] or [B, H, W, C]" if is_array else "[H, W], [C, H, W] or [B, C, H, W]"
        raise ValueError(f"a picture is a {described(given)}, but must be {layout}, C one of {', '.join(map(str, channels))}")
    if not floats:
        return [Image.fromarray(one[0].numpy() if len(one) == 1 else one.permute(1, 2, 0).numpy()) for one in batch]
    lowest, highest = float(batch.min()), float(batch.max())
    if not math.isfinite(lowest + highest):
        raise ValueError(f"a picture is a {described(given)} with NaN or infinite values; they must be in [0, 1] or [-1, 1]")
    if batch.shape[1] != latent_channels and (lowest < -1 - _ROUNDING or highest > 1 + _ROUNDING):
        raise ValueError(f"a picture is a {described(given)} with values from {lowest:.4g} to {highest:.4g}, but floats must be "
                         "in [0, 1] or [-1, 1]; divide by 255, or give bytes (uint8)")
    return [batch]


def described(given: Any) -> str:
    """What an error calls something that is no picture."""
    words = [type(given).__name__, *(str(getattr(given, name)) for name in ("dtype", "shape") if hasattr(given, name))]
    return " ".join(words)


def _is_floating(given: Any) -> bool:
    return given.is_floating_point() if isinstance(given, Tensor) else given.dtype.kind == "f"


def _bytes(given: Any) -> NDArray[Any]:
    """Whole numbers or booleans as bytes."""
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return (array / 257).round().astype(np.uint8)
    if array.dtype.kind not in "ui" or (array.size and (array.min() < 0 or array.max() > 255)):
        values = f" with values from {array.min()} to {array.max()}" if array.dtype.kind in "ui" else ""
        raise ValueError(f"a picture is a {described(given)}{values}, but must be of 0 … 255, uint16, bool or floats")
    return array.astype(np.uint8)


def _batch(given: Any, grey: bool, channels_last: bool) -> Tensor:
    """[B, C, H, W] of an array or a tensor that has two, three or four axes; of others, what it is."""
    batch = given if isinstance(given, Tensor) else torch.from_numpy(given.copy())  # NumPy's may be reversed or read-only
    if batch.ndim == 2:
        return batch[None, None]
    if batch.ndim == 3:
        colours = channels_last and batch.shape[-1] in (1, 3, 4)
        batch = batch[None] if colours or not grey else batch[..., None] if channels_last else batch[:, None]
    return batch.permute(0, 3, 1, 2) if channels_last and batch.ndim == 4 else batch


def _eight_bits(picture: Any) -> Any:
    """"L" of a picture of more than 8 bits."""
    from PIL import Image

    array = np.asarray(picture, np.float64)
    tops = {"I": (255, 65535), "F": (1, 255)}.get(picture.mode, (65535,))
    lowest, highest = (array.min(), array.max()) if array.size else (0, 0)
    if not (lowest >= 0 and highest <= tops[-1]):  # NaN is neither
        raise ValueError(f"a picture of mode {picture.mode!r} has values from {lowest:.4g} to {highest:.4g}, but must have them "
                         f"from 0 to {tops[-1]}")
    top = next(top for top in tops if highest <= top)
    return Image.fromarray((array * (255 / top)).round().astype(np.uint8))


@functools.cache
def _say_laid(background: str) -> None:
    _log.warning("a picture has transparent parts, which are laid on %s; lay it on another background to choose one", background)
