"""What a call is given: numbers, generators and tensors of a wrong kind, size or value are errors that name them, at once."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.arguments import least_strength
from calotype.pipelines.call_arguments import CHECKED_BY_CALLS, CHECKS
from calotype.registry import PIPELINES, find

from .conftest import make_tiny, seeded
from .test_image_tasks import CAT, EMBEDS, IMAGE, SMALL, TASKS, depth, ours, photo

CALLED = [name for name in PIPELINES if "__call__" in dir(find(name)) and not name.startswith("AutoPipeline")]
PE = torch.zeros(1, 32, 16)


@pytest.fixture(scope="module")
def tiny():
    pipe = make_tiny()
    pipe.scheduler = calotype.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


@pytest.fixture
def untouched(monkeypatch):
    """No network may be asked: what is wrong is known before."""
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(calotype.UNet2DConditionModel, "forward", refuse)
    monkeypatch.setattr(calotype.UNet2DModel, "forward", refuse)


@pytest.mark.parametrize("name", CALLED)
def test_every_argument_is_checked(name):
    """One table for all pipelines; an argument that is new is in it, or is said to be checked by the call."""
    taken = set(inspect.signature(find(name).__call__).parameters) - {"self"}
    assert taken <= CHECKS.keys() | CHECKED_BY_CALLS


# -- numbers, as the oracle takes them or not at all -----------------------------------------------------------------------------

GOOD = [
    {"height": 16.0, "width": np.float32(16)}, {"height": np.int64(16)}, {"height": torch.tensor(16)},
    {"guidance_scale": np.float32(7)}, {"guidance_scale": torch.tensor([7.0])}, {"guidance_scale": 7},
    {"guidance_scale": False}, {"num_images_per_prompt": np.int64(2)}, {"num_images_per_prompt": torch.tensor(2)},
    {"num_inference_steps": np.int32(2)}, {"eta": np.float64(0.5)}, {"eta": torch.tensor(0.5)}, {"eta": 1},
    {"guidance_rescale": torch.tensor(0.5)}, {"clip_skip": np.int64(1)}, {"generator": tuple(seeded(0))},
    {"return_dict": None}, {"callback_on_step_end_tensor_inputs": None}, {"latents": torch.zeros(1, 4, 8, 8).double()},
    {"prompt": None, "prompt_embeds": PE.half()}, {"prompt": None, "prompt_embeds": PE[:, :20]},
]
BAD = [(name, value) for name, values in {
    "height": ["16", 0, -16, 16.5, True, float("nan"), torch.tensor([16, 16]), [16]],
    "width": ["16", 17], "generator": [5, [5], [None], np.random.default_rng(0), "0"],
    "guidance_scale": ["7", None, float("nan"), float("inf"), [7.0], torch.tensor([7.0, 3.0]), 7j],
    "num_images_per_prompt": [None, 1.5, 1.0, 0, "2", True], "num_inference_steps": [2.0, "2", True, 0, None, -1],
    "eta": ["0", None, -1.0, float("nan")], "guidance_rescale": ["0.5", None], "clip_skip": [1.5, "1", -1, True],
    "callback_on_step_end": [5], "callback_on_step_end_tensor_inputs": ["latents", 5], "cross_attention_kwargs": [5],
    "latents": [np.zeros((1, 4, 8, 8), np.float32), torch.zeros(1, 4, 8, 8).tolist(), torch.zeros(4, 8, 8),
                torch.zeros(1, 4, 8, 8, dtype=torch.int64), torch.zeros(1, 4, 8, 8, dtype=torch.complex64),
                torch.full((1, 4, 8, 8), float("nan")), torch.zeros(2, 4, 8, 8), torch.zeros(1, 4, 8, 9)],
}.items() for value in values]


@pytest.mark.parametrize("change", GOOD, ids=str)
def test_numbers_of_any_make(tiny, change):
    tiny(**{"prompt": "a cat", "num_inference_steps": 1, "output_type": "latent", **change})


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: str(value)[:30])
def test_wrong_kinds(tiny, untouched, name, value):
    with pytest.raises(ValueError, match=name):
        tiny(**{"prompt": "a cat", "num_inference_steps": 1, name: value})


@pytest.mark.parametrize("value", ["900", 900, ["900", "5"], [None], [True, False], {900, 5}, [[900], [5]]], ids=str)
def test_lists_of_numbers(tiny, untouched, value):
    for name, scheduler in (("timesteps", "EulerDiscreteScheduler"), ("sigmas", "EulerDiscreteScheduler")):
        pipe = calotype.StableDiffusionPipeline.from_pipe(
            tiny, scheduler=getattr(calotype, scheduler)(), requires_safety_checker=False)
        with pytest.raises(ValueError, match=f"{name} must be a list of numbers, and this is"):
            pipe("a cat", **{name: value})
        with pytest.raises(ValueError, match=f"{name} must be a list of numbers"):
            pipe.scheduler.set_timesteps(**{name: value})


@pytest.mark.parametrize(("name", "call", "wrong"), [
    ("DDPMPipeline", {}, {"batch_size": 1.5}), ("DDPMPipeline", {}, {"batch_size": "2"}), ("DDPMPipeline", {}, {"generator": 5}),
    ("DDPMPipeline", {}, {"num_inference_steps": 2.0}), ("DDIMPipeline", {}, {"eta": "1"}),
    ("ConsistencyModelPipeline", {}, {"latents": np.zeros((1, 3, 8, 8), np.float32)}),
    ("ConsistencyModelPipeline", {}, {"timesteps": "22"}),
    ("ConsistencyModelPipeline", {}, {"latents": torch.zeros(1, 3, 8, 8), "generator": seeded(1, 2)}),
    ("RePaintPipeline", {"image": torch.zeros(1, 3, 8, 8), "mask_image": torch.ones(1, 1, 8, 8)}, {"jump_length": 1.5}),
])
def test_unconditional_pipelines(untouched, name, call, wrong):
    unet = calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    scheduler = calotype.CMStochasticIterativeScheduler() if "Consistency" in name else calotype.DDPMScheduler()
    with pytest.raises(ValueError, match=[*wrong][-1]):
        getattr(calotype, name)(unet, scheduler)(**{"num_inference_steps": 1, **call, **wrong})


# -- tensors --------------------------------------------------------------------------------------------------------------------

UNCLIP, DEPTH, UP = "StableUnCLIPImg2ImgPipeline", "StableDiffusionDepth2ImgPipeline", "StableDiffusionLatentUpscalePipeline"
NAN = float("nan")
POOLED = {"prompt": None, "prompt_embeds": PE, "negative_prompt_embeds": PE, "pooled_prompt_embeds": torch.zeros(1, 16),
          "negative_pooled_prompt_embeds": torch.zeros(1, 16)}
TENSORS = [(name, {**own, what: wrong}, what) for name, own, what, right in (
    *((name, {"prompt": None, "prompt_embeds": PE, "negative_prompt_embeds": PE}, what, PE)
      for name in TASKS if name not in (UP, "StableDiffusionImageVariationPipeline")
      for what in ("prompt_embeds", "negative_prompt_embeds") if "Consistency" not in name or what == "prompt_embeds"),
    *((UP, POOLED, what, POOLED[what]) for what in POOLED if what != "prompt"),
    (UNCLIP, {"image": None, "prompt": "a cat"}, "image_embeds", EMBEDS[:1]),
    (DEPTH, CAT, "depth_map", depth(1)),
) for wrong in (right[0], right[..., :0], torch.full_like(right, NAN), right.to(torch.complex64), right.numpy().tobytes(),
                *(() if what == "depth_map" else (torch.cat([right, right], -1), right.long())))]


@pytest.mark.parametrize(("name", "call", "what"), TENSORS, ids=lambda value: value if isinstance(value, str) else "")
def test_tensors(untouched, name, call, what):
    """Without a batch axis, empty, not finite, of other numbers, no tensor, of another width."""
    call = {key: value for key, value in {**TASKS[name].calls[0], **call}.items() if "Consistency" not in name
            or key != "negative_prompt_embeds"}
    with pytest.raises(ValueError, match=what):
        ours(name)(**call, num_inference_steps=1)


def test_embeddings_of_another_encoder(tiny):
    """`encode_prompt` checks them too, and says what there must be."""
    with pytest.raises(ValueError, match=r"prompt_embeds is a tensor of torch.float32 and shape \[1, 32, 24\], but must be a "
                                         r"tensor of floating-point numbers of shape \[batch, tokens, 16\]"):
        tiny.encode_prompt(None, prompt_embeds=torch.zeros(1, 32, 24))


def test_masked_image_latents_that_are_wrong(tiny):
    pipe = calotype.StableDiffusionInpaintPipeline.from_pipe(make_tiny(in_channels=9))
    call = {"prompt": "a cat", "image": photo(), "mask_image": Image.new("L", (16, 16), 255), "num_inference_steps": 1}
    for wrong in (SMALL[:1, :, :2], torch.full((1, 4, 8, 8), NAN), SMALL[0], SMALL[:1].numpy(), SMALL):
        with pytest.raises(ValueError, match="masked_image_latents"):
            pipe(**call, masked_image_latents=wrong)


# -- generators -----------------------------------------------------------------------------------------------------------------


def test_generators_are_counted_before_anything_is_drawn(untouched):
    """Also where latents are given, and the first to draw would be a step."""
    pipe = make_tiny()
    for call in ({}, {"latents": SMALL[:1]}):
        with pytest.raises(ValueError, match="2 generators for a batch of 1"):
            pipe("a cat", generator=seeded(1, 2), **call)


def test_a_scheduler_refuses_what_is_no_generator():
    scheduler = calotype.DDPMScheduler()
    with pytest.raises(ValueError, match="generator is 5, but must be a torch.Generator"):
        scheduler.step(SMALL, 500, SMALL, generator=5)


# -- strength: advice that works -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", ["0.5", None, NAN, 0, 1.1, True - 1, torch.tensor([0.5, 0.5])], ids=str)
@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline", DEPTH])
def test_wrong_strengths(untouched, name, strength):
    pipe = getattr(calotype, name).from_pipe(make_tiny()) if name != DEPTH else ours(name)
    with pytest.raises(ValueError, match="strength"):
        pipe("a cat", image=photo(), strength=strength)


def test_the_least_strength_leaves_a_step():
    """Once, 0.333333 was recommended, which leaves none of 3 steps."""
    for count in range(1, 1001):
        least = float(f"{least_strength(count):g}")
        assert int(count * least) >= 1
        assert least <= max(1.2 / count, 0.001)


@pytest.mark.parametrize("steps", [3, 6, 7, 9])
def test_the_recommended_strength_works(tiny, steps):
    pipe = calotype.StableDiffusionImg2ImgPipeline.from_pipe(tiny)
    with pytest.raises(ValueError, match=f"strength 0.05 leaves none of {steps} steps") as caught:
        pipe("a cat", image=photo(), strength=0.05, num_inference_steps=steps)
    advised = float(str(caught.value).split("at least ")[1].split()[0])
    pipe("a cat", image=photo(), strength=advised, num_inference_steps=steps, output_type="latent")


def test_the_recommended_strength_of_latent_consistency_works():
    pipe = ours("LatentConsistencyModelImg2ImgPipeline")
    with pytest.raises(ValueError, match="strength leaves none of the 30 steps") as caught:
        pipe(**CAT, **IMAGE, strength=0.01, num_inference_steps=1, original_inference_steps=30)
    advised = float(str(caught.value).split("at least ")[1].split()[0])
    pipe(**CAT, **IMAGE, strength=advised, num_inference_steps=1, original_inference_steps=30, output_type="latent")
    with pytest.raises(ValueError, match="original_inference_steps is 1001, but must be a whole number from 1 to 1000"):
        pipe(**CAT, **IMAGE, original_inference_steps=1001)


def test_the_recommended_schedulers_of_latent_consistency_work(tiny):
    pipe = calotype.LatentConsistencyModelPipeline.from_pipe(make_tiny(time_cond_proj_dim=32))
    for name in ("LCMScheduler", "TCDScheduler"):
        pipe.scheduler = getattr(calotype, name)()
        assert torch.isfinite(pipe("a cat", num_inference_steps=2, output_type="latent").images).all()
