"""Autoencoders in strips: the very pictures and latents of the plain way, in less memory."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import calotype
from calotype.models import strips

SMALL = {
    "block_out_channels": (4, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 3, "norm_num_groups": 2,
    "up_block_types": ("UpDecoderBlock2D",) * 3, "layers_per_block": 2,
}
ATTENTION = {"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
             "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"), "act_fn": "gelu"}


def small(**options):
    """A model whose norms do something: fresh ones have weight 1 and bias 0."""
    torch.manual_seed(0)
    model = calotype.AutoencoderKL(**{**SMALL, **options}).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.weight.normal_(1, 0.3)
            module.bias.normal_(0, 0.3)
    return model


def both_ways(model, x, z):
    """Latents and pictures the plain way, then in strips."""
    found = []
    for tiling in (False, True):
        model.enable_tiling(tiling)
        found += [model.encode(x).latent_dist.parameters, model.decode(z).sample]
    return found


@pytest.fixture
def numbers(monkeypatch):
    """Sets how many numbers a strip has, and so how high it is."""
    return lambda count: monkeypatch.setattr(strips, "_NUMBERS", count)


# -- the same numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 600, 1500, 2**25])
@pytest.mark.parametrize("options", [{}, ATTENTION, {"mid_block_add_attention": False, "use_quant_conv": False,
                                                     "use_post_quant_conv": False, "layers_per_block": 1}])
def test_as_the_plain_way(numbers, count, options):
    """Strips of one row (two where the size is halved), of a few, of many; one strip."""
    numbers(count)
    model = small(**options)
    x, z = torch.randn(2, 3, 44, 31), torch.randn(2, 4, 11, 7)
    latents, pictures, in_strips, from_strips = both_ways(model, x, z)
    assert_close(in_strips, latents)
    assert_close(from_strips, pictures)
    model.enable_tiling(seamless=False)
    model.tile_latent_min_size, model.tile_sample_min_size = 6, 24
    assert (model.decode(z).sample - pictures).abs().max() > 0.01 * pictures.abs().max()


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), count=st.integers(1, 5000), batch=st.integers(1, 2))
def test_any_size(height, width, count, batch):
    model, kept = small(), strips._NUMBERS
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(batch, channels, height, width, generator=generator) for channels in (3, 4))
    try:
        strips._NUMBERS = count
        model.disable_tiling()
        decoded, encoded = model.decode(z).sample, None
        if min(height, width) > 3:  # smaller ones cannot be halved twice
            encoded = model.encode(x).latent_dist.parameters
        model.enable_tiling()
        assert_close(model.decode(z).sample, decoded, 2e-5)
        if encoded is None:
            with pytest.raises(RuntimeError, match="Kernel size"):
                model.encode(x)
        else:
            assert_close(model.encode(x).latent_dist.parameters, encoded, 2e-5)
    finally:
        strips._NUMBERS = kept


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_is_kept(numbers, dtype):
    """In half precision strips are as near to the exact result as the plain way, in double they are exact."""
    numbers(600)
    model = small()
    x, z = torch.randn(1, 3, 40, 32), torch.randn(1, 4, 10, 8)
    exact = both_ways(model.double(), x.double(), z.double())[:2]
    found = both_ways(model.to(dtype), x.to(dtype), z.to(dtype))
    for truth, plain, striped in zip(exact, found[:2], found[2:], strict=True):
        assert striped.dtype == dtype
        error = (striped.double() - truth).abs().max()
        assert error <= 2 * (plain.double() - truth).abs().max() + 1e-12 * truth.abs().max()


def test_statistics_far_from_zero(numbers):
    """Means a thousand times the deviation, and different in every strip: sums of squares would lose it."""
    numbers(64)
    norm = torch.nn.GroupNorm(2, 4)
    x = 1000 + torch.randn(1, 4, 24, 8) + torch.arange(24.0).view(-1, 1)
    normed = strips._known(norm, x)(x)
    exact = norm.double()(x.double())
    assert (normed.double() - exact).abs().max() < 1e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_is_kept(numbers, layout):
    numbers(600)
    model = small().to(memory_format=layout)
    x, z = (torch.randn(1, *shape).to(memory_format=layout) for shape in ((3, 40, 32), (4, 10, 8)))
    for made in both_ways(model, x, z):
        assert made.is_contiguous(memory_format=layout)


# -- memory --------------------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made inside held at a time: each storage once, for as long as anything refers to it."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.given = {}, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for storage in storages((args, kwargs)):  # weak references also keep addresses from being used again
            if storage._cdata not in self.live:
                self.given.setdefault(storage._cdata, StorageWeakRef(storage))
        made = function(*args, **(kwargs or {}))
        for storage in storages(made):
            if storage._cdata not in self.given:
                self.live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.live = {key: kept for key, kept in self.live.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return made


def storages(tensors):
    return [tensor.untyped_storage() for tensor in tree_leaves(tensors) if isinstance(tensor, torch.Tensor)]


def peak(function):
    with LiveBytes() as counted:
        result = function()
    return counted.peak, result


def test_live_bytes_are_counted():
    def work():
        first = torch.ones(1000)
        second = first.view(10, 100) + 1
        del first
        return second * 2

    assert peak(work)[0] == 8000


def test_decoding_holds_the_input_and_output_of_a_layer(numbers):
    """The widest: 16 channels at the picture's size, and the 8 that a residual block makes of them; and some strips."""
    numbers(16 * 96 * 4)
    model = small(block_out_channels=(8, 16, 16), layers_per_block=1)
    z = torch.randn(1, 4, 24, 24)
    plain, expected = peak(lambda: model.decode(z).sample)
    model.enable_tiling()
    striped, pictures = peak(lambda: model.decode(z).sample)
    assert_close(pictures, expected)
    strip = 4 * strips._NUMBERS
    assert 24 * 96 * 96 * 4 <= striped <= 24 * 96 * 96 * 4 + 5 * strip
    assert plain >= 40 * 96 * 96 * 4


