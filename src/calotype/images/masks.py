"""Masks for inpainting: white is painted anew, black is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from .reading import are_latents, pictures_of, plain, plain_mask

if TYPE_CHECKING:
    from PIL.Image import Image

    from .vae_processor import VaeImageProcessor


def prepare_mask(mask_image: Any, height: int, width: int, processor: VaeImageProcessor, **how: Any) -> Tensor:
    """A mask as a tensor.

    Args:
        mask_image: what `VaeImageProcessor.preprocess` takes, of any size; it is resized. Colours become grey, and what is
            transparent black. Whole numbers are 0 and 255, booleans, or 0 and 1. Tensors of three axes are [B, H, W].
        height, width: of the pictures, in pixels.
        processor: made with `do_normalize=False, do_convert_grayscale=True`, and with `do_binarize=True` unless the mask is
            soft, that is, keeps its greys.
        **how: `resize_mode` and `crops_coords` of `VaeImageProcessor.preprocess`.

    Returns:
        [B, 1, H, W] in {0, 1}, or in [0, 1] if soft.

    Raises:
        ValueError: what is no mask: no picture, negative values, other than one channel or three; or a processor for pictures.
    """
    if processor.config.do_normalize or not processor.config.do_convert_grayscale:
        raise ValueError("a mask needs VaeImageProcessor(do_normalize=False, do_convert_grayscale=True), and do_binarize=True "
                         "unless it is soft")
    if mask_image is None:
        raise ValueError("mask_image is None, but must be a PIL image, an array, a tensor or a list of them")
    if are_latents(mask_image, processor.config.vae_latent_channels, grey=True):
        raise ValueError("a mask has the channels of latents, but must have 1, 3 or 4 (RGBA, of three axes)")
    masks = pictures_of(mask_image, grey=True)
    if lowest := min((float(one.min()) for one in masks if isinstance(one, Tensor) and one.min() < 0), default=0):
        raise ValueError(f"a mask has values from {lowest:.4g}, but floats must be in [0, 1]")
    return processor.preprocess(mask_image, height, width, **how)


def masked_picture(picture: Tensor, mask: Tensor) -> Tensor:
    """What is kept of a picture, and grey (zero) elsewhere: what the UNet of an inpainting checkpoint is given.

    Args:
        picture: [B, C, H, W] in [-1, 1].
        mask: [B, 1, H, W] or [1, 1, H, W]; a soft one keeps what is below 0.5.

    Raises:
        ValueError: sizes or numbers that do not go together.
    """
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2:] != picture.shape[2:] or len(mask) not in (1, len(picture)):
        raise ValueError(f"a mask is {list(mask.shape)}, but for pictures {list(picture.shape)} must be "
                         f"{[len(picture), 1, *picture.shape[2:]]} or {[1, 1, *picture.shape[2:]]}")
    return picture * (mask < 0.5)


def crop_region(mask_image: Image, width: int, height: int, pad: int = 0) -> tuple[int, int, int, int]:
    """The box around what is to be painted, for painting it at full resolution (`padding_mask_crop`).

    The box of all that is not black is widened by `pad` on every side, and then to the proportions of `width` x `height`, both
    as far as the picture goes.

    Returns:
        (left, top, right, bottom) in pixels of the mask.

    Raises:
        ValueError: the mask is black everywhere.
    """
    box = plain_mask(mask_image).convert("L").getbbox()
    if box is None:
        raise ValueError("the mask is black everywhere: there is nothing to paint, and no box around it")
    left, top = max(box[0] - pad, 0), max(box[1] - pad, 0)
    right, bottom = min(box[2] + pad, mask_image.width), min(box[3] + pad, mask_image.height)
    if (right - left) / (bottom - top) > width / height:
        top, bottom = _widened(top, bottom, int((right - left) * height / width), mask_image.height)
    else:
        left, right = _widened(left, right, int((bottom - top) * width / height), mask_image.width)
    return left, top, right, bottom


def _widened(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """`low` … `high` made `length` long evenly, and moved so that it stays between 0 and `limit` as far as it can."""
    length = max(length, high - low)
    low -= (length - (high - low)) // 2
    low = max(min(low, limit - length), 0)
    return low, min(low + length, limit)


def blur(image: Image, blur_factor: int = 4) -> Image:
    """A picture or mask with softer edges: Gaussian of radius `blur_factor` (pixels)."""
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(blur_factor))


def composite(kept: Image, painted: Image, mask: Image) -> Image:
    """RGB: `kept` where `mask` is black, `painted` where it is white, and between them where it is grey.

    Raises:
        ValueError: the three are not of one size.
    """
    from PIL import Image as pil

    if not kept.size == painted.size == mask.size:
        raise ValueError(f"a picture of {kept.size}, a painted one of {painted.size} and a mask of {mask.size} (width, height) "
                         "are not of one size")
    return pil.composite(plain(painted).convert("RGB"), plain(kept).convert("RGB"), plain_mask(mask).convert("L"))
