"""The text-to-image pipeline around its pictures: batches, callbacks, threads, inputs, errors."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import calotype

from .conftest import make_tiny, seeded


def run(pipe, prompt="a cat", steps=3, seed=0, **options):
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    options.setdefault("output_type", "np")
    return pipe(prompt, num_inference_steps=steps, **options).images


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler"])
def test_a_batch_gives_each_picture_what_it_is_alone(tiny, scheduler):
    tiny.scheduler = getattr(calotype, scheduler).from_config(tiny.scheduler.config)
    together = run(tiny, ["a cat", "a dog"], generator=seeded(1, 2), eta=0.5, num_images_per_prompt=1)
    for i, prompt in enumerate(["a cat", "a dog"]):
        assert np.allclose(together[i], run(tiny, prompt, generator=seeded(i + 1), eta=0.5)[0], atol=1e-5)


def test_output_types(tiny):
    (picture,) = run(tiny, output_type="pil")
    assert isinstance(picture, Image.Image)
    assert picture.size == (16, 16)
    array = run(tiny)
    assert np.array_equal(np.asarray(picture), (array[0] * 255).round().astype(np.uint8))
    tensor = run(tiny, output_type="pt")
    assert np.allclose(tensor.permute(0, 2, 3, 1).numpy(), array)
    latents = run(tiny, output_type="latent")
    assert latents.shape == (1, 4, 8, 8)
    images, flagged = tiny("a cat", num_inference_steps=2, return_dict=False)
    assert flagged is None
    assert len(images) == 1


def test_embeddings_stand_for_prompts(tiny):
    wanted, unwanted = tiny.encode_prompt("a cat", negative_prompt="dark")
    given = run(tiny, None, prompt_embeds=wanted, negative_prompt_embeds=unwanted)
    assert np.allclose(given, run(tiny, "a cat", negative_prompt="dark"), atol=1e-6)


def test_one_negative_prompt_serves_several_prompts(tiny):
    one = run(tiny, ["a cat", "a dog"], negative_prompt="dark", generator=seeded(1, 2))
    assert np.allclose(one, run(tiny, ["a cat", "a dog"], negative_prompt=["dark"] * 2, generator=seeded(1, 2)), atol=1e-6)


def test_latents_are_the_noise_to_begin_with(tiny):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(run(tiny, latents=noise, generator=None), run(tiny))
    with pytest.raises(ValueError, match=r"latents have the shape \[1, 4, 4, 4\], and this call makes \[1, 4, 8, 8\]"):
        run(tiny, latents=noise[..., :4, :4])


def test_clip_skip_changes_the_prompt(tiny):
    assert not np.allclose(run(tiny, clip_skip=1), run(tiny))
    with pytest.raises(ValueError, match="clip_skip is 9, and the text encoder has 2 layers"):
        run(tiny, clip_skip=9)


def test_a_guidance_embedding_replaces_guidance():
    """Latent consistency models take the scale as an input, and one half of the batch is enough."""
    pipe = make_tiny(time_cond_proj_dim=32)
    assert not np.allclose(run(pipe, guidance_scale=8.0), run(pipe, guidance_scale=2.0))


def test_custom_timesteps_and_sigmas(tiny):
    tiny.scheduler = calotype.EulerDiscreteScheduler.from_config(tiny.scheduler.config)
    seen = []
    run(tiny, timesteps=[900, 500, 100], callback_on_step_end=lambda pipe, i, t, held: seen.append(float(t)))
    assert seen == [900, 500, 100]
    assert run(tiny, sigmas=[14.0, 5.0, 1.0, 0.0]).shape == (1, 16, 16, 3)


# -- callbacks -----------------------------------------------------------------------------------------------------------


def test_callbacks_see_and_change_tensors(tiny):
    seen = []

    def zero_at_the_end(pipe, i, t, held):
        seen.append((i, int(t), sorted(held), pipe.num_timesteps, pipe.guidance_scale))
        return {"latents": torch.zeros_like(held["latents"])} if i == 3 else None

    latents = run(tiny, callback_on_step_end=zero_at_the_end, output_type="latent", guidance_scale=2.0,
                  callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"])
    assert [(i, t) for i, t, *_ in seen] == list(enumerate(tiny.scheduler.table(3).timesteps.tolist()))
    assert seen[0][2:] == (["latents", "prompt_embeds"], 4, 2.0)
    assert not latents.any()


def test_guidance_can_end_midway(tiny):
    """The recipe of the peer's documentation: from some step on without guidance, with half the text."""

    def half(pipe, i, t, held):
        if i == 1:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": held["prompt_embeds"].chunk(2)[-1]}
        return {}

    changed = run(tiny, callback_on_step_end=half, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert not np.allclose(changed, run(tiny))
    assert np.array_equal(run(tiny), run(tiny))  # the next generation has its own scale


def test_interruption(tiny):
    seen = []

    def stop(pipe, i, t, held):
        seen.append(held["latents"])
        pipe._interrupt = i == 1

    assert torch.equal(run(tiny, steps=8, callback_on_step_end=stop, output_type="latent"), seen[-1])
    assert len(seen) == 2
    assert not tiny.interrupt


# -- sharing --------------------------------------------------------------------------------------------------------------


def test_threads_share_a_pipeline(tiny):
    """Different step counts at once, each as if alone."""
    alone = [run(tiny, steps=steps, seed=steps) for steps in (2, 5, 9)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda steps: run(tiny, steps=steps, seed=steps), (2, 5, 9)))
    for one, other in zip(alone, together, strict=True):
        assert np.allclose(one, other, atol=1e-5)


