"""Pictures do not depend on the fast path, whatever was made before them and has changed since."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import calotype
from calotype.pipelines import guided
from calotype.runtime import recording

from .conftest import make_tiny, seeded

SCHEDULERS = ["EulerDiscreteScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"]


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded at the second call that is alike, so that few steps are enough."""
    monkeypatch.setitem(recording._CALLS_BEFORE, "cpu", 1)


def plain(pipe: Any) -> Any:
    """A copy that knows nothing of what `pipe` has made."""
    other = copy.deepcopy(pipe)
    other.fast = False
    return other


def run(pipe: Any, prompt: Any = "a cat", **options: Any) -> np.ndarray:
    return pipe(prompt, **{"num_inference_steps": 3, "generator": seeded(0)[0], "output_type": "np", **options}).images


def changed_latents(pipe: Any, i: int, t: Any, held: dict[str, Any]) -> dict[str, Any]:
    return {"latents": held["latents"].flip(-1) * 1.1}


def changed_text(pipe: Any, i: int, t: Any, held: dict[str, Any]) -> dict[str, Any]:
    return {"prompt_embeds": held["prompt_embeds"].roll(1, 1) * 1.5} if i == 1 else {}


def no_more_guidance(pipe: Any, i: int, t: Any, held: dict[str, Any]) -> dict[str, Any]:
    if i == 1 and pipe.do_classifier_free_guidance:
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": held["prompt_embeds"].chunk(2)[-1]}
    return {}


def weights(change: str) -> Any:
    def apply(pipe: Any) -> None:
        block = pipe.unet.down_blocks[0]
        with torch.no_grad():
            if change == "counted":
                block.resnets[0].conv1.weight.mul_(1.2)
            elif change == "not counted":
                block.resnets[0].conv1.weight.data.mul_(1.2)
                block.attentions[0].transformer_blocks[0].attn2.to_k.weight.data.mul_(1.2)
                pipe.vae.decoder.conv_in.weight.data.mul_(1.1)
                pipe.text_encoder.text_model.final_layer_norm.weight.data.mul_(1.2)
            elif change == "put in":
                block.resnets[0].norm2.weight = torch.nn.Parameter(block.resnets[0].norm2.weight * 1.2)
            else:
                pipe.unet.load_state_dict({name: value * 1.02 for name, value in pipe.unet.state_dict().items()}, assign=True)

    return apply


def scheduler(name: str) -> Any:
    return lambda pipe: setattr(pipe, "scheduler", getattr(calotype, name).from_config(pipe.scheduler.config))


CHANGES = st.one_of(
    st.none(), st.sampled_from(SCHEDULERS).map(scheduler),
    st.sampled_from(["counted", "not counted", "put in", "loaded"]).map(weights),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]).map(lambda dtype: lambda pipe: pipe.to(dtype)))
OPTIONS = st.fixed_dictionaries({
    "prompt": st.sampled_from(["a cat", "a dog", ["a cat", "a dog"]]),
    "negative_prompt": st.sampled_from([None, None, "dark"]),
    "guidance_scale": st.sampled_from([7.5, 7.5, 1.0]),
    "num_inference_steps": st.sampled_from([3, 4]),
    "num_images_per_prompt": st.sampled_from([1, 1, 2]),
    "height": st.sampled_from([16, 16, 12]),
    "callback_on_step_end": st.sampled_from([None, None, changed_latents, changed_text, no_more_guidance]),
})


