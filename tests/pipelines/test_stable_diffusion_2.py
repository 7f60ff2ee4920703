"""Stable Diffusion 2.x: OpenCLIP's text encoder, linear projections, v-prediction, a terminal SNR of zero, rescaled guidance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calotype

from .conftest import make_tiny


@pytest.fixture(scope="module")
def folder(diffusers, tmp_path_factory):
    """A checkpoint of that architecture, tiny and of random weights, as the oracle saves it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    tokenizer_folder = tmp_path_factory.mktemp("tokenizer")
    make_tiny().tokenizer.save_pretrained(tokenizer_folder)
    text = transformers.CLIPTextConfig(
        vocab_size=8192, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, hidden_act="gelu",
        max_position_embeddings=32, projection_dim=32, bos_token_id=8190, eos_token_id=8191, pad_token_id=0)
    pipe = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 16), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4),
        text_encoder=transformers.CLIPTextModel(text).eval(),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(tokenizer_folder),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, cross_attention_dim=32,
            attention_head_dim=(2, 4), use_linear_projection=True, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    path = tmp_path_factory.mktemp("stable-diffusion-2")
    pipe.save_pretrained(path)
    return path


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_same_pictures(diffusers, folder, name, rescale):
    made = []
    for library in (diffusers, calotype):
        pipe = library.StableDiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = getattr(library, name).from_config(pipe.scheduler.config)
        assert pipe.scheduler.config.prediction_type == "v_prediction"
        made.append(pipe(["a cat", "a dog"], num_inference_steps=5, guidance_rescale=rescale, output_type="np",
                         negative_prompt=["dark", "small"], generator=torch.Generator().manual_seed(1)).images)
    assert np.allclose(*made, atol=1e-4)