def test_a_change_of_weights_is_seen(tiny):
    """Layouts of weights are kept from call to call, but not past a change, even one that PyTorch does not count."""
    run(tiny, steps=4)
    before = run(tiny, steps=4)
    tiny.unet.conv_in.weight.data.mul_(1.5)
    tiny.unet.down_blocks[0].resnets[0].conv1.weight.data.add_(0.1)
    fast = run(tiny, steps=4)
    tiny.fast = False
    assert np.allclose(fast, run(tiny, steps=4), atol=1e-5)
    assert not np.allclose(fast, before, atol=1e-3)


def test_the_fast_path_changes_nothing(tiny):
    for size in (16, 32, 16):
        tiny.fast = True
        fast = run(tiny, steps=4, height=size, width=size)
        tiny.fast = False
        assert np.allclose(fast, run(tiny, steps=4, height=size, width=size), atol=1e-5)


# -- inputs -----------------------------------------------------------------------------------------------------------------


def test_lost_words_are_named(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        run(tiny, "cat " * 29 + "zebra giraffe", steps=1)
    assert "giraffe" in caplog.text
    assert "this end of the prompt is lost" in caplog.text
    caplog.clear()
    run(tiny, "a cat", steps=1)
    assert not caplog.text


BAD = [
    ({"num_inference_step": 3}, TypeError, "did you mean 'num_inference_steps'"),
    ({"height": 17}, ValueError, "height is 17, but must be a multiple of 2"),
    ({"width": -8}, ValueError, "width is -8"),
    ({"height": 0}, ValueError, "height is 0"),
    ({"prompt": []}, ValueError, "prompt is an empty list"),
    ({"prompt": 3}, TypeError, "prompt is text or a list of texts"),
    ({"prompt": ["a", 3]}, TypeError, "prompt is text or a list of texts"),
    ({"prompt": None}, ValueError, "give a prompt, or prompt_embeds"),
    ({"prompt_embeds": torch.zeros(1, 32, 16)}, ValueError, "give prompt or prompt_embeds, not both"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 32, 16), "negative_prompt_embeds": torch.zeros(1, 16, 16)}, ValueError,
     "they must have one shape"),
    ({"negative_prompt": ["a", "b"]}, ValueError, "2 negative prompts for 1 prompts"),
    ({"negative_prompt": 1}, TypeError, "negative_prompt is text"),
    ({"generator": seeded(1, 2)}, ValueError, "2 generators for a batch of 1"),
    ({"output_type": "pli"}, ValueError, "did you mean 'pil'"),
    ({"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt is 0, but must be a whole number of at least 1"),
    ({"num_inference_steps": 0}, ValueError, "whole number from 1 to 1000"),
    ({"num_inference_steps": 2000}, ValueError, "whole number from 1 to 1000"),
    ({"callback_on_step_end_tensor_inputs": ["latent"]}, ValueError, "did you mean 'latents'"),
    ({"cross_attention_kwargs": {"gligen": {}}}, ValueError, "cross_attention_kwargs takes 'scale', of LoRA adapters, and got"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(tiny, change, error, message):
    with pytest.raises(error, match=message):
        tiny(**{"prompt": "a cat", "num_inference_steps": 2, **change})
