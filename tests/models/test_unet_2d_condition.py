"""`UNet2DConditionModel` against the oracle, over the options that image checkpoints use."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close, pair

import calotype
from calotype.models.attention import JointSpatialAttention
from calotype.models.conditioning import Context
from calotype.models.embeddings import FourierFeatures
from calotype.runtime.scope import fast_path

BASE = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 16,
    "attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
THREE = {
    "block_out_channels": (16, 32, 64), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
LATENT_UPSCALER = {
    "in_channels": 8, "out_channels": 5, "block_out_channels": (32, 32, 64, 64), "mid_block_type": None, "act_fn": "gelu",
    "down_block_types": ("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3), "norm_num_groups": None, "attention_head_dim": 16,
    "up_block_types": (*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"), "resnet_time_scale_shift": "scale_shift",
    "layers_per_block": 2, "time_embedding_type": "fourier", "timestep_post_act": "gelu", "time_cond_proj_dim": 12,
    "conv_in_kernel": 1, "conv_out_kernel": 1,
}
SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), "cross_attention_dim": 64,
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "attention_head_dim": 8,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "resnet_time_scale_shift": "scale_shift",
}
RANDOM = torch.Generator().manual_seed(1)


def some(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RANDOM)


CASES = {
    "sd1": ({}, {}),
    "sd2": ({"use_linear_projection": True, "attention_head_dim": (2, 8), "upcast_attention": True}, {}),
    "sdxl": ({**THREE, "transformer_layers_per_block": (1, 2, 3), "addition_embed_type": "text_time",
              "use_linear_projection": True, "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 60},
             {"added_cond_kwargs": {"text_embeds": some(2, 12), "time_ids": torch.arange(12.0).view(2, 6)}}),
    "lists per level": ({"layers_per_block": (1, 2), "transformer_layers_per_block": (2, 1), "attention_head_dim": (2, 8),
                         "cross_attention_dim": (16, 16), "only_cross_attention": (True, False)}, {}),
    "asymmetric depth": ({"transformer_layers_per_block": ((1,), (2,)),
                          "reverse_transformer_layers_per_block": ((2, 1), (1, 2))}, {}),
    "text twice": ({"only_cross_attention": True}, {}),
    "no middle": ({"mid_block_type": None}, {}),
    "resnet in the middle": ({"mid_block_type": "UNetMidBlock2D", "mid_block_scale_factor": 2.0}, {}),
    "scaled middle": ({"mid_block_scale_factor": 2.0}, {}),
    "scale and shift": ({"resnet_time_scale_shift": "scale_shift", "dropout": 0.2}, {}),
    "resnets resize": ({"down_block_types": ("ResnetDownsampleBlock2D", "CrossAttnDownBlock2D"), "resnet_skip_time_act": True,
                        "up_block_types": ("CrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "resnet_out_scale_factor": 1.5}, {}),
    "unused resnet options": ({"resnet_out_scale_factor": 1.5, "resnet_skip_time_act": True}, {}),
    "self-attention": ({"down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D"),
                        "up_block_types": ("CrossAttnUpBlock2D", "AttnUpBlock2D")}, {}),
    "classes": ({"num_class_embeds": 5}, {"class_labels": torch.tensor([1, 3])}),
    "classes as times": ({"class_embed_type": "timestep"}, {"class_labels": torch.tensor([1, 3])}),
    "class embeddings": ({"class_embed_type": "identity"}, {"class_labels": some(2, 128)}),
    "projected classes beside": ({"class_embed_type": "projection", "projection_class_embeddings_input_dim": 12,
                                  "class_embeddings_concat": True}, {"class_labels": some(2, 12)}),
    "simply projected classes": ({"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 12},
                                 {"class_labels": some(2, 12)}),
    "guidance embedding": ({"time_cond_proj_dim": 20}, {"timestep_cond": some(2, 20)}),
    "fourier": ({"time_embedding_type": "fourier"}, {}),
    "fourier, other size": ({"time_embedding_type": "fourier", "time_embedding_dim": 40, "flip_sin_to_cos": False}, {}),
    "other details": ({"timestep_post_act": "silu", "time_embedding_act_fn": "gelu", "act_fn": "gelu", "conv_in_kernel": 5,
                       "conv_out_kernel": 1, "freq_shift": 1, "flip_sin_to_cos": False, "center_input_sample": True,
                       "norm_eps": 1e-6, "downsample_padding": 0}, {}),
    "projected text": ({"encoder_hid_dim": 24, "encoder_hid_dim_type": "text_proj"}, {"text": 24}),
    "latent upscaler": (LATENT_UPSCALER, {"timestep_cond": some(2, 12)}),
    "latent upscaler, other details": (
        {**LATENT_UPSCALER, "layers_per_block": (1, 2, 1, 2), "norm_eps": 1e-2, "norm_num_groups": 8, "act_fn": "silu",
         "attention_head_dim": 8, "upcast_attention": True}, {
        "timestep_cond": some(2, 12), "attention_mask": torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]),
        "encoder_attention_mask": torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]])}),
    "no text in the latent upscaler": ({
        **LATENT_UPSCALER, "down_block_types": ("KDownBlock2D",) * 4, "up_block_types": ("KUpBlock2D",) * 4},
        {"timestep_cond": some(2, 12)}),
    "deepfloyd if": ({
        **SIMPLE, "cross_attention_norm": "group_norm", "resnet_skip_time_act": True, "resnet_out_scale_factor": 1.5,
        "mid_block_scale_factor": 2.0, "act_fn": "gelu", "addition_embed_type": "text", "addition_embed_type_num_heads": 4,
        "encoder_hid_dim": 24, "encoder_hid_dim_type": "text_proj", "class_embed_type": "timestep"},
        {"text": 24, "class_labels": torch.tensor([1, 3])}),
    "unclip": ({**SIMPLE, "class_embed_type": "identity", "only_cross_attention": True},
               {"text": 64, "class_labels": some(2, 128)}),
    "simple attention, masked": (
        {**SIMPLE, "only_cross_attention": (True, False), "norm_eps": 1e-3, "mid_block_only_cross_attention": False},
        {"text": 64, "encoder_attention_mask": torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]])}),
    "kandinsky 2.1": (
        {"addition_embed_type": "text_image", "encoder_hid_dim": 24, "encoder_hid_dim_type": "text_image_proj"},
        {"text": 24, "added_cond_kwargs": {"text_embeds": some(2, 16), "image_embeds": some(2, 16)}}),
    "kandinsky 2.2": ({"addition_embed_type": "image", "encoder_hid_dim": 24, "encoder_hid_dim_type": "image_proj"},
                      {"text": None, "added_cond_kwargs": {"image_embeds": some(2, 24)}}),
    "kandinsky 2.2 with hints": (
        {"addition_embed_type": "image_hint", "encoder_hid_dim": 24, "encoder_hid_dim_type": "image_proj", "in_channels": 8},
        {"text": None, "channels": 4, "added_cond_kwargs": {"image_embeds": some(2, 24), "hint": some(2, 3, 128, 128)}}),
    "pooled text": ({"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, {}),
    "text mask": ({}, {"encoder_attention_mask": torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]])}),
    "odd sizes": (THREE, {"size": 17}),
    "residuals from outside": ({}, {
        "down_block_additional_residuals": [some(2, 32, 16, 16), some(2, 32, 16, 16), some(2, 32, 8, 8), some(2, 64, 8, 8)],
        "mid_block_additional_residual": some(2, 64, 8, 8)}),
}


@pytest.mark.parametrize("case", CASES)
def test_same_numbers(diffusers, case):
    """One call equals the oracle's, and so does a call with everything constant kept from an earlier one."""
    options, given = CASES[case]
    given = dict(given)
    text, size = given.pop("text", 16), given.pop("size", 16)
    text = text and some(2, 5, text)
    theirs, ours = pair(diffusers, "UNet2DConditionModel", {**BASE, **options})
    x = some(2, given.pop("channels", theirs.config.in_channels), size, size)
    with torch.no_grad():
        expected = theirs(x, 7, text, **given).sample
        assert_close(ours(x, 7, text, **given).sample, expected)
        told = {name: given[name] for name in ("class_labels", "timestep_cond", "added_cond_kwargs") if name in given}
        moments = ours.moments(torch.tensor([900, 7]), encoder_hidden_states=text, **told)
        kept = ours.keep(text, given.get("added_cond_kwargs"))
        for name in ("class_labels", "timestep_cond"):
            given.pop(name, None)
        ours(x, moments[0], kept, **given)
        assert_close(ours(x, moments[1], kept, **given).sample, expected)


