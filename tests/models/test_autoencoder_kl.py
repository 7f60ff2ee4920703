"""`AutoencoderKL` against the oracle."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close, pair

import calotype

BASE = {
    "block_out_channels": (16, 32), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 8,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 2,
}


@pytest.mark.parametrize("options", [
    {}, {"use_quant_conv": False, "use_post_quant_conv": False, "mid_block_add_attention": False},
    {"latent_channels": 8, "act_fn": "gelu", "scaling_factor": 0.5, "shift_factor": 0.1},
])
def test_same_numbers(diffusers, options):
    theirs, ours = pair(diffusers, "AutoencoderKL", {**BASE, **options})
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, made = theirs.encode(x).latent_dist, ours.encode(x).latent_dist
        for draw in (lambda d: d.sample(torch.Generator().manual_seed(1)), lambda d: d.mode(), lambda d: d.kl(),
                     lambda d: d.kl(d), lambda d: d.nll(x.new_zeros(1))):
            assert torch.allclose(draw(made), draw(expected), rtol=1e-5, atol=1e-6)
        latents = expected.mode()
        assert_close(ours.decode(latents).sample, theirs.decode(latents).sample)
        assert_close(ours(x).sample, theirs(x).sample)
        (whole,) = ours.decode(latents, return_dict=False)
        ours.enable_slicing()
        assert torch.allclose(ours.decode(latents).sample, whole, atol=1e-5)


def test_the_bundled_weights(diffusers):
    theirs = diffusers.AutoencoderKL.from_pretrained(calotype.hub.BUNDLED["calotype/emoji"], subfolder="vae")
    ours = calotype.AutoencoderKL.from_pretrained("calotype/emoji", subfolder="vae")
    latents = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        picture = theirs.decode(latents).sample
        assert_close(ours.decode(latents).sample, picture)
        assert_close(ours.encode(picture).latent_dist.mean, theirs.encode(picture).latent_dist.mean)


def test_a_list_of_generators_gives_each_sample_its_own():
    distribution = calotype.AutoencoderKL(**BASE).encode(torch.randn(2, 3, 16, 16)).latent_dist
    both = distribution.sample([torch.Generator().manual_seed(s) for s in (3, 4)])
    alone = distribution.mean[1:] + distribution.std[1:] * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    assert torch.equal(both[1:], alone)
    with pytest.raises(ValueError, match="1 generators for a batch of 2"):
        distribution.sample([torch.Generator()])


def test_unknown_block_types_are_refused():
    with pytest.raises(ValueError, match="must be 'DownEncoderBlock2D'"):
        calotype.AutoencoderKL(down_block_types=("DownBlock2D",))
