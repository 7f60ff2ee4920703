"""The autoencoders besides `AutoencoderKL`, and tiles, against the oracle."""

from __future__ import annotations

import json

import pytest
import torch
from compare import assert_close, pair

import calotype
from calotype.models.autoencoder_kl import AutoencoderKLOutput, DiagonalGaussianDistribution

LEVELS = {
    "block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 8,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
KL = {**LEVELS, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 16}
VQ = {**LEVELS, "num_vq_embeddings": 16}
ATTENTION = {"down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
             "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D")}
MOVQ = {**VQ, **ATTENTION, "norm_type": "spatial", "latent_channels": 4}
TINY = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
TINY_OTHER = {
    "encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (6, 6), "num_encoder_blocks": (0, 2),
    "num_decoder_blocks": (2, 1), "act_fn": "gelu", "upsample_fn": "bilinear", "in_channels": 4, "out_channels": 4,
    "latent_channels": 3, "latent_magnitude": 2, "latent_shift": 0.3,
}
ASYMMETRIC = {
    "down_block_types": ("DownEncoderBlock2D",) * 3, "down_block_out_channels": (8, 16, 16), "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 3, "up_block_out_channels": (12, 24, 32), "layers_per_up_block": 2,
}
CONSISTENCY = {
    "encoder_block_out_channels": (8, 16), "encoder_down_block_types": ("DownEncoderBlock2D",) * 2, "sample_size": 16,
    "encoder_norm_num_groups": 4, "encoder_layers_per_block": 1, "decoder_block_out_channels": (8, 16),
    "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2, "decoder_norm_num_groups": 4,
    "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2, "decoder_layers_per_block": 1,
}
ALL = {"AutoencoderKL": KL, "VQModel": MOVQ, "AutoencoderTiny": TINY, "AsymmetricAutoencoderKL": ASYMMETRIC,
       "ConsistencyDecoderVAE": CONSISTENCY}


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def reconstruct(model, x):
    """Encode and decode, by a seeded way where there is a choice."""
    return model(x, generator=seeded()) if type(model).__name__ == "ConsistencyDecoderVAE" else model(x)


# -- the same numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    VQ, {**VQ, **ATTENTION, "vq_embed_dim": 5, "layers_per_block": 2, "mid_block_add_attention": False}, MOVQ,
    {**MOVQ, "act_fn": "relu", "mid_block_add_attention": False},
])
def test_vq_model(diffusers, options):
    theirs, ours = pair(diffusers, "VQModel", options)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        latents = theirs.encode(x).latents
        for model in (theirs, ours):  # a fresh codebook is so small that most latents are nearest to one entry
            model.quantize.embedding.weight.copy_(latents.permute(0, 2, 3, 1).flatten(0, 2)[::8])
        assert_close(ours.encode(x).latents, latents)
        for force in (False, True):
            expected, made = theirs.decode(latents, force), ours.decode(latents, force)
            assert_close(made.sample, expected.sample)
            assert torch.allclose(made.commit_loss, expected.commit_loss, rtol=1e-5)
        expected = theirs(x)
        assert_close(ours(x).sample, expected.sample)
        sample, loss = ours(x, return_dict=False)
        assert_close(sample, expected.sample)
        assert torch.allclose(loss, expected.commit_loss, rtol=1e-5)
        quantized, _, (_, _, indices) = ours.quantize(latents)
        assert_close(quantized, theirs.quantize(latents)[0])
        assert torch.equal(indices, theirs.quantize(latents)[2][2])
        assert len(indices.unique()) == 16


def test_spatial_norms_look_at_what_was_quantised():
    """And so have its channels, where those are not the encoder's."""
    model = calotype.VQModel(**{**MOVQ, "vq_embed_dim": 3}).eval()
    assert model.decoder.conv_norm_out.conv_y.weight.shape == (32, 3, 1, 1)
    assert model(torch.randn(1, 3, 16, 16)).sample.shape == (1, 3, 16, 16)


def test_vq_gradients(diffusers):
    """Of the loss and through the codebook, to latents and entries."""
    theirs, ours = pair(diffusers, "VQModel", VQ)
    latents, gradients = torch.randn(1, 3, 4, 4), []
    for model in (theirs, ours):
        z = latents.clone().requires_grad_()
        quantized, loss, _ = model.quantize(z)
        gradients.append(torch.autograd.grad(loss + quantized.square().sum(), (z, model.quantize.embedding.weight)))
    for made, expected in zip(gradients[1], gradients[0], strict=True):
        assert_close(made, expected)


