"""Winograd's convolutions against PyTorch's in double precision, and who takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from calotype.models.layers import Conv2d
from calotype.runtime import packed, winograd
from calotype.runtime.scope import fast_path


@pytest.fixture(autouse=True)
def ungraded() -> Iterator[None]:
    with torch.no_grad():
        yield


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(made: Tensor, exact: Tensor) -> float:
    """In the Frobenius norm, relatively."""
    return float((made.double() - exact).norm() / exact.norm())


def assert_exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """To single precision, and about as good as PyTorch's own convolution."""
    exact = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    made = winograd.convolve(x, winograd.transformed(weight), bias)
    assert made.shape == exact.shape and made.dtype == x.dtype
    assert error(made, exact) < 1e-6
    assert error(made, exact) <= 1.5 * error(F.conv2d(x, weight, bias, padding=1), exact) + 1e-7


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batch=st.integers(1, 3), channels=st.integers(1, 40), out=st.integers(1, 40), rows=st.integers(1, 12),
       columns=st.integers(1, 12), biased=st.booleans())
@example(batch=1, channels=1, out=1, rows=1, columns=1, biased=False)
@example(batch=2, channels=3, out=5, rows=40, columns=17, biased=True)  # several strips, the last of them short
@example(batch=1, channels=2, out=3, rows=3, columns=300, biased=True)  # a row of tiles that is more than a strip
def test_any_size(batch, channels, out, rows, columns, biased):
    with torch.no_grad():
        assert_exact(some(batch, channels, 2 * rows, 2 * columns), some(out, channels, 3, 3, seed=1),
                     some(out, seed=2) if biased else None)


def test_many_channels():
    assert_exact(some(2, 320, 8, 10), some(256, 320, 3, 3, seed=1), some(256, seed=2))


def test_a_kernel_that_copies():
    """One in the middle and nothing else: the picture, exactly. Elsewhere: the picture moved, and a border of zeros."""
    x = some(1, 1, 4, 6)
    for i in range(3):
        for j in range(3):
            weight = torch.zeros(1, 1, 3, 3)
            weight[0, 0, i, j] = 1
            expected = F.pad(x, (1, 1, 1, 1))[..., i:i + 4, j:j + 6]
            assert torch.allclose(winograd.convolve(x, winograd.transformed(weight), None), expected, atol=1e-6)


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other pixel": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "turned": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:1].expand(2, -1, -1, -1),
    "part of more": lambda x: F.pad(x, (3, 1, 2, 2, 1, 1))[:, 1:-1, 2:-2, 3:-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout):
    x = LAYOUTS[layout](some(2, 5, 6, 8))
    copy = x.clone()
    assert_exact(x, some(7, 5, 3, 3, seed=1), some(7, seed=2))
    assert torch.equal(x, copy)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pictures that were convolved this way."""
    pictures: list[Any] = []
    convolve = winograd.convolve

    def spy(x: Tensor, *given: Any) -> Tensor:
        pictures.append(x)
        return convolve(x, *given)

    monkeypatch.setattr(winograd, "convolve", spy)
    return pictures


FAST, NOT_FAST = (
    {"both": {}, "more": {"out": 264}, "no bias": {"bias": False}, "batch": {"batch": 4, "size": (4, 8)},
     "wide": {"size": (2, 64)}},
    {"odd height": {"size": (17, 16)}, "odd width": {"size": (16, 17)}, "stride": {"stride": 2}, "groups": {"groups": 2},
     "dilation": {"dilation": 2}, "padding": {"padding": 0}, "one pixel": {"kernel_size": 1, "padding": 0},
     "few channels": {"channels": 128}, "few results": {"out": 128}, "small": {"size": (8, 8)},
     "large kernel": {"kernel_size": 5}, "mirrored": {"padding_mode": "reflect"}},
)


@pytest.mark.parametrize(("options", "fast"), [
    *(pytest.param(options, True, id=name) for name, options in FAST.items()),
    *(pytest.param(options, False, id=name) for name, options in NOT_FAST.items())])
def test_who_takes_it(taken, options, fast):
    options = {"kernel_size": 3, "padding": 1, **options}
    channels, out, size, batch = (options.pop(name, default) for name, default in (
        ("channels", 256), ("out", 256), ("size", (16, 16)), ("batch", 1)))
    torch.manual_seed(0)
    layer, x = Conv2d(channels, out, **options), some(batch, channels, *size)
    expected = layer.double()(x.double())
    layer.float()
    with fast_path():
        for _ in range(2):
            assert error(layer(x), expected) < (1e-6 if fast else 2e-6)  # the plain way rounds more
    assert len(taken) == (2 if fast and packed._works() else 0)
    layer(x)
    with fast_path(), torch.enable_grad():
        layer(x)
    assert len(taken) == (2 if fast and packed._works() else 0)


def test_kernels_are_those_of_the_weight_now(taken):
    layer, x = Conv2d(256, 256, 3, padding=1), some(1, 256, 16, 16)
    for change in (lambda weight: None, lambda weight: weight.mul_(2), lambda weight: weight.data.mul_(0.5).add_(0.01)):
        change(layer.weight)
        with fast_path():
            fast = layer(x)
        assert torch.allclose(fast, layer(x), atol=1e-4)
    if packed._works():
        assert len(taken) == 3