def test_encoding_holds_the_input_and_output_of_a_layer(numbers):
    numbers(8 * 96 * 4)
    model = small(block_out_channels=(8, 16, 16), layers_per_block=1)
    x = torch.randn(1, 3, 96, 96)
    plain, expected = peak(lambda: model.encode(x).latent_dist.parameters)
    model.enable_tiling()
    striped, latents = peak(lambda: model.encode(x).latent_dist.parameters)
    assert_close(latents, expected)
    strip = 4 * strips._NUMBERS
    assert 16 * 96 * 96 * 4 <= striped <= 16 * 96 * 96 * 4 + 5 * strip
    assert plain >= 24 * 96 * 96 * 4


def test_2048_pixels_by_stable_diffusions_decoder_in_half_precision():
    """3 GiB of layers, and strips; shapes only. (Attention is left out: without data, PyTorch takes another way than it has.)"""
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        model = calotype.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, mid_block_add_attention=False, **levels).half()
        z, x = torch.empty(1, 4, 256, 256).half(), torch.empty(1, 3, 2048, 2048).half()
    model.requires_grad_(False).enable_tiling()
    decoding, pictures = peak(lambda: model.decode(z).sample)
    assert pictures.shape == x.shape
    assert 3.0 * 2**30 < decoding < 3.3 * 2**30
    assert peak(lambda: model.encode(x).latent_dist.mean)[0] < 2.3 * 2**30


# -- with gradients ------------------------------------------------------------------------------------------------------


def test_with_gradients_it_is_the_plain_way(numbers):
    numbers(600)
    model = small()
    z = torch.randn(1, 4, 6, 5, requires_grad=True)
    (plain,) = torch.autograd.grad(model.decode(z).sample.sum(), z)
    model.enable_tiling()
    (tiled,) = torch.autograd.grad(model.decode(z).sample.sum(), z)
    assert torch.equal(plain, tiled)
    model.requires_grad_()
    assert model.decode(z.detach()).sample.requires_grad


def test_nothing_in_a_batch():
    model = small()
    model.enable_tiling()
    assert model.decode(torch.randn(0, 4, 4, 4)).sample.shape == (0, 3, 16, 16)