def test_numbers_of_entries_are_looked_up(diffusers):
    theirs, ours = pair(diffusers, "VQModel", {**VQ, "lookup_from_codebook": True})
    numbers, shape = torch.randint(16, (2, 8, 8), generator=seeded()), (2, 8, 8, 3)
    with torch.no_grad():
        expected = theirs.decode(numbers.flatten(1), force_not_quantize=True, shape=shape).sample
        assert_close(ours.decode(numbers.flatten(1), force_not_quantize=True, shape=shape).sample, expected)
        assert_close(ours.decode(numbers, force_not_quantize=True).sample, expected)
        with pytest.raises(ValueError, match="wants numbers of codebook entries"):
            ours.decode(torch.randn(1, 3, 8, 8), force_not_quantize=True)
        with pytest.raises(ValueError, match=r"give shape=\(batch"):
            ours.decode(numbers.flatten(1), force_not_quantize=True)
        with pytest.raises(ValueError, match="torch.int64, but wants latents"):
            ours.decode(numbers)


def test_a_long_list_of_positions_is_compared_in_parts(monkeypatch):
    model = calotype.VQModel(**VQ)
    z = torch.randn(2, 3, 8, 8, generator=seeded())
    whole = model.quantize(z)[2][2]
    monkeypatch.setattr("calotype.models.vq_model._POSITIONS", 50)
    assert torch.equal(model.quantize(z)[2][2], whole)


@pytest.mark.parametrize("options", [TINY, TINY_OTHER])
def test_tiny(diffusers, options):
    theirs, ours = pair(diffusers, "AutoencoderTiny", options)
    x = torch.rand(2, options.get("in_channels", 3), 32, 32) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(x).latents
        assert_close(ours.encode(x).latents, latents)
        expected = theirs.decode(5 * latents).sample
        assert_close(ours.decode(5 * latents).sample, expected)
        assert_close(ours(x).sample, theirs(x).sample)
        assert_close(ours.scale_latents(9 * latents), theirs.scale_latents(9 * latents))
        assert_close(ours.unscale_latents(latents), theirs.unscale_latents(latents))
        ours.enable_slicing()
        assert_close(ours.decode(5 * latents, return_dict=False)[0], expected)
    assert ours.config.block_out_channels == theirs.config.block_out_channels


@pytest.mark.parametrize("options", [
    {}, {"up_block_out_channels": (8, 16, 32), **ATTENTION, "down_block_types": ("AttnDownEncoderBlock2D",) * 3,
         "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"), "layers_per_down_block": 2},
    {"up_block_types": ("UpDecoderBlock2D",) * 4, "up_block_out_channels": (4, 8, 16, 16)},
])
def test_asymmetric(diffusers, options):
    theirs, ours = pair(diffusers, "AsymmetricAutoencoderKL", {**ASYMMETRIC, **options})
    levels = len(ours.config.up_block_types)
    x, z = torch.randn(2, 3, 32, 32), torch.randn(2, 4, 4, 4)
    image, mask = torch.randn(2, 3, 2 ** (levels + 1), 2 ** (levels + 1)), torch.rand(2, 1, 2 ** (levels + 1), 2 ** (levels + 1))
    with torch.no_grad():
        assert_close(ours.encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters)
        assert_close(ours.decode(z).sample, theirs.decode(z).sample)
        expected = theirs.decode(z, image=image, mask=mask.round()).sample
        assert_close(ours.decode(z, image=image, mask=mask.round(), return_dict=False)[0], expected)
        assert_close(ours.decode(z, image=image, mask=mask).sample, theirs.decode(z, image=image, mask=mask).sample)
        if levels == 3:
            mask = torch.ones(2, 1, 32, 32)
            assert_close(ours(x, mask, True, generator=seeded()).sample, theirs(x, mask, True, generator=seeded()).sample)
            assert_close(ours(x).sample, theirs(x).sample)
    assert ours.config.block_out_channels == theirs.config.block_out_channels