def test_the_bundled_weights(diffusers):
    theirs = diffusers.UNet2DConditionModel.from_pretrained(calotype.hub.BUNDLED["calotype/emoji"], subfolder="unet")
    ours = calotype.UNet2DConditionModel.from_pretrained("calotype/emoji", subfolder="unet")
    x, text = some(2, 4, 16, 16), some(2, 32, 256)
    with torch.no_grad():
        for t in (1, 500, 999):
            assert_close(ours(x, t, text).sample, theirs(x, t, text).sample)


def test_number_of_heads_can_be_said_by_its_name():
    """The peer refuses `num_attention_heads`; here it is what the format calls `attention_head_dim`."""
    torch.manual_seed(0)
    one, other = (calotype.UNet2DConditionModel(**{**BASE, **more}) for more in (
        {"attention_head_dim": 8}, {"num_attention_heads": 8}))
    other.load_state_dict(one.state_dict())
    x, text = some(1, 4, 8, 8), some(1, 5, 16)
    assert torch.equal(one(x, 1, text).sample, other(x, 1, text).sample)


def test_gradients_equal_the_oracle_s_with_and_without_checkpointing(diffusers):
    theirs, ours = pair(diffusers, "UNet2DConditionModel", BASE)
    x, text = some(2, 4, 16, 16), some(2, 5, 16)
    theirs(x, 7, text).sample.square().mean().backward()
    for checkpointing in (False, True):
        if checkpointing:
            ours.enable_gradient_checkpointing()
        ours.zero_grad()
        ours(x, 7, text).sample.square().mean().backward()
        expected = dict(theirs.named_parameters())
        largest = max(parameter.grad.abs().max() for parameter in expected.values())
        for name, parameter in ours.named_parameters():
            assert (parameter.grad - expected[name].grad).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize(("change", "message"), [
    ({"down_block_types": ("CrosAttnDownBlock2D", "DownBlock2D")}, "did you mean 'CrossAttnDownBlock2D'"),
    ({"attention_head_dim": (4, 4, 4)}, "attention_head_dim has 3 entries for 2 levels"),
    ({"attention_head_dim": 5}, "32 channels cannot be divided among 5 attention heads"),
    ({"class_embed_type": "projection"}, "needs projection_class_embeddings_input_dim"),
    ({"down_block_types": ("KDownBlock2D", "DownBlock2D")}, "'KDownBlock2D' cannot be in one model with 'CrossAttnUpBlock2D'"),
    ({"norm_num_groups": None}, "norm_num_groups is None, which is only for models wholly of 'KDownBlock2D'"),
    ({**LATENT_UPSCALER, "attention_head_dim": 24}, "32 channels cannot be divided into attention heads of 24 channels"),
    ({**LATENT_UPSCALER, "down_block_types": ("KDownBlock", *("KCrossAttnDownBlock2D",) * 3)}, "did you mean 'KDownBlock2D'"),
    ({"addition_embed_type": "images"}, "did you mean 'image'"),
    ({"addition_embed_type": "image"}, "needs encoder_hid_dim"),
    ({"encoder_hid_dim_type": "text_proj"}, "needs encoder_hid_dim, the channels that 'text_proj' takes"),
    ({"addition_embed_type": "text", "addition_embed_type_num_heads": 3}, "16 channels cannot be divided among"),
    ({"cross_attention_norm": "group_norm"}, "cross_attention_norm is 'group_norm', but must be None"),
    ({**SIMPLE, "attention_head_dim": 24}, "64 channels cannot be divided into attention heads of 24 channels"),
])
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        calotype.UNet2DConditionModel(**{**BASE, **change})


