"""What callbacks are given and hand back: every advertised tensor is there, and what comes back is looked at."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import calotype

from .conftest import make_tiny
from .test_image_tasks import CAT, TASKS, ours, photo, run

MASK = Image.new("L", (16, 16), 255)
INPAINT = CAT | {"image": photo(), "mask_image": MASK}


def pipelines():
    """Each text-guided pipeline, a call of it, and what it is besides its class."""
    for name, task in TASKS.items():
        yield name, "", task.calls[0]
    yield "StableDiffusionPipeline", "", CAT
    yield "StableDiffusionImg2ImgPipeline", "", CAT | {"image": photo()}
    yield "StableDiffusionInpaintPipeline", "4 channels", INPAINT
    yield "StableDiffusionInpaintPipeline", "9 channels", INPAINT


def made(name, kind):
    if name in TASKS:
        return ours(name)
    pipe = getattr(calotype, name).from_pipe(make_tiny(in_channels=9) if kind == "9 channels" else make_tiny())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = calotype.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.mark.parametrize(("name", "kind", "call"), pipelines(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_advertised_tensor_is_there(name, kind, call):
    """Whatever the UNet and the scale. Once, an inpainting UNet of four channels had no `masked_image_latents`."""
    pipe = made(name, kind)
    for scale in (5.0, 1.0) if "Consistency" not in name else (5.0,):
        seen = {}
        pipe(**call, guidance_scale=scale, num_inference_steps=2, output_type="latent",
             callback_on_step_end=lambda own, i, t, tensors, seen=seen: seen.update(tensors),
             callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs)
        assert seen.keys() == set(pipe._callback_tensor_inputs)
        assert all(torch.is_tensor(tensor) for key, tensor in seen.items() if key != "negative_prompt_embeds")


def test_the_masked_image_is_the_oracles(diffusers, tmp_path):
    """For a UNet of four channels too; and the rest of the generation draws what it draws without being watched."""
    pipe = made("StableDiffusionInpaintPipeline", "4 channels")
    pipe.scheduler = calotype.EulerAncestralDiscreteScheduler()
    pipe.save_pretrained(tmp_path)
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path, safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    seen, images = [], []
    for each in (pipe, theirs):
        images.append(run(each, **INPAINT, callback_on_step_end=lambda own, i, t, tensors: seen.append(tensors) or {},
                          callback_on_step_end_tensor_inputs=["masked_image_latents"]))
    mine, others = seen[0]["masked_image_latents"], seen[-1]["masked_image_latents"]
    assert torch.allclose(mine, others[:1], atol=1e-5)  # theirs are there twice, for guidance
    assert abs(images[0] - images[1]).max() < 1e-4
    assert abs(images[0] - run(pipe, **INPAINT)).max() < 1e-6


@pytest.mark.parametrize(("returned", "error", "message"), [
    (torch.zeros(1), TypeError, "callback_on_step_end returned a tensor of torch.float32 and shape .1., but must return"),
    ([], TypeError, r"callback_on_step_end returned \[\], but must"),
    ({"latents": 5}, TypeError, "callback_on_step_end returned 5 as 'latents', but must return tensors"),
    ({"latents": torch.zeros(2, 4, 8, 8)}, ValueError, r"latents of shape \[2, 4, 8, 8\], but must return them as they"),
])
def test_what_a_callback_must_not_return(returned, error, message):
    with pytest.raises(error, match=message):
        make_tiny()("a cat", num_inference_steps=2, callback_on_step_end=lambda *_: returned)
