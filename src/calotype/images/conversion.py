"""Pictures as PIL images, NumPy arrays and tensors, and from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..words import check_choice, some
from .reading import described, laid, pictures_of, plain

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def postprocess(pictures: Tensor, output_type: str = "pil", denormalize: bool | Sequence[bool] = True) -> Any:
    """Model output as what the caller asked for.

    Args:
        pictures: [B, C, H, W] in [-1, 1].
        output_type: `"pil"` (a list of images), `"np"` ([B, H, W, C] in [0, 1]), `"pt"` ([B, C, H, W] in [0, 1]) or
            `"latent"` (as they are).
        denormalize: whether to take [-1, 1] to [0, 1]; one for all pictures, or one a picture.

    Raises:
        FloatingPointError: there are NaN or infinite values, which would become black or white without a word.
    """
    check_choice("output_type", output_type, OUTPUT_TYPES)
    if output_type == "latent":
        return pictures
    if not isinstance(pictures, Tensor) or pictures.ndim != 4:
        raise ValueError(f"pictures are a tensor [B, C, H, W], and this is a {described(pictures)}")
    which = [denormalize] * len(pictures) if isinstance(denormalize, bool) else list(denormalize)
    if len(which) != len(pictures):
        raise ValueError(f"denormalize is for {len(which)} pictures, and there are {len(pictures)}")
    check_finite(pictures)
    if all(which):
        pictures = denormalized(pictures)
    elif any(which):
        pictures = torch.stack([denormalized(one) if wanted else one for one, wanted in zip(pictures, which, strict=True)])
    if output_type == "pt":
        return pictures
    array = pt_to_numpy(pictures)
    return numpy_to_pil(array) if output_type == "pil" else array


def check_finite(pictures: Any) -> None:
    """Raise a `FloatingPointError` where a tensor or array has NaN or infinite values."""
    finite = torch.isfinite(pictures) if isinstance(pictures, Tensor) else np.isfinite(pictures)
    if not finite.all():
        raise FloatingPointError(
            f"{int((~finite).sum())} of {finite.numel() if isinstance(finite, Tensor) else finite.size} values of the pictures "
            "are NaN or infinite. In float16 a model may overflow: use torch.bfloat16 or torch.float32, at least for the VAE. In "
            "float32, look for NaN in the weights, the prompt's embeddings and the latents")


def normalized(images: Any) -> Any:
    """[0, 1] to [-1, 1]."""
    return 2.0 * images - 1.0


def denormalized(images: Any) -> Any:
    """[-1, 1] to [0, 1], and what is beyond to its ends."""
    return (images * 0.5 + 0.5).clip(0, 1)


def pt_to_numpy(images: Tensor) -> NDArray[Any]:
    """[B, C, H, W] as an array [B, H, W, C] of float32."""
    return images.detach().cpu().permute(0, 2, 3, 1).float().numpy()


def numpy_to_pt(images: NDArray[Any]) -> Tensor:
    """[B, H, W, C], or grey [B, H, W], as a tensor [B, C, H, W]."""
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4:
        raise ValueError(f"pictures are an array [B, H, W, C] or [B, H, W], and this is a {described(images)}")
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def numpy_to_pil(images: NDArray[Any]) -> list[Any]:
    """PIL images from [B, H, W, C] (or one [H, W, C]) in [0, 1]; one channel is grey. What is beyond goes to the ends.

    Raises:
        FloatingPointError: there are NaN or infinite values.
    """
    from PIL import Image

    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4):
        raise ValueError(f"pictures are [B, H, W, C] or [H, W, C] of 1, 3 or 4 channels, and this is a {described(images)}")
    check_finite(batch)
    rounded = batch if batch.dtype == np.uint8 else (batch * 255).round().clip(0, 255).astype(np.uint8)
    return [Image.fromarray(one.squeeze(-1) if one.shape[-1] == 1 else one) for one in rounded]


def pil_to_numpy(images: Any) -> NDArray[Any]:
    """[B, H, W, C], or grey [B, H, W], in [0, 1] from one PIL image or a list of them, with the channels that they have.

    Raises:
        ValueError: they are none, or of several sizes or modes.
    """
    images = images if isinstance(images, (list, tuple)) else [images]
    if len(kinds := {f"{picture.width} x {picture.height} {picture.mode}" for picture in images}) != 1:
        raise ValueError(f"pictures of one array are of one size and mode, and these are {some(sorted(kinds)) or 'none'}")
    return np.stack([np.asarray(picture) for picture in images]).astype(np.float32) / 255


def pil_to_tensor(pictures: Any) -> Tensor:
    """[B, C, H, W] in [-1, 1] from one PIL image or a list of them, of any mode: C is 1 or 3 (see `plain`)."""
    pictures = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    return normalized(numpy_to_pt(pil_to_numpy([plain(picture) for picture in pictures])))


def rgb_images(pictures: Any) -> list[Any]:
    """RGB PIL images of what `pictures_of` takes, each in its own size; floats in [0, 1] or [-1, 1]."""
    images: list[Any] = []
    for one in pictures_of(pictures):
        if isinstance(one, Tensor):
            one = laid(one, "white") if one.shape[1] == 4 else one if one.min() >= 0 else denormalized(one)
            images += numpy_to_pil(pt_to_numpy(one))
        else:
            images.append(plain(one))
    return [one.convert("RGB") for one in images]
