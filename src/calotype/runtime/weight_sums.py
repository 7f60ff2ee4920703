"""Sums that tell whether the values of a tensor are what they were, without a copy of them.

Neither a tensor's version counter (fused optimisers and writes through `.data` do not raise it) nor its sum and norm
(rows may be exchanged, signs turned) is a witness. These sums are: the bits of the tensor are read as whole numbers, laid
out as a rectangle, and summed along its rows and along its columns, modulo 2⁶⁴. A change of any one value is always
seen; one that only moves values around would have to leave every row and every column of the rectangle with the same sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

_COLUMNS = 512
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


@torch.no_grad()
def weight_sums(tensor: Tensor) -> Tensor:
    """[n] whole numbers that follow from the bits of `tensor`, and from where each of them stands."""
    numbers = _as_integers(tensor.detach())
    whole = len(numbers) // _COLUMNS * _COLUMNS
    rectangle, rest = numbers[:whole].view(-1, _COLUMNS), numbers[whole:]
    return torch.cat([rectangle.sum(1, dtype=torch.int64), rectangle.sum(0, dtype=torch.int64), rest.to(torch.int64)])


def _as_integers(tensor: Tensor) -> Tensor:
    """The bits of `tensor` as a vector of the widest integers that it can be divided into; no copy of a dense tensor."""
    if not (tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last)):
        tensor = tensor.contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,)) if tensor.layout is torch.strided else tensor.to_dense().flatten()
    flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat
    size = flat.element_size()
    if flat.numel() * size % 8 == 0 and flat.storage_offset() * size % 8 == 0:
        return flat.view(torch.int64)
    return flat.view(_INTEGERS[size])
