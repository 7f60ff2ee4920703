"""Pictures in and out: of PIL, NumPy and PyTorch, resized, masked and previewed."""

from __future__ import annotations

from .conversion import OUTPUT_TYPES, numpy_to_pil, pil_to_tensor, postprocess

__all__ = ["OUTPUT_TYPES", "numpy_to_pil", "pil_to_tensor", "postprocess"]
