"""Shift, scale, means and deviations of an autoencoder's latents: the same in encoding, decoding and previews."""

from __future__ import annotations

import pytest
import torch

import calotype
from calotype.images.previews import rgb_factors
from calotype.models.latent_space import scaled, unscaled

SPACES = [{}, {"shift_factor": 0.7}, {"scaling_factor": 2.0, "shift_factor": -0.3}, {"scaling_factor": None},
          {"latents_mean": [0.1, -0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 0.5, 1.5]}, {"latents_mean": [0.5] * 4}]


def tiny_vae(**config):
    torch.manual_seed(0)
    return calotype.AutoencoderKL(**{
        "block_out_channels": (8, 16), "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2, **config}).eval()


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_there_and_back(space):
    vae, latents = tiny_vae(**space), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(unscaled(vae, scaled(vae, latents)), latents, atol=1e-6)


def test_what_the_config_says():
    """`(latents - shift) · scale`, or the same by channels; without a scale, as they are."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(scaled(tiny_vae(), latents), latents * 0.18215)
    assert torch.equal(unscaled(tiny_vae(), latents), latents / 0.18215)
    assert torch.allclose(scaled(tiny_vae(scaling_factor=2.0, shift_factor=0.5), latents), (latents - 0.5) * 2)
    assert torch.equal(scaled(tiny_vae(scaling_factor=None), latents), latents)
    by_channel = scaled(tiny_vae(scaling_factor=3.0, latents_mean=[1.0, 2, 3, 4], latents_std=[1.0, 2, 4, 8]), latents)
    mean, deviation = (torch.tensor(values).view(4, 1, 1) for values in ([1.0, 2, 3, 4], [1.0, 2, 4, 8]))
    assert torch.allclose(by_channel, (latents - mean) / deviation * 3)


@pytest.mark.parametrize("space", SPACES[1:5], ids=str)
def test_pipelines_and_previews_agree(space):
    """The same latents of the autoencoder, whatever its space is called. Once, previews alone knew of the shift."""
    plain, other = tiny_vae(scaling_factor=1.0), tiny_vae(**{"scaling_factor": 1.0, **space})
    other.load_state_dict(plain.state_dict())
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    made = []
    for vae in (plain, other):
        unet = calotype.UNet2DModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
        base = calotype.StableDiffusionPipeline(
            vae, None, None, calotype.UNet2DConditionModel(block_out_channels=(8,), norm_num_groups=4, cross_attention_dim=8,
                                                           attention_head_dim=2, down_block_types=("DownBlock2D",),
                                                           up_block_types=("UpBlock2D",), mid_block_type=None),
            calotype.DDIMScheduler(), requires_safety_checker=False)
        ldm = calotype.LDMPipeline(vae, unet, calotype.DDIMScheduler())
        with torch.no_grad():
            for decoded in (base.decode_latents(scaled(vae, latents)), ldm._decode(scaled(vae, latents), None)):
                made.append(decoded)
            made.append(unscaled(vae, base.encode_pictures(pixels, torch.Generator().manual_seed(0))))
            ours = scaled(vae, latents)
            factors = rgb_factors(vae)
            made.append(torch.einsum("bchw,cr->brhw", ours, factors[:-1]) + factors[-1].view(-1, 1, 1))
    for one, same in zip(made[:3], made[4:7], strict=True):
        assert torch.allclose(one, same, atol=1e-5)
    assert (made[3] - made[7]).abs().mean() < 0.5 * made[3].std()  # fitted to other samples of the space
