"""The checkpoints that come with the library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calotype
from calotype.hub import BUNDLED

MOST = {"calotype/emoji": 60e6, "calotype/cats": 12e6}  # bytes


@pytest.mark.parametrize("name", BUNDLED)
def test_small_and_attributed(name):
    assert sum(path.stat().st_size for path in BUNDLED[name].rglob("*") if path.is_file()) < MOST[name]
    said = (BUNDLED[name] / "README.md").read_text()
    assert all(owner in said for owner in ("Google LLC", "Microsoft Corporation", "Twitter, Inc."))


def test_cats_are_pictures_of_cats_colours():
    """64 pixels on white, orange or black, and not noise: neighbours are alike."""
    pipeline = calotype.DDPMPipeline.from_pretrained("calotype/cats")
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(4, [torch.Generator().manual_seed(i) for i in range(4)], num_inference_steps=20, output_type="np").images
    assert pictures.shape == (4, 64, 64, 3)
    assert pictures[:, :2].mean() > 0.9  # the upper edge is white
    assert (pictures[:, 24:56, 16:48, 0] - pictures[:, 24:56, 16:48, 2]).mean() > 0.2  # and the middle more red than blue
    assert np.abs(np.diff(pictures, axis=2)).mean() < 0.06


def test_the_peer_draws_the_same_cat(diffusers):
    made = []
    for library in (calotype, diffusers):
        pipeline = library.DDPMPipeline.from_pretrained(BUNDLED["calotype/cats"])
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline(generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images)
    np.testing.assert_allclose(made[0], made[1], atol=1e-3)
