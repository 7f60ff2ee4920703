"""Outputs of transformers' models and of ours, field by field."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def assert_near(mine: Tensor, reference: Tensor) -> None:
    assert mine.shape == reference.shape and mine.dtype == reference.dtype
    assert (mine - reference).abs().max() <= 1e-5 * reference.abs().max()


def assert_same_output(mine: Any, reference: Any) -> None:
    assert mine.keys() == list(reference.keys())
    for name, value in mine.items():
        pairs = zip(value, reference[name], strict=True) if name == "hidden_states" else [(value, reference[name])]
        for one, other in pairs:
            assert_near(one, other)
