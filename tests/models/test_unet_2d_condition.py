"""`UNet2DConditionModel` against the oracle, over the options that image checkpoints use."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close, pair

import calotype

BASE = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": 16,
    "attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
THREE = {
    "block_out_channels": (16, 32, 64), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
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
    text, size = some(2, 5, given.pop("text", 16)), given.pop("size", 16)
    theirs, ours = pair(diffusers, "UNet2DConditionModel", {**BASE, **options})
    x = some(2, 4, size, size)
    with torch.no_grad():
        expected = theirs(x, 7, text, **given).sample
        assert_close(ours(x, 7, text, **given).sample, expected)
        told = {name: given.pop(name) for name in ("class_labels", "timestep_cond", "added_cond_kwargs") if name in given}
        moments, kept = ours.moments(torch.tensor([900, 7]), **told), ours.keep(text)
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
    ({"addition_embed_type": "image"}, "addition_embed_type is 'image', but must be None or 'text_time'"),
])
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        calotype.UNet2DConditionModel(**{**BASE, **change})


def test_conditions_are_asked_for():
    model = calotype.UNet2DConditionModel(**{**BASE, **CASES["sdxl"][0]})
    with pytest.raises(ValueError, match="'text_embeds' and 'time_ids'"):
        model(some(1, 4, 16, 16), 1, some(1, 5, 16))
