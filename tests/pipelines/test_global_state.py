"""Nothing but the drawing that was asked for draws from the global generator: looking on changes no image."""

from __future__ import annotations

import pytest
import torch

import calotype

from .conftest import make_tiny, seeded
from .test_callback_tensors import made, pipelines


def consistency_decoder():
    torch.manual_seed(0)
    return calotype.ConsistencyDecoderVAE(
        encoder_block_out_channels=(8, 16), encoder_down_block_types=("DownEncoderBlock2D",) * 2, encoder_norm_num_groups=4,
        encoder_layers_per_block=1, decoder_block_out_channels=(8, 16), decoder_norm_num_groups=4, decoder_layers_per_block=1,
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2, decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2).eval()


def watched(pipe, call, **options):
    """The latents of a stream whose every step is looked at, and the global generator's state after it."""
    torch.manual_seed(3)
    for step in pipe.stream(**call, num_inference_steps=2, output_type="latent", **options):
        step.preview()
    return step.output.images, torch.random.get_rng_state()


def unwatched(pipe, call, **options):
    torch.manual_seed(3)
    return pipe(**call, num_inference_steps=2, output_type="latent", **options).images, torch.random.get_rng_state()


@pytest.mark.parametrize(("name", "kind", "call"), pipelines(), ids=lambda value: value if isinstance(value, str) else "")
def test_previews_draw_nothing(name, kind, call):
    """Nor do prompts, masks, first calls and recordings, where each image has a generator of its own."""
    pipe = made(name, kind)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    for way in (unwatched, watched):
        assert torch.equal(way(pipe, call, generator=seeded(0))[1], before)
    alone, together = (way(pipe, call) for way in (unwatched, watched))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_a_decoder_that_draws_draws_its_own_previews():
    """Once, the map of a `ConsistencyDecoderVAE` was fitted to images that were drawn from the global generator."""
    pipe = make_tiny()
    pipe.vae = consistency_decoder()
    alone, together = (way(pipe, {"prompt": "a cat"}) for way in (unwatched, watched))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_loading_draws_nothing(tmp_path):
    make_tiny().save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    calotype.DiffusionPipeline.from_pretrained(tmp_path, requires_safety_checker=False)
    assert torch.equal(torch.random.get_rng_state(), before)
