"""Previews of latents: like the pictures, and made once."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from calotype import AutoencoderKL
from calotype.images import pil_to_tensor, previews
from calotype.images.previews import latent_preview, rgb_factors

FOUR = Path(__file__).parents[1] / "docs" / "images" / "on-the-way.png"  # four pictures of 128 pixels, 8 apart


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKL.from_pretrained("calotype/emoji", subfolder="vae")


@torch.no_grad()
def test_previews_are_like_the_pictures(vae):
    row = Image.open(FOUR)
    pictures = pil_to_tensor([row.crop((left, 0, left + 128, 128)) for left in range(0, row.width, 136)])
    latents = vae.encode(pictures).latent_dist.mode() * vae.config.scaling_factor
    seen = latent_preview(latents, rgb_factors(vae))
    assert len(seen) == 4 and {(one.mode, one.size) for one in seen} == {("RGB", (16, 16))}
    small = F.adaptive_avg_pool2d(pictures, 16)
    for mine, expected in zip(pil_to_tensor(seen), small, strict=True):
        assert np.corrcoef(mine.flatten(), expected.flatten())[0, 1] > 0.85


def tiny(**options):
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
                         up_block_types=("UpDecoderBlock2D",) * 2, mid_block_add_attention=False, **options)


def test_factors_are_made_once_and_leave_random_numbers_alone():
    model = tiny()
    state = torch.get_rng_state()
    first = rgb_factors(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (5, 3) and first.dtype == torch.float32
    model.decode = None
    assert torch.equal(rgb_factors(model), first)  # without decoding again
    assert torch.equal(rgb_factors(tiny()), first)  # the same from the same weights
    count = len(previews._fitted)
    del model
    gc.collect()
    assert len(previews._fitted) < count


def test_a_linear_autoencoder_is_found_exactly():
    model = tiny(latent_channels=3, scaling_factor=0.5, shift_factor=0.25)
    weights = torch.tensor([[0.1, 0.0, 0.05], [0.0, 0.1, 0.0], [0.02, 0.0, 0.1]])

    class Decoded:
        def __init__(self, latents):
            self.sample = torch.einsum("bchw,cr->brhw", (latents - 0.25) * 0.5, weights).repeat_interleave(2, 2) + 0.1

    model.decode = Decoded
    factors = rgb_factors(model)
    assert torch.allclose(factors[:-1], weights, atol=1e-4) and torch.allclose(factors[-1], torch.tensor(0.1), atol=1e-4)
    latents = torch.randn(2, 3, 4, 6)
    expected = ((torch.einsum("bchw,cr->bhwr", latents, weights) + 0.1) / 2 + 0.5) * 255
    for one, values in zip(latent_preview(latents.double(), factors), expected, strict=True):
        assert np.abs(np.asarray(one) - values.numpy()).max() <= 0.51
    assert latent_preview(latents[0], factors)[0].size == (6, 4)


def test_bad_latents():
    factors = torch.zeros(5, 3)
    for wrong in (torch.zeros(1, 3, 8, 8), torch.zeros(8, 8), torch.zeros(1, 1, 4, 8, 8)):
        with pytest.raises(ValueError, match=r"\[B, 4, H, W\]"):
            latent_preview(wrong, factors)
    with pytest.raises(FloatingPointError):
        latent_preview(torch.full((1, 4, 8, 8), torch.nan), factors)
    model = tiny()
    with torch.no_grad():
        model.decoder.conv_out.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        rgb_factors(model)
