"""What the UNets share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

_Value = TypeVar("_Value")
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def old_attention_name(name: str) -> str:
    """The present name of a self-attention parameter in a checkpoint written before 2023."""
    return re.sub(r"(attentions\.\d+\.)(query|key|value|proj_attn)\.", lambda m: f"{m[1]}{_OLD_ATTENTION[m[2]]}.", name)


def check_lengths(block_out_channels: Sequence[int], **per_level: Sequence[Any]) -> list[int]:
    """The widths as a list; a `ValueError` where another entry does not have one value a level."""
    for name, values in per_level.items():
        if len(values) != len(block_out_channels):
            raise ValueError(f"{name} has {len(values)} entries, and block_out_channels has {len(block_out_channels)}: "
                             "there must be one for each level")
    return list(block_out_channels)


def per_level(name: str, value: _Value | Sequence[_Value], count: int) -> list[Any]:
    """One value a level, from one for all or one for each."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} levels")
    return [tuple(each) if isinstance(each, list) else each for each in values]


def skip_channels(widths: list[int], layers: list[int]) -> list[int]:
    """Channels of what the way down passes on, in order: the first convolution, each layer, each change of size."""
    passed = [widths[0]]
    for i, (width, count) in enumerate(zip(widths, layers, strict=True)):
        passed += [width] * (count + (i < len(widths) - 1))
    return passed


def whole_batch(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """[B] timesteps from one or from a whole batch of them."""
    if not isinstance(timestep, Tensor):
        kind = torch.float32 if isinstance(timestep, float) else torch.int64
        timestep = torch.tensor([timestep], dtype=kind, device=sample.device)
    return timestep.reshape(-1).to(sample.device).expand(sample.shape[0])

