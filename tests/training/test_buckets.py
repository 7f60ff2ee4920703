"""Buckets of sizes: what they are, and which is nearest."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.training.buckets import assign, bucket_sizes


@given(st.integers(64, 1100), st.sampled_from([8, 32, 64]), st.floats(1, 4))
def test_sizes_fill_the_area_and_no_more(resolution, step, ratio):
    sizes = bucket_sizes(resolution, step, ratio)
    assert len(set(sizes)) == len(sizes) and (resolution // step * step,) * 2 in sizes
    for width, height in sizes:
        assert width % step == 0 == height % step and width * height <= resolution**2
        assert max(width, height) <= ratio * min(width, height) and (height, width) in sizes
        assert width == height or width * (height + step) > resolution**2 or (width + step) * height > resolution**2


def test_sizes_of_stable_diffusion():
    assert bucket_sizes(512) == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=20))
def test_the_nearest_proportions(sizes):
    buckets = bucket_sizes(512, 64)
    for (width, height), which in zip(sizes, assign(sizes, buckets), strict=True):
        distances = [abs(math.log(width / height) - math.log(w / h)) for w, h in buckets]
        assert distances[which] <= min(distances) + 1e-9


def test_of_equal_proportions_the_largest():
    assert assign([(100, 100), (200, 100)], [(64, 64), (128, 128), (64, 128), (128, 64)]) == [1, 3]


@pytest.mark.parametrize(("arguments", "word"), [
    ((32, 64), "step is 64"), ((512, 0), "step is 0"), ((512, 64, 0.5), "max_ratio is 0.5")])
def test_bad_sizes(arguments, word):
    with pytest.raises(ValueError, match=word):
        bucket_sizes(*arguments)


@pytest.mark.parametrize("arguments", [([(1, 1)], []), ([(0, 1)], [(8, 8)])])
def test_bad_assignments(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        assign(*arguments)
