"""Prepared weights: the plain layer is the oracle, through changes of weights, sizes and threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from calotype.models.attention import FEED_FORWARD_ACTIVATIONS, SpatialTransformer, Widen
from calotype.models.conditioning import Context
from calotype.models.layers import Conv2d, Linear, Upsample
from calotype.runtime import packed
from calotype.runtime.scope import fast_path

needs_layouts = pytest.mark.skipif(not packed._works(), reason="this build of PyTorch has no layouts to prepare")


@pytest.fixture(autouse=True)
def ungraded() -> Iterator[None]:
    with torch.no_grad():
        torch.manual_seed(0)
        yield


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same(layer: nn.Module, *given: object) -> Tensor:
    """On the fast path and off it."""
    with fast_path():
        fast = layer(*given)
    plain = layer(*given)
    assert fast.shape == plain.shape and fast.dtype == plain.dtype
    assert torch.allclose(fast, plain, rtol=1e-4, atol=1e-5)
    return fast


def made(layer: nn.Module) -> Tensor | None:
    return packed._prepared[layer].weight if layer in packed._prepared else None


# -- convolutions -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(batch=st.integers(1, 3), channels=st.integers(1, 5), out=st.integers(1, 5), groups=st.integers(1, 3),
       height=st.integers(5, 9), width=st.integers(5, 9), kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
       stride=st.integers(1, 2),
       padding=st.integers(0, 2), dilation=st.integers(1, 2), bias=st.booleans(),
       mode=st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]))
def test_any_convolution(batch, channels, out, groups, height, width, kernel, stride, padding, dilation, bias, mode):
    with torch.no_grad():
        layer = Conv2d(channels * groups, out * groups, kernel, stride, padding, dilation, groups, bias, mode)
        for x in (some(batch, channels * groups, height, width), some(batch, height, width, channels * groups).movedim(-1, 1)):
            assert_same(layer, x)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    assert_same(Conv2d(4, 4, 3, padding=padding), some(2, 4, 6, 6))
    assert_same(Conv2d(4, 4, 1, padding=padding), some(2, 4, 6, 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_plain(dtype):
    layer, x = Conv2d(4, 4, 3, padding=1).to(dtype), some(2, 4, 6, 6).to(dtype)
    with fast_path():
        assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))
        assert packed.convolve(layer, x) is None
    assert made(layer) is None


@pytest.mark.parametrize("x", [some(4, 6, 6), some(0, 4, 6, 6)], ids=["no batch", "an empty batch"])
def test_other_inputs_are_plain(x):
    layer = Conv2d(4, 4, 3, padding=1)
    assert_same(layer, x)
    assert made(layer) is None


@pytest.mark.parametrize("kernel", [1, 3])
def test_wrong_channels_are_the_layer_s_own_error(kernel):
    with fast_path(), pytest.raises(RuntimeError, match="to have 4 channels, but got 5 channels instead"):
        Conv2d(4, 4, kernel, padding=kernel // 2)(some(1, 5, 6, 6))


def test_gradients_pass():
    layer, x = Conv2d(4, 4, 3, padding=1), some(2, 4, 6, 6).requires_grad_()
    with torch.enable_grad(), fast_path():
        layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None


@needs_layouts
def test_one_prepared_weight_serves_all_sizes():
    layer = Conv2d(4, 4, 3, padding=1)
    assert_same(layer, some(1, 4, 4, 4))
    first = made(layer)
    for batch, size in ((1, 5), (2, 8), (3, 4)):
        assert_same(layer, some(batch, 4, size, size))
    assert made(layer) is first


@needs_layouts
def test_prepared_weights_end_with_their_layer():
    layer = Conv2d(4, 4, 3, padding=1)
    before = len(packed._prepared)
    assert_same(layer, some(1, 4, 5, 5))
    assert len(packed._prepared) == before + 1
    del layer
    assert len(packed._prepared) == before


@needs_layouts
def test_prepared_weights_are_bounded_and_can_be_released():
    """By the kernels' own size; by Winograd's way, whose kernels of 3 x 3 become 4 x 4, by 16 / 9 of it."""
    network = nn.Sequential(Conv2d(8, 8, 3, padding=1), Conv2d(8, 16, 3, stride=2), Conv2d(16, 16, 1))
    for size in (8, 16, 9):
        assert_same(network, some(2, 8, size, size))
    kernels = sum(layer.weight.numel() * 4 for layer in network if layer.kernel_size == (3, 3))
    assert 0 < packed.prepared_bytes(network) <= 16 / 9 * kernels
    packed.release(network)
    assert packed.prepared_bytes(network) == 0
    assert_same(network, some(2, 8, 8, 8))
    assert packed.prepared_bytes(network) > 0


@needs_layouts
def test_other_numbers_of_threads_have_layouts_of_their_own():
    layer, x, threads, kinds = Conv2d(8, 8, 3, padding=1), some(2, 8, 16, 16), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            assert_same(layer, x)
            kinds.append(packed._prepared[layer].kind)
    finally:
        torch.set_num_threads(threads)
    assert kinds[0] == kinds[3] and len(set(kinds)) == 3


@needs_layouts
def test_threads_share_a_layer():
    """Six of them at nine sizes, whose weights are replaced meanwhile: once, a dictionary changed under one of them."""
    layer = Conv2d(8, 8, 3, padding=1)
    inputs = [some(1, 8, size, size) for size in range(4, 13)]
    expected, barrier = [layer(x) for x in inputs], threading.Barrier(6)

    def work(number: int) -> None:
        barrier.wait()
        with torch.no_grad():
            for i in range(90):
                with fast_path():
                    x = (i + number) % 9
                    assert torch.allclose(layer(inputs[x]), expected[x], atol=1e-5)
                if i % 10 == number:
                    packed.release(layer)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


CHANGES = {
    "counted": lambda layer: layer.weight.mul_(2), "not counted": lambda layer: layer.weight.data.mul_(2),
    "one number": lambda layer: layer.weight.data[0, 0, 0].add_(1), "the sign": lambda layer: layer.weight.data.neg_(),
    "other data": lambda layer: setattr(layer.weight, "data", layer.weight * 2),
    "another": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 2)),
    "bias": lambda layer: layer.bias.data.add_(1), "no bias": lambda layer: setattr(layer, "bias", None),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_changed_weight_is_seen_by_the_next_scope(name, kernel):
    layer, x = Conv2d(4, 4, kernel, padding=kernel // 2), some(1, 4, 6, 6)
    before = assert_same(layer, x)
    CHANGES[name](layer)
    assert not torch.allclose(assert_same(layer, x), before)


def test_a_counted_change_is_seen_at_once():
    layer, x = Conv2d(4, 4, 3, padding=1), some(1, 4, 6, 6)
    with fast_path():
        layer(x)
        layer.weight.mul_(2)
        fast = layer(x)
    assert torch.allclose(fast, layer(x), atol=1e-5)


def test_what_is_said_of_the_weights():
    layer = Conv2d(4, 4, 3, padding=1)
    assert_same(layer, some(1, 4, 5, 5))
    sums = packed.sums_of([layer, nn.Linear(1, 1)])
    assert packed.unchanged(sums)
    assert list(sums) == ([layer] if packed._works() else [])
    layer.weight.data.copy_(layer.weight.data.flip(0).clone())
    if packed._works():
        assert not packed.unchanged(sums)
        assert_same(layer, some(1, 4, 5, 5))  # renews the layer's, not these
        assert not packed.unchanged(sums)


@pytest.mark.parametrize("error", [RuntimeError("no such operator\nmore"), AttributeError("no such operator")])
def test_without_the_operators_layers_are_plain(monkeypatch, caplog, error):
    def missing(*given):
        raise error

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", missing)
    packed._works.cache_clear()
    try:
        with caplog.at_level(logging.INFO):
            for _ in range(2):
                assert_same(Conv2d(4, 4, 3, padding=1), some(1, 4, 5, 5))
                assert_same(Upsample(4), some(1, 4, 5, 5))
        if torch.backends.mkldnn.is_available():
            (record,) = caplog.records
            assert record.message == "convolutions run without prepared layouts: no such operator"
    finally:
        packed._works.cache_clear()


def test_where_they_disagree_layers_are_plain(monkeypatch, caplog):
    if not packed._works():
        pytest.skip("nothing to disagree")
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", lambda x, *given: torch.zeros_like(x))
    packed._works.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert_same(Conv2d(4, 4, 3, padding=1), some(1, 4, 5, 5))
        assert "they do not agree with the plain ones" in caplog.text
    finally:
        packed._works.cache_clear()


# -- layers around convolutions --------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(batch=st.integers(1, 3), channels=st.integers(1, 9), height=st.integers(1, 9), width=st.integers(1, 9), bias=st.booleans(),
       size=st.sampled_from([None, "twice", "one less", "else"]), last=st.booleans())
def test_upsampling(batch, channels, height, width, bias, size, last):
    with torch.no_grad():
        layer = Upsample(channels)
        layer.conv.bias = layer.conv.bias if bias else None
        twice = 2 * height, 2 * width
        wanted = {None: None, "twice": twice, "one less": (2 * height - 1, 2 * width), "else": (5, 3)}[size]
        x = some(batch, channels, height, width)
        made = assert_same(layer, x.contiguous(memory_format=torch.channels_last) if last else x, wanted)
        assert made.shape == (batch, channels, *(wanted or twice))


@pytest.mark.parametrize("change", ["a hook", "a function", "another layer", "another kernel", "another mode", "half"])
def test_whatever_stands_there_is_called(change):
    layer, x, asked = Upsample(4), some(1, 4, 5, 6), []
    if change == "a hook":
        layer.conv.register_forward_hook(lambda module, given, made: asked.append(1) or made * 2)
    elif change == "a function":
        layer.conv.forward = lambda x: asked.append(1) or x
    elif change == "another layer":
        inner = layer.conv
        layer.conv = nn.Sequential(inner, nn.Tanh())
    elif change == "another kernel":
        layer.conv = Conv2d(4, 4, 5, padding=2)
    elif change == "another mode":
        layer.conv = Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    else:
        layer, x = layer.half(), x.half()
    assert_same(layer, x)
    assert len(asked) == (2 if change in ("a hook", "a function") else 0)


# -- halves, and tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", FEED_FORWARD_ACTIVATIONS)
def test_feed_forward_parts(act, bias):
    layer = Widen(6, 10, act)
    layer.proj.bias = layer.proj.bias if bias else None
    assert assert_same(layer, some(2, 5, 6)).shape == (2, 5, 10)
    for dtype in (torch.float64, torch.bfloat16):
        with fast_path():
            fast = layer.to(dtype)(some(2, 5, 6).to(dtype))
        assert torch.allclose(fast, layer(some(2, 5, 6).to(dtype)), rtol=1e-1 if dtype is torch.bfloat16 else 1e-9, atol=1e-2)


def test_a_projection_with_a_hook_or_of_another_kind_is_called():
    layer, asked = Widen(6, 10, "geglu"), []
    handle = layer.proj.register_forward_hook(lambda module, given, made: asked.append(1) or made * 2)
    assert_same(layer, some(2, 5, 6))
    assert len(asked) == 2
    handle.remove()
    layer.proj = nn.Sequential(layer.proj, nn.Tanh())
    assert_same(layer, some(2, 5, 6))


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("name", ["proj_in", "proj_out"])
def test_projections_of_tokens_are_called_where_somebody_wants_to_know(linear, name):
    """A convolution of one pixel is a product of matrices, unless it is watched, or an adapter stands in its place."""
    class Adapter(nn.Module):
        def __init__(self, layer: nn.Module):
            super().__init__()
            self.layer, self.more = layer, Linear(8, 8) if linear else Conv2d(8, 8, 1)

        @property
        def weight(self) -> Tensor:
            return self.layer.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.more(x)

    layer = SpatialTransformer(8, 2, 6, groups=2, linear_projection=linear)
    x, context, asked = some(2, 8, 3, 5), Context(some(2, 4, 6)), []
    expected = assert_same(layer, x, context)
    handle = getattr(layer, name).register_forward_hook(lambda *_: asked.append(1))
    assert torch.allclose(assert_same(layer, x, context), expected, atol=1e-5)
    assert len(asked) == 2
    handle.remove()
    adapter = Adapter(getattr(layer, name))
    setattr(layer, name, adapter)
    adapted = assert_same(layer, x, context)
    assert not torch.allclose(adapted, expected, atol=1e-3)
    adapter.layer.weight.add_(adapter.more.weight)
    adapter.layer.bias.add_(adapter.more.bias)
    setattr(layer, name, adapter.layer)
    assert torch.allclose(assert_same(layer, x, context), adapted, atol=1e-5)
