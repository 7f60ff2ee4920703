"""Pictures as PIL images, NumPy arrays and tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .words import check_choice

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def postprocess(pictures: Tensor, output_type: str = "pil") -> Any:
    """Model output as what the caller asked for.

    Args:
        pictures: [B, C, H, W] in [-1, 1].
        output_type: `"pil"` (a list of images), `"np"` ([B, H, W, C] in [0, 1]), `"pt"` ([B, C, H, W] in [0, 1]) or
            `"latent"` (as they are).
    """
    check_choice("output_type", output_type, OUTPUT_TYPES)
    if output_type == "latent":
        return pictures
    pictures = (pictures / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return pictures
    array = pictures.cpu().permute(0, 2, 3, 1).float().numpy()
    return numpy_to_pil(array) if output_type == "pil" else array


def numpy_to_pil(pictures: NDArray[Any]) -> list[Any]:
    """PIL images from [B, H, W, C] (or one [H, W, C]) in [0, 1]; one channel is grey."""
    from PIL import Image

    pictures = pictures[None] if pictures.ndim == 3 else pictures
    rounded = (pictures * 255).round().astype(np.uint8)
    return [Image.fromarray(one.squeeze(-1) if one.shape[-1] == 1 else one) for one in rounded]


def pil_to_tensor(pictures: Any) -> Tensor:
    """[B, C, H, W] in [-1, 1] from one PIL image or a list of them."""
    pictures = pictures if isinstance(pictures, (list, tuple)) else [pictures]
    arrays = [np.asarray(picture.convert("RGB") if picture.mode not in ("L", "RGB") else picture) for picture in pictures]
    stacked = np.stack([array[..., None] if array.ndim == 2 else array for array in arrays])
    return torch.from_numpy(stacked.astype(np.float32) / 255).permute(0, 3, 1, 2) * 2 - 1
