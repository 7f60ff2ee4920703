"""Pictures and checkpoints that commands are tried on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

import calotype

from .calling import call


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "apple.png"
    call("generate", "a red apple", "-o", path, "--steps", 2, "--seed", 7)
    return path


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, which is where we are."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def apple(made, here) -> Path:
    """A picture of two steps."""
    return Path(shutil.copy(made, here / "apple.png"))


@pytest.fixture
def photo(here) -> Path:
    """A picture of 44 x 36 pixels, which are no multiples of 8; beside it `mask.png`, white in its middle."""
    picture = Image.effect_noise((44, 36), 90).convert("RGB")
    picture.save(here / "photo.png")
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).rectangle((12, 10, 27, 21), fill=255)
    mask.save(here / "mask.png")
    return here / "photo.png"


def save_tiny(folder: Path, channels: int = 4) -> Path:
    """A text-to-image checkpoint of random weights, with a UNet of so many input channels."""
    torch.manual_seed(0)
    encoder = calotype.CLIPTextModel(
        vocab_size=8192, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=8190, eos_token_id=8191)
    unet = calotype.UNet2DConditionModel(
        in_channels=channels, sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    vae = calotype.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2)
    calotype.StableDiffusionPipeline(
        vae, encoder, calotype.CLIPTokenizer.from_pretrained("calotype/emoji", subfolder="tokenizer"), unet,
        calotype.EulerDiscreteScheduler(), requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A checkpoint for pictures of 32 x 32 pixels that shows nothing, but soon."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="session")
def unconditional(tmp_path_factory) -> Path:
    """A `DDPMPipeline` for pictures of 8 x 8 pixels."""
    torch.manual_seed(0)
    unet = calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    folder = tmp_path_factory.mktemp("unconditional") / "ddpm"
    calotype.DDPMPipeline(unet, calotype.DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def depth_model(tmp_path_factory) -> Path:
    """A checkpoint whose UNet sees the depth too; without an estimator of it."""
    folder = tmp_path_factory.mktemp("depth")
    parts = calotype.DiffusionPipeline.from_pretrained(save_tiny(folder / "text", channels=5)).components
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    calotype.StableDiffusionDepth2ImgPipeline(**{name: parts[name] for name in names}).save_pretrained(folder / "depth")
    return folder / "depth"
