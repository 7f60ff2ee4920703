"""Pictures as people have them: PIL images of any mode, arrays and tensors of bytes or of floats.

What a picture is, is told of each by itself, whatever stands beside it in a list; an array or a tensor of several is one.
"""

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

from ..words import some

_log = logging.getLogger(__name__)
_ROUNDING = 1e-3  # a quarter of a grey level beyond the range of floats is nobody's mistake


def plain(picture: Any, background: str = "white") -> Any:
    """A PIL image of any mode as one of 8 bits that hides nothing, of mode "L" or "RGB".

    What is transparent is laid on `background` (and said once a process). More than 8 bits are scaled to 8 rather than cut off:
    whole numbers ("I;16", "I") are of 0 … 255 if none is above, else of 0 … 65535; floats ("F") of 0 … 1 or 0 … 255. Palettes,
    ink and bits ("P", "CMYK", "1") become what they show. Orientation noted in EXIF is left alone:
    `PIL.ImageOps.exif_transpose` applies it.

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


def plain_mask(mask: Any) -> Any:
    """A mask of any mode as one of mode "L" or "RGB", what is transparent black.

    Where no value is above 1, the mask was made of whole numbers 0 and 1, as programs for segmentation do, and 1 is white; a
    picture of such values would be black everywhere.
    """
    if mask.mode == "F" or not mask.has_transparency_data:
        return _spread(plain(mask))
    return plain(_spread(mask.convert("RGBA")), "black")


def _spread(picture: Any) -> Any:
    """0 and 1 as 0 and 255; a picture that has other values, colours half transparent too, as it is."""
    tops = [band.getextrema()[1] for band in picture.split()]
    if picture.mode == "RGBA":
        alpha = tops.pop()
        if alpha > 1 and picture.getchannel("A").getextrema()[0] < 255:
            return picture
    return picture.point(lambda value: 255 * (value > 0)) if max(tops) == 1 else picture


def are_latents(given: Any, channels: int, grey: bool = False) -> bool:
    """Whether something given as pictures is latents of so many channels instead: a tensor of floats, or a list of them.

    - [B, C, h, w] with C = `channels` is latents.
    - [C, h, w] too, but where it has four channels in [0, 1]: then it is one picture with transparency.
    - With one or three channels, as pictures have them too, the values tell: in [-1, 1] it is a picture.

    Arrays are pictures always.

    Args:
        grey: as in `pictures_of`.

    Raises:
        ValueError: a list has both.
    """
    if isinstance(given, (list, tuple)):
        kinds = {are_latents(one, channels, grey) for one in given}
        if len(kinds) > 1:
            raise ValueError("a list has pictures and latents; give them in calls of their own")
        return kinds == {True}
    if not isinstance(given, Tensor) or not given.is_floating_point() or not given.numel():
        return False
    if (given.ndim != 4 and (given.ndim != 3 or grey)) or given.shape[-3] != channels:
        return False
    if channels in (1, 3):
        return not _within(given, -1)
    return given.ndim == 4 or channels != 4 or not _within(given, 0)


def latents_of(given: Any) -> Tensor:
    """[B, C, h, w] of what `are_latents`.

    Raises:
        ValueError: not finite, or of several shapes.
    """
    batches = [one if one.ndim == 4 else one[None] for one in (given if isinstance(given, (list, tuple)) else [given])]
    for one in batches:
        if not one.isfinite().all():
            raise ValueError(f"latents are a {described(one)} with NaN or infinite values")
    return joined(batches)


def pictures_of(given: Any, grey: bool = False) -> list[Any]:
    """One by one, the pictures of a PIL image, an array, a tensor or a list of such.

    Args:
        given: arrays are [H, W], [H, W, C] or [B, H, W, C], tensors [H, W], [C, H, W] or [B, C, H, W], of 1, 3 or (RGBA) 4
            channels. What are latents is told before, by `are_latents`.
        grey: three axes without one of 1, 3 or 4 colours at the end of an array, and any of a tensor, are [B, H, W].

    Returns:
        Bytes, 16 bits and booleans as PIL images of 8 bits; floats as tensors [B, C, H, W], in [0, 1] or [-1, 1], those of 4
        channels in [0, 1].

    Raises:
        ValueError: what is no picture, or one out of range or not finite.
    """
    from PIL import Image

    if isinstance(given, (list, tuple)):
        if not given:
            raise ValueError("the list of pictures is empty; at least one is needed")
        return [picture for one in given for picture in pictures_of(one, grey)]
    if isinstance(given, Image.Image):
        return [given]
    if isinstance(given, (str, bytes, os.PathLike)):
        raise ValueError(f"a picture is {given!r:.80}, but names of files and addresses are not opened here: "
                         "give calotype.load_image(file), or a list of PIL images, arrays or tensors")
    if not isinstance(given, (np.ndarray, Tensor)):
        raise ValueError(f"a picture is a PIL image, a NumPy array, a tensor or a list of them, not a {type(given).__name__}")
    is_array = isinstance(given, np.ndarray)
    batch = _batch(given if _is_floating(given) else _bytes(given), grey, channels_last=is_array)
    if batch.ndim != 4 or batch.shape[1] not in (1, 3, 4) or not batch.numel():
        layout = "[H, W], [H, W, C] or [B, H, W, C]" if is_array else "[H, W], [C, H, W] or [B, C, H, W]"
        raise ValueError(f"a picture is a {described(given)}, but must be {layout}, C one of 1, 3, 4")
    if not batch.is_floating_point():
        return [Image.fromarray(one[0].numpy() if len(one) == 1 else one.permute(1, 2, 0).numpy()) for one in batch]
    lowest, highest = float(batch.min()), float(batch.max())
    if not math.isfinite(lowest + highest):
        raise ValueError(f"a picture is a {described(given)} with NaN or infinite values; they must be in [0, 1] or [-1, 1]")
    if not _within(batch, 0 if batch.shape[1] == 4 else -1):
        allowed = "[0, 1], since it has transparency (4 channels)" if batch.shape[1] == 4 else "[0, 1] or [-1, 1]"
        raise ValueError(f"a picture is a {described(given)} with values from {lowest:.4g} to {highest:.4g}, but floats must be "
                         f"in {allowed}; divide by 255, or give bytes (uint8)")
    return [batch]


def laid(pictures: Tensor, background: str) -> Tensor:
    """[B, 3, H, W] of floats [B, 4, H, W] in [0, 1], laid on black or white as `plain` does it."""
    colours, alpha = pictures[:, :3], pictures[:, 3:]
    if alpha.min() < 1:
        _say_laid(background)
    return (colours * alpha + (1 - alpha) * (background == "white")).clamp(0, 1)


def joined(batches: list[Tensor]) -> Tensor:
    """One batch of all."""
    if len(shapes := {str(list(one.shape[1:])) for one in batches}) > 1:
        raise ValueError(f"one tensor is of pictures of one shape, and these are {some(sorted(shapes))} ([C, H, W])")
    return torch.cat(batches)


def _within(values: Tensor, lowest: int) -> bool:
    """Whether floats are from `lowest` to 1; NaN is not."""
    return bool(values.min() >= lowest - _ROUNDING and values.max() <= 1 + _ROUNDING)


def described(given: Any) -> str:
    """What an error calls something that is no picture."""
    words = [type(given).__name__, *(str(getattr(given, name)) for name in ("dtype", "shape") if hasattr(given, name))]
    return " ".join(words)


def _is_floating(given: Any) -> bool:
    return given.is_floating_point() if isinstance(given, Tensor) else given.dtype.kind == "f"


def _bytes(given: Any) -> NDArray[Any]:
    """Whole numbers or booleans as bytes. 16 bits may hold them too: then none is above 255."""
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16 and array.size and array.max() > 255:
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
    tops = (1, 255) if picture.mode == "F" else (255, 65535)
    lowest, highest = (array.min(), array.max()) if array.size else (0, 0)
    if not (lowest >= 0 and highest <= tops[-1]):  # NaN is neither
        raise ValueError(f"a picture of mode {picture.mode!r} has values from {lowest:.4g} to {highest:.4g}, but must have them "
                         f"from 0 to {tops[-1]}")
    top = next(top for top in tops if highest <= top)
    return Image.fromarray((array * (255 / top)).round().astype(np.uint8))


@functools.cache
def _say_laid(background: str) -> None:
    _log.warning("a picture has transparent parts, which are laid on %s; lay it on another background to choose one", background)