def test_conditions_are_asked_for():
    model = calotype.UNet2DConditionModel(**{**BASE, **CASES["sdxl"][0]})
    with pytest.raises(ValueError, match="'text_embeds' and 'time_ids'"):
        model(some(1, 4, 16, 16), 1, some(1, 5, 16))
    pooling = calotype.UNet2DConditionModel(**{**BASE, **CASES["pooled text"][0]})
    with pytest.raises(ValueError, match="pools its text"):
        pooling(some(1, 4, 16, 16), 1, pooling.keep(some(1, 5, 16)))
    hinted = calotype.UNet2DConditionModel(**{**BASE, **CASES["kandinsky 2.2 with hints"][0]})
    with pytest.raises(ValueError, match="added_cond_kwargs with 'image_embeds'"):
        hinted.keep(None)
    with pytest.raises(ValueError, match="added_cond_kwargs with 'hint'"):
        hinted(some(1, 4, 16, 16), 1, None, added_cond_kwargs={"image_embeds": some(1, 24)})


def test_simple_attention_sees_what_its_masks_let_it():
    """A hidden word changes nothing, and neither does a hidden place, for the places that are seen."""
    attention = JointSpatialAttention(16, 8, 12, groups=4)
    x, text = some(1, 16, 2, 3), some(1, 4, 12)
    seen, places = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 6)
    seen[..., 2], places[..., 5] = -10000.0, -10000.0
    with torch.no_grad():
        expected = attention(x, Context(text[:, [0, 1, 3]]))
        assert_close(attention(x, Context(text, seen)), expected)
        assert_close(attention(x, Context(text, seen, torch.zeros_like(places))), expected)
        masked = attention(x, Context(text, seen, places))
        other = x.clone()
        other[:, :4, 1, 2] = other[:, :4, 1, 2].flip(1)  # within a norm's group: its mean and variance stay
        assert_close(attention(other, Context(text, seen, places))[..., 0, :], masked[..., 0, :])
        assert not torch.allclose(masked, expected)


