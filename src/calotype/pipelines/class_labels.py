"""Numbers of classes, as people give them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ClassLabels = int | Sequence[int] | Tensor


def class_numbers(given: ClassLabels, highest: int, device: torch.device) -> Tensor:
    """[n] the classes `given`: one number, or several, each from 0 to `highest`.

    Raises:
        ValueError: what is no such number, or an empty list.
    """
    try:
        numbers = torch.as_tensor(given).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"class_labels are {given!r:.80}, but must be whole numbers from 0 to {highest}") from None
    if not len(numbers):
        raise ValueError("class_labels is an empty list: give one number for each picture")
    whole = not numbers.is_floating_point() and not numbers.is_complex() and numbers.dtype != torch.bool
    if not whole or int(numbers.min()) < 0 or int(numbers.max()) > highest:
        raise ValueError(f"class_labels are {numbers.tolist()}, but must be whole numbers from 0 to {highest}")
    return numbers.to(device, torch.int64)