@settings(max_examples=10, deadline=None, derandomize=True)
@given(actions=st.lists(st.tuples(CHANGES, OPTIONS), min_size=3, max_size=4))
def test_whatever_came_before(actions):
    """Every picture is that of a copy without the fast path."""
    pipe = make_tiny()
    for change, options in actions:
        if change is not None:
            change(pipe)
        if options["callback_on_step_end"] is not None:
            options = {**options, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
        made, expected = run(pipe, **options), run(plain(pipe), **options)
        # bfloat16 has 8 bits, and a sum in another order ends in another of them
        assert np.abs(made - expected).max() <= (0.2 if pipe.dtype is torch.bfloat16 else 2e-4)
        assert np.abs(made - expected).mean() <= (0.03 if pipe.dtype is torch.bfloat16 else 2e-5)


def test_streams_take_turns_between_recorded_steps(tiny):
    """The recording is told the other's text and back, in every step."""
    other = plain(tiny)
    alone = [run(other, prompt, num_inference_steps=6, generator=seeded(i)[0]) for i, prompt in enumerate(["a cat", "two dogs"])]
    streams = [tiny.stream(prompt, num_inference_steps=6, generator=seeded(i)[0], output_type="np")
               for i, prompt in enumerate(["a cat", "two dogs"])]
    for last in zip(*streams, strict=True):  # noqa: B007
        pass
    assert len(vars(tiny.unet)["_recordings"].by_inputs) == 1
    for step, expected in zip(last, alone, strict=True):
        assert np.allclose(step.output.images, expected, atol=1e-4)
    assert not np.allclose(*alone, atol=1e-2)


def test_after_a_generation_that_died(tiny):
    def die(pipe, i, t, held):
        if i == 2:
            raise InterruptedError

    run(tiny)
    with pytest.raises(InterruptedError):
        run(tiny, "two dogs", callback_on_step_end=die, num_inference_steps=5)
    for prompt in ("a cat", "two dogs"):
        assert np.allclose(run(tiny, prompt), run(plain(tiny), prompt), atol=1e-4)


def test_a_changed_text_in_the_middle_is_heard(tiny):
    options = {"callback_on_step_end": changed_text, "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
               "num_inference_steps": 6}
    run(tiny, num_inference_steps=6)
    made = run(tiny, **options)
    assert np.allclose(made, run(plain(tiny), **options), atol=1e-4)
    assert not np.allclose(made, run(tiny, num_inference_steps=6), atol=1e-3)


def test_unconditional_pictures():
    unet = calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()
    pipe = calotype.DDPMPipeline(unet, calotype.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    for batch, steps in ((2, 4), (1, 3), (2, 5)):
        made, expected = (each(batch, num_inference_steps=steps, generator=seeded(steps)[0], output_type="np").images
                          for each in (pipe, plain(pipe)))
        assert np.allclose(made, expected, atol=1e-4)
        unet.conv_in.weight.data.mul_(1.1)
    assert len(vars(unet)["_recordings"].by_inputs) == 2


# -- what both halves of guidance share is done once -------------------------------------------------------------------------


def given_to_the_network(make: Any) -> set[int]:
    """How many samples the network is given in a call."""
    sizes: set[int] = set()

    def call(unet: Any, sample: Any, *conditions: Any) -> Any:
        sizes.add(len(sample))
        return recording.call(unet, sample, *conditions)

    with mock.patch.object(guided, "call", call):
        make()
    return sizes


@pytest.mark.parametrize("prompts", [1, 2])
def test_the_first_layers_see_each_sample_once(tiny, prompts):
    for scale in (7.5, 1.0):
        assert given_to_the_network(lambda scale=scale: run(tiny, ["a cat"] * prompts, guidance_scale=scale)) == {prompts}
    assert given_to_the_network(lambda: run(tiny, num_images_per_prompt=3)) == {3}


@pytest.mark.parametrize("fast", [False, True])
def test_who_hooks_in_sees_both_halves(tiny, fast):
    """As in any other library: somebody's hook may divide what it sees into halves."""
    tiny.fast = fast
    for layer in (tiny.unet.conv_in, tiny.unet.mid_block):
        sizes: set[int] = set()
        handle = layer.register_forward_pre_hook(lambda _, given, sizes=sizes: sizes.add(len(given[0])))
        run(tiny, ["a cat"] * 2)
        handle.remove()
        assert sizes == {4}


def test_a_guidance_embedding_is_of_each_sample():
    pipe = make_tiny(time_cond_proj_dim=32)
    assert given_to_the_network(lambda: run(pipe, ["a cat", "a dog"])) == {2}
    assert np.allclose(run(pipe, guidance_scale=8.0), run(plain(pipe), guidance_scale=8.0), atol=1e-4)


def test_pictures_that_tell_the_copies_apart_are_seen_by_each():
    """InstructPix2Pix: given text and picture, the picture, and neither; so the first layer has to see all three."""
    tiny = make_tiny(in_channels=8)
    pipe = calotype.StableDiffusionInstructPix2PixPipeline(**tiny.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    assert given_to_the_network(lambda: run(pipe, image=image)) == {3}
    assert given_to_the_network(lambda: run(pipe, image=[image] * 2)) == {6}
    assert given_to_the_network(lambda: run(pipe, image=image, guidance_scale=1.0)) == {1}
    assert np.allclose(run(pipe, image=image), run(plain(pipe), image=image), atol=1e-4)


def test_inpainting_sees_mask_and_picture_once():
    """They are the same for both halves."""
    tiny = make_tiny(in_channels=9)
    pipe = calotype.StableDiffusionInpaintPipeline(**tiny.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    mask = Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
    options = {"image": image, "mask_image": mask, "height": 16, "width": 16}
    assert given_to_the_network(lambda: run(pipe, **options)) == {1}
    assert np.allclose(run(pipe, **options), run(plain(pipe), **options), atol=1e-4)


def test_the_upscaler_is_told_its_noise_level_by_copy():
    tiny = make_tiny(in_channels=7, num_class_embeds=1000)
    pipe = calotype.StableDiffusionUpscalePipeline(
        tiny.vae, tiny.text_encoder, tiny.tokenizer, tiny.unet, calotype.DDPMScheduler(), tiny.scheduler)
    pipe.set_progress_bar_config(disable=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    assert given_to_the_network(lambda: run(pipe, image=image)) == {2}
    assert np.allclose(run(pipe, image=image), run(plain(pipe), image=image), atol=1e-4)
