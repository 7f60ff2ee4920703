"""`UNet2DModel` against the oracle, over the options that checkpoints use."""

from __future__ import annotations

import pytest
import torch
from compare import assert_close, pair

import calotype

BASE = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
SKIP = {
    "down_block_types": ("AttnSkipDownBlock2D", "SkipDownBlock2D"), "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D"),
    "time_embedding_type": "fourier", "norm_eps": 1e-6, "mid_block_scale_factor": 1.41421,
}
LABELS = torch.tensor([1, 2])

CASES = {
    "ddpm": ({}, None),
    "one head": ({"attention_head_dim": None}, None),
    "resnets resize": ({"resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet"}, None),
    "adm": ({"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), "num_class_embeds": 10,
             "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D")}, LABELS),
    "ncsn++": (SKIP, None),
    "ncsn++ wide": ({**SKIP, "block_out_channels": (128, 128)}, None),
    "ncsn++ attention last": ({**SKIP, "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
                               "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D")}, None),
    "learned time": ({"time_embedding_type": "learned", "num_train_timesteps": 50, "attn_norm_num_groups": 4}, None),
    "classes as times": ({"class_embed_type": "timestep"}, LABELS),
    "class embeddings": ({"class_embed_type": "identity"}, torch.randn(2, 128)),
    "other details": ({"freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "center_input_sample": True,
                       "mid_block_scale_factor": 2.0, "act_fn": "mish", "norm_eps": 1e-6, "add_attention": False}, None),
    "no middle": ({"mid_block_type": None, "time_embedding_dim": 48, "layers_per_block": 3}, None),
    "relu": ({"act_fn": "relu", "dropout": 0.1}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_same_numbers(diffusers, case):
    options, labels = CASES[case]
    theirs, ours = pair(diffusers, "UNet2DModel", {**BASE, **options})
    x, times = torch.randn(2, 3, 16, 16), torch.tensor([7, 3])
    with torch.no_grad():
        expected = theirs(x, times, class_labels=labels).sample
        assert_close(ours(x, times, class_labels=labels).sample, expected)
        (unpacked,) = ours(x, times, class_labels=labels, return_dict=False)
        assert_close(unpacked, expected)


@pytest.mark.parametrize("case", ["ddpm", "learned time", "ncsn++"])
def test_moments_change_nothing(case):
    """Times embedded together, before the loop, are those embedded one by one."""
    torch.manual_seed(0)
    model = calotype.UNet2DModel(**{**BASE, **CASES[case][0]}).eval()
    x, times = torch.randn(2, 3, 16, 16), torch.tensor([40, 20, 1])
    with torch.no_grad():
        for t, moment in zip(times, model.moments(times), strict=True):
            assert_close(model(x, moment).sample, model(x, t).sample)


@pytest.mark.parametrize(("change", "message"), [
    ({"down_block_types": ("DownBlok2D", "AttnDownBlock2D")}, "did you mean 'DownBlock2D'"),
    ({"up_block_types": ("UpBlock2D",)}, "up_block_types has 1 entries"),
    ({"time_embedding_type": "cosine"}, "time_embedding_type is 'cosine', but must be 'positional'"),
    ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "must be 'UNetMidBlock2D' or None"),
    ({"act_fn": "sulu"}, "did you mean 'silu'"),
])
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        calotype.UNet2DModel(**{**BASE, **change})


def test_class_labels_are_asked_for():
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match="give class_labels"):
        calotype.UNet2DModel(**BASE, num_class_embeds=3)(x, 1)
    with pytest.raises(ValueError, match="leave class_labels out"):
        calotype.UNet2DModel(**BASE)(x, 1, class_labels=LABELS)


# -- NCSN++, whose norms have as many groups as suits their channels ------------------------------

NCSN = {
    "sample_size": 16, "time_embedding_type": "fourier", "norm_num_groups": None, "norm_eps": 1e-6, "layers_per_block": 1,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"), "block_out_channels": (64, 32, 64),
    "mid_block_scale_factor": 2**0.5, "attention_head_dim": None,
}


@pytest.mark.parametrize("change", [
    {}, {"attn_norm_num_groups": 4}, {"resnet_time_scale_shift": "scale_shift"}, {"mid_block_type": None},
    {"add_attention": False}, {"norm_num_groups": 16}, {"attention_head_dim": 8},
    {"down_block_types": ("SkipDownBlock2D",) * 3, "up_block_types": ("SkipUpBlock2D",) * 3, "block_out_channels": (20, 24, 36)},
], ids=str)
def test_groups_that_the_config_leaves_open(diffusers, change):
    """`norm_num_groups: null`, as of google/ncsnpp-ffhq-256. Once, a `TypeError`."""
    theirs, ours = pair(diffusers, "UNet2DModel", {**NCSN, **change})
    groups = [{name: module.num_groups for name, module in model.named_modules() if isinstance(module, torch.nn.GroupNorm)}
              for model in (ours, theirs)]
    assert groups[0] == groups[1]
    x, levels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 5.0])
    with torch.no_grad():
        assert_close(ours(x, levels).sample, theirs(x, levels).sample)


def test_other_blocks_need_a_number_of_groups():
    """The oracle fails in arithmetic with `None`."""
    with pytest.raises(ValueError, match="norm_num_groups is None, which is only for models wholly of 'SkipDownBlock2D'.*: "
                                         "beside 'DownBlock2D', it must be a number of groups"):
        calotype.UNet2DModel(**{**NCSN, "down_block_types": ("DownBlock2D", "SkipDownBlock2D", "SkipDownBlock2D")})
