"""A tiny text-to-image pipeline of random weights, for what does not depend on what the pictures show."""

from __future__ import annotations

import pytest
import torch

import calotype


def make_tiny(**unet: object) -> calotype.StableDiffusionPipeline:
    torch.manual_seed(0)
    pipe = calotype.StableDiffusionPipeline(
        vae=calotype.AutoencoderKL(
            block_out_channels=(8, 16), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2),
        text_encoder=calotype.CLIPTextModel(
            vocab_size=8192, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=32, bos_token_id=8190, eos_token_id=8191),
        tokenizer=calotype.CLIPTokenizer.from_pretrained("calotype/emoji", subfolder="tokenizer"),
        unet=calotype.UNet2DConditionModel(**{
            "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
            "cross_attention_dim": 16, "attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), **unet}),
        scheduler=calotype.PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear"),
        requires_safety_checker=False,
    )
    for model in (pipe.vae, pipe.text_encoder, pipe.unet):
        model.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def tiny() -> calotype.StableDiffusionPipeline:
    return make_tiny()


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