@pytest.mark.parametrize("options", [
    {}, {"decoder_add_attention": True, "scaling_factor": 0.5, "decoder_layers_per_block": 2, "decoder_norm_eps": 1e-6,
         "decoder_down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "decoder_resnet_time_scale_shift": "default",
         "decoder_up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "decoder_time_embedding_type": "positional"},
])
def test_consistency_decoder(diffusers, options):
    theirs, ours = pair(diffusers, "ConsistencyDecoderVAE", {**CONSISTENCY, **options})
    x, z = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert_close(ours.encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters)
        expected = theirs.decode(z, generator=seeded()).sample
        assert_close(ours.decode(z, generator=seeded()).sample, expected)
        assert_close(ours(x, True, False, seeded())[0], theirs(x, True, generator=seeded()).sample)
        each = [seeded(1), seeded(2)]
        alone = ours.decode(z[1:], generator=seeded(2)).sample
        assert torch.allclose(ours.decode(z, generator=each).sample[1:], alone, atol=1e-5)
        assert ours.decode(z, generator=seeded(), num_inference_steps=1).sample.shape == expected.shape
        with pytest.raises(ValueError, match="num_inference_steps is 3, but must be 1 or 2"):
            ours.decode(z, num_inference_steps=3)


# -- tiles -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 26), (30, 46), (70, 28)])
def test_tiles(diffusers, height, width):
    theirs, ours = pair(diffusers, "AutoencoderKL", KL)
    x, z = torch.randn(2, 3, height, width), torch.randn(2, 4, height // 2, width // 2)
    theirs.enable_tiling()
    ours.enable_tiling(seamless=False)
    with torch.no_grad():
        decoded, encoded = theirs.decode(z).sample, theirs.encode(x).latent_dist.parameters
        assert_close(ours.decode(z).sample, decoded)
        assert_close(ours.encode(x).latent_dist.parameters, encoded)
        ours.enable_slicing()
        assert_close(ours.decode(z).sample, decoded)
        for name in ("tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor"):
            assert getattr(ours, name) == getattr(theirs, name)
        ours.disable_tiling()
        assert not torch.allclose(ours.decode(z).sample, decoded, atol=1e-3)


def test_tiles_of_the_consistency_encoder(diffusers):
    theirs, ours = pair(diffusers, "ConsistencyDecoderVAE", CONSISTENCY)
    x = torch.randn(1, 3, 30, 46)
    for model in (theirs, ours):
        model.enable_tiling()
    with torch.no_grad():
        assert_close(ours.encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters)


@pytest.mark.parametrize("overlap", [0.125, 0.25])
def test_tiles_of_tiny(diffusers, overlap):
    theirs, ours = pair(diffusers, "AutoencoderTiny", TINY)
    for model in (theirs, ours):
        model.enable_tiling()
        model.tile_sample_min_size, model.tile_latent_min_size, model.tile_overlap_factor = 128, 16, overlap
    x, z = torch.rand(2, 3, 160, 208), torch.randn(2, 4, 20, 26)
    with torch.no_grad():
        assert_close(ours.decode(z).sample, theirs.decode(z).sample)
        assert_close(ours.encode(x).latents, theirs.encode(x).latents)


def test_tiles_keep_the_size_whatever_their_own():
    model = calotype.AutoencoderKL(**KL).eval()
    x, z = torch.randn(1, 3, 34, 50), torch.randn(1, 4, 17, 25)
    model.enable_tiling(seamless=False)
    with torch.no_grad():
        for sample, latent, overlap in ((20, 10, 0.25), (21, 7, 0.4), (8, 4, 0.0), (12, 9, 0.5)):
            model.tile_sample_min_size, model.tile_latent_min_size, model.tile_overlap_factor = sample, latent, overlap
            assert model.decode(z).sample.shape == x.shape
            assert model.encode(x).latent_dist.mean.shape == z.shape
        model.tile_overlap_factor = 1.0
        with pytest.raises(ValueError, match="tile_overlap_factor = 1.0"):
            model.decode(z)


@pytest.mark.parametrize("name", ["VQModel", "AsymmetricAutoencoderKL"])
def test_slices_and_tiles_of_the_others(name):
    """The oracle has none. A picture's middle, which one tile sees, is that tile's; parts of a batch change nothing."""
    torch.manual_seed(0)
    model, factor = getattr(calotype, name)(**ALL[name]).eval(), {"VQModel": 2}.get(name, 4)
    z = torch.randn(2, 4, 24, 24)
    given = {"force_not_quantize": True} if name == "VQModel" else {}
    with torch.no_grad():
        whole = model.decode(z, **given).sample
        model.enable_slicing()
        assert_close(model.decode(z, **given).sample, whole)
        model.enable_tiling()
        model.tile_latent_min_size, model.tile_sample_min_size = 16, 16 * factor
        tiled = model.decode(z, **given).sample
        assert tiled.shape == whole.shape
        corner = model.decode(z[:, :, :16, :16], **given).sample
        assert_close(tiled[:, :, : 12 * factor, : 12 * factor], corner[:, :, : 12 * factor, : 12 * factor])
        assert model(whole).sample.shape == whole.shape


def test_tiles_have_gradients():
    for name, latents in (("AutoencoderKL", (1, 4, 12, 20)), ("AutoencoderTiny", (1, 4, 12, 20))):
        model = getattr(calotype, name)(**ALL[name])
        model.enable_tiling(**({"seamless": False} if name == "AutoencoderKL" else {}))
        model.tile_latent_min_size = 8
        z = torch.randn(latents, requires_grad=True)
        model.decode(z).sample.sum().backward()
        assert (z.grad.flatten(2).abs().sum(dim=1) > 0).all()


# -- of all ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_save_and_load(name, tmp_path, diffusers, caplog):
    """Ours reads what ours wrote, the oracle reads what ours wrote, ours reads what the oracle wrote."""
    torch.manual_seed(0)
    ours = getattr(calotype, name)(**ALL[name]).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = reconstruct(ours, x).sample
        ours.save_pretrained(tmp_path / "ours")
        theirs = getattr(diffusers, name).from_pretrained(tmp_path / "ours")
        assert_close(expected, reconstruct(theirs, x).sample)
        theirs.save_pretrained(tmp_path / "theirs")
        for folder in ("ours", "theirs"):
            again = getattr(calotype, name).from_pretrained(tmp_path / folder)
            assert_close(reconstruct(again, x).sample, expected)
    assert not caplog.records
    config, written = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("ours", "theirs"))
    for key in ("_name_or_path", "mid_block_add_attention"):
        config.pop(key, None)
    assert {key: written[key] for key in config} == config


@pytest.mark.parametrize("name", ALL)
def test_checkpointing_changes_no_gradient(name):
    torch.manual_seed(0)
    model, x, gradients = getattr(calotype, name)(**ALL[name]), torch.rand(1, 3, 16, 16), []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        reconstruct(model, x).sample.square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    for one, other in zip(gradients[0].values(), gradients[1].values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_what_encoding_gives(name):
    """Latents, or a distribution of them: the two answers that a caller must know."""
    model = getattr(calotype, name)(**ALL[name]).eval()
    with torch.no_grad():
        encoded = model.encode(torch.rand(1, 3, 16, 16))
        if name in ("VQModel", "AutoencoderTiny"):
            latents = encoded.latents
        else:
            assert isinstance(encoded, AutoencoderKLOutput)
            assert isinstance(encoded.latent_dist, DiagonalGaussianDistribution)
            latents = encoded.latent_dist.mode()
        (picture,) = model.decode(latents, generator=seeded(), return_dict=False)[:1]
    assert picture.shape[:2] == (1, 3)


@pytest.mark.parametrize(("name", "options", "words"), [
    ("VQModel", {"norm_type": "layer"}, "norm_type is 'layer', but must be 'group' or 'spatial'"),
    ("VQModel", {"down_block_types": ("DownBlock2D",) * 2}, "must be 'DownEncoderBlock2D' or 'AttnDownEncoderBlock2D'"),
    ("VQModel", {"block_out_channels": (32,)}, "down_block_types has 2 entries, and block_out_channels has 1"),
    ("AutoencoderTiny", {"num_encoder_blocks": (1,)}, "encoder_block_out_channels has 4 entries, and .* for 1 level"),
    ("AutoencoderTiny", {"decoder_block_out_channels": (8, 8, 8, 6)}, "all must be equal"),
    ("AutoencoderTiny", {"upsample_fn": "linear"}, "upsample_fn is 'linear', but must be 'nearest'"),
    ("AsymmetricAutoencoderKL", {"up_block_out_channels": (8, 16)}, "up_block_types has 3 entries"),
    ("ConsistencyDecoderVAE", {"latent_channels": 8}, "latent_channels is 8, but must be 4"),
    ("ConsistencyDecoderVAE", {"encoder_double_z": False}, "the encoder ends in 4 channels"),
    ("ConsistencyDecoderVAE", {"encoder_block_out_channels": (8,)}, "encoder_down_block_types has 2 entries"),
])
def test_bad_configs_are_refused(name, options, words):
    with pytest.raises(ValueError, match=words):
        getattr(calotype, name)(**{**ALL[name], **options})


def test_what_a_mask_needs():
    model = calotype.AsymmetricAutoencoderKL(**ASYMMETRIC)
    z, image, mask = torch.randn(1, 4, 4, 4), torch.randn(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    for given in ({"image": image}, {"mask": mask}):
        with pytest.raises(ValueError, match="image and mask go together"):
            model.decode(z, **given)
    model = calotype.AsymmetricAutoencoderKL(**{**ASYMMETRIC, "up_block_out_channels": (8, 12, 32)})
    with pytest.raises(ValueError, match=r"widths \[8, 12, 32\] cannot be conditioned on a mask"):
        model.decode(z, image=image, mask=mask)
