"""Averages with a power-function profile: the profile that the steps make has the width that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calotype import UNet2DModel
from calotype.training.power_ema import WIDEST, PowerEMA, mixture, power_of

from .test_ema import small, train


def profile(sigma_rel: float, steps: int) -> np.ndarray:
    """The weight of each step in the average."""
    averages = PowerEMA([torch.zeros(1)], sigma_rel)
    weights = np.zeros(steps)
    for step in range(steps):
        decay = averages.get_decay(step + 1)
        weights *= decay
        weights[step] = 1 - decay
    return weights


@settings(deadline=None, max_examples=20)
@given(st.floats(0.02, WIDEST))
def test_the_profile_is_as_wide_as_said(sigma_rel: float) -> None:
    steps = 3000
    weights = profile(sigma_rel, steps)
    time = (np.arange(steps) + 0.5) / steps
    mean = (weights * time).sum()
    assert weights.sum() == pytest.approx(1)
    assert np.sqrt((weights * (time - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=0.01)


def test_the_exponents_of_the_paper() -> None:
    assert power_of(0.05) == pytest.approx(16.97, abs=0.01)
    assert power_of(0.10) == pytest.approx(6.94, abs=0.01)
    assert power_of(WIDEST) == pytest.approx(0, abs=1e-6)


def test_the_widest_is_the_mean() -> None:
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    parameter = torch.nn.Parameter(torch.zeros(3))
    averages = PowerEMA([parameter], WIDEST)
    for value in values:
        with torch.no_grad():
            parameter.copy_(value)
        averages.step([parameter])
    torch.testing.assert_close(averages.shadow_params[0], values.mean(0))


def test_files(tmp_path: Path) -> None:
    model = small(UNet2DModel)
    averages = PowerEMA(model.parameters(), 0.1, 1, model_cls=UNet2DModel, model_config=model.config)
    for step in range(4):
        train(model, step)
        averages.step(model.parameters())
    averages.save_pretrained(tmp_path)
    again = PowerEMA.from_pretrained(tmp_path, UNet2DModel)
    for one in (averages, again):
        one.step(model.parameters())
    assert again.state_dict().keys() == {"sigma_rel", "update_after_step", "optimization_step", "shadow_params"}
    assert all(torch.equal(a, b) for a, b in zip(again.shadow_params, averages.shadow_params, strict=True))


@pytest.mark.parametrize("sigma_rel", [0, 0.3, "0.1", float("nan")])
def test_a_width_that_no_profile_has(sigma_rel: float) -> None:
    with pytest.raises(ValueError, match="sigma_rel is .* greater than 0 and at most"):
        PowerEMA([], sigma_rel)


@settings(deadline=None, max_examples=10)
@given(st.floats(0.05, 0.15), st.sampled_from([800, 1000]))
def test_a_width_chosen_afterwards(sigma_rel: float, step: int) -> None:
    saved = [(t, width) for t in range(100, 1001, 100) for width in (0.05, 0.10)]
    mixed = np.zeros(1000)
    for weight, (t, width) in zip(mixture(saved, step, sigma_rel), saved, strict=True):
        mixed[:t] += weight * profile(width, t)
    wanted = np.pad(profile(sigma_rel, step), (0, 1000 - step))
    assert np.linalg.norm(mixed - wanted) < 0.05 * np.linalg.norm(wanted)


def test_a_width_that_is_saved_is_itself() -> None:
    saved = [(100, 0.05), (200, 0.05), (200, 0.1)]
    assert mixture(saved, 200, 0.1) == pytest.approx([0, 0, 1], abs=1e-6)


@pytest.mark.parametrize(("saved", "step", "words"), [
    ([], 5, "to the last that is saved, 0"), ([(10, 0.1)], 11, "wanted is 11"), ([(0, 0.1), (9, 0.1)], 3, "steps must be"),
    ([(10, 0.5)], 9, "sigma_rel is 0.5"),
])
def test_mixtures_that_cannot_be(saved: list[tuple[int, float]], step: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        mixture(saved, step, 0.1)
