"""Comparison of a model of ours with the oracle's of the same name, on the same random weights."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import calotype


def pair(diffusers: ModuleType, name: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """The oracle's model and ours, with equal weights; their parameters must have the same names and shapes."""
    torch.manual_seed(0)
    theirs = getattr(diffusers, name)(**config).eval()
    ours = getattr(calotype, name)(**config).eval()
    shapes = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert shapes == {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def assert_close(ours: Tensor, theirs: Tensor, bound: float = 1e-5) -> None:
    """max |Δ| ≤ bound · max |theirs|."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    error, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= bound * size, f"off by {error / size:.1e} of the largest value"