def test_the_latent_upscaler_as_a_folder(diffusers, tmp_path):
    theirs, ours = pair(diffusers, "UNet2DConditionModel", {**BASE, **LATENT_UPSCALER})
    given = some(2, 8, 16, 16), 0.37, some(2, 5, 16), None, some(2, 12)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    with torch.no_grad():
        expected = theirs(given[0], torch.tensor(given[1]), *given[2:]).sample
        assert_close(calotype.UNet2DConditionModel.from_pretrained(tmp_path / "theirs")(*given).sample, expected)
        again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "ours")
        assert_close(again(given[0], torch.tensor(given[1]), *given[2:]).sample, expected)


def test_the_upscaler_of_four_is_told_the_noise_level(diffusers):
    """Its classes are noise levels (Stable Diffusion's x4 upscaler): one label may stand for the whole batch."""
    config = {**BASE, "in_channels": 7, "num_class_embeds": 1000, "only_cross_attention": (True, False), "attention_head_dim": 8}
    theirs, ours = pair(diffusers, "UNet2DConditionModel", config)
    given = some(2, 7, 16, 16), 7, some(2, 5, 16)
    with torch.no_grad():
        for labels in (torch.tensor([20]), torch.tensor([20, 350])):
            assert_close(ours(*given, class_labels=labels).sample, theirs(*given, class_labels=labels).sample)


