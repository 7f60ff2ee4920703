"""`DDPMPipeline` and `DDIMPipeline` against the oracle, on tiny random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calotype

from .conftest import seeded

UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4, "sample_size": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as the oracle writes it; its scheduler at the root of another, as in `google/ddpm-cat-256`."""
    torch.manual_seed(0)
    pipe = calotype.DDPMPipeline(calotype.UNet2DModel(**UNET), calotype.DDPMScheduler())
    pipe.save_pretrained(tmp_path)
    return tmp_path


def draw(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    return pipe(**{"batch_size": 2, "num_inference_steps": 6, "generator": seeded(0)[0], "output_type": "np", **options}).images


@pytest.mark.parametrize(("name", "options"), [
    ("DDPMPipeline", {}), ("DDPMPipeline", {"generator": seeded(1, 2)}), ("DDPMPipeline", {"num_inference_steps": 40}),
    ("DDIMPipeline", {}), ("DDIMPipeline", {"eta": 1.0}), ("DDIMPipeline", {"eta": 0.5, "use_clipped_model_output": True}),
])
def test_same_pictures(diffusers, folder, name, options):
    def fresh():
        return {**options, "generator": seeded(1, 2)} if "generator" in options else options

    theirs = draw(getattr(diffusers, name).from_pretrained(folder), **fresh())
    ours = draw(getattr(calotype, name).from_pretrained(folder), **fresh())
    assert np.allclose(ours, theirs, atol=1e-4)


def test_learned_variance(diffusers):
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**UNET, out_channels=6).eval()
    ours = calotype.UNet2DModel(**UNET, out_channels=6).eval()
    ours.load_state_dict(theirs.state_dict())
    options = {"variance_type": "learned_range", "beta_schedule": "squaredcos_cap_v2"}
    expected = draw(diffusers.DDPMPipeline(theirs, diffusers.DDPMScheduler(**options)))
    assert np.allclose(draw(calotype.DDPMPipeline(ours, calotype.DDPMScheduler(**options))), expected, atol=1e-4)


def test_the_loop_written_out(folder):
    """A model, a scheduler and a loop of one's own give the pipeline's picture."""
    pipe = calotype.DDPMPipeline.from_pretrained(folder)
    generator = seeded(0)[0]
    x = torch.randn(1, 3, 8, 8, generator=generator)
    pipe.scheduler.set_timesteps(6)
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x, generator=generator).prev_sample
    picture = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.allclose(draw(pipe, batch_size=1), picture, atol=1e-5)


def test_any_scheduler_serves(folder):
    for name in ("EulerDiscreteScheduler", "PNDMScheduler", "DDIMScheduler"):
        pipe = calotype.DDPMPipeline.from_pretrained(folder)
        pipe.scheduler = getattr(calotype, name).from_config(pipe.scheduler.config)
        assert draw(pipe, output_type="pil")[0].size == (8, 8)


def test_a_scheduler_without_a_pipeline(folder):
    """`scheduler_config.json` at the root, by `from_config` as in the old quicktour, and by `from_pretrained`."""
    root = folder / "scheduler"
    for load in (calotype.DDPMScheduler.from_config, calotype.DDPMScheduler.from_pretrained):
        scheduler = load(root, clip_sample=False)
        assert scheduler.config.clip_sample is False
    assert calotype.UNet2DModel.from_pretrained(folder / "unet").config.sample_size == 8
    with pytest.raises(TypeError, match="did you mean 'clip_sample'"):
        calotype.DDPMScheduler.from_pretrained(root, clip_sampel=False)


@pytest.mark.parametrize(("change", "message"), [
    ({"batch_size": 0}, "batch_size is 0"), ({"output_type": "pill"}, "did you mean 'pil'"),
    ({"num_inference_steps": 1001}, "whole number from 1 to 1000"), ({"generator": seeded(1)}, "1 generators for a batch of 2"),
])
def test_bad_input(folder, change, message):
    with pytest.raises(ValueError, match=message):
        draw(calotype.DDPMPipeline.from_pretrained(folder), **change)