def test_fourier_features_keep_their_angles_in_half_precision():
    """Frequencies are rounded once; the angles, many turns, are not."""
    features, values = FourierFeatures(32, log=False).half(), torch.tensor([0.37, 7.0])
    assert_close(features(values), FourierFeatures.forward(features.float(), values))


# -- a sample given once for several texts ------------------------------------------------------------------------------------

NO_TEXT_AT_FIRST = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
SHARED = {
    "text at first": {}, "text later": NO_TEXT_AT_FIRST, "text in the middle": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    "text in the end": {"down_block_types": ("DownBlock2D",) * 2, "mid_block_type": None},
    "nowhere": {
        "down_block_types": ("DownBlock2D",) * 2, "mid_block_type": "UNetMidBlock2D", "up_block_types": ("UpBlock2D",) * 2},
    "only text at first": {"only_cross_attention": (True, False)}, "only text": {"only_cross_attention": True},
    "deep": {**NO_TEXT_AT_FIRST, "transformer_layers_per_block": (1, 3), "layers_per_block": 2, "use_linear_projection": True},
    "simple": SIMPLE, "simple, only text": {**SIMPLE, "only_cross_attention": True, "cross_attention_norm": "group_norm"},
    "latent upscaler": LATENT_UPSCALER,
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
}


@pytest.mark.parametrize("case", SHARED)
def test_a_sample_is_given_once_for_several_texts(case):
    """As guidance has it. The result is that of the sample given with each text; for moments and for plain timesteps."""
    torch.manual_seed(0)
    model = calotype.UNet2DConditionModel(**{**BASE, **SHARED[case]}).eval()
    size = 16 if case == "latent upscaler" else 8
    for texts, batch in ((2, 1), (3, 2)):
        x, text = some(batch, model.config.in_channels, size, size), some(texts * batch, 5, model.config.cross_attention_dim)
        with torch.no_grad():
            expected = model(x.repeat(texts, 1, 1, 1), 7, text).sample
            assert case == "nowhere" or not torch.allclose(expected[:batch], expected[batch:2 * batch], atol=1e-3)
            kept = model.keep(text)
            assert_close(model(x, model.moments(torch.tensor([900, 7]))[1], kept).sample, expected)
            assert_close(model(x, torch.full((batch,), 7), kept).sample, expected)
            with fast_path():
                assert_close(model(x, 7, kept).sample, expected)


@pytest.mark.parametrize("case", ["text at first", "simple", "latent upscaler"])
def test_masks_of_a_sample_given_once(case):
    torch.manual_seed(0)
    model = calotype.UNet2DConditionModel(**{**BASE, **SHARED[case]}).eval()
    x, text = some(2, model.config.in_channels, 16, 16), some(4, 5, model.config.cross_attention_dim)
    seen = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]])
    with torch.no_grad():
        expected = model(x.repeat(2, 1, 1, 1), 7, text, encoder_attention_mask=seen).sample
        assert_close(model(x, 7, model.keep(text), encoder_attention_mask=seen).sample, expected)
        if case == "latent upscaler":  # self-attention only among the four places of its last level
            places = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 0]])
            expected = model(x.repeat(2, 1, 1, 1), 7, text, attention_mask=places.repeat(2, 1)).sample
            assert_close(model(x, 7, model.keep(text), attention_mask=places).sample, expected)


def test_conditions_of_each_sample_and_several_texts():
    """Classes, given for each sample: as if given for each text of it."""
    torch.manual_seed(0)
    model = calotype.UNet2DConditionModel(**{**BASE, "num_class_embeds": 5}).eval()
    x, text, labels = some(2, 4, 8, 8), some(4, 5, 16), torch.tensor([1, 3])
    with torch.no_grad():
        expected = model(x.repeat(2, 1, 1, 1), 7, text, class_labels=labels.repeat(2)).sample
        assert_close(model(x, 7, model.keep(text), class_labels=labels).sample, expected)
        moments = model.moments(torch.tensor([7]), class_labels=labels)
        assert_close(model(x, moments[0], model.keep(text)).sample, expected)
