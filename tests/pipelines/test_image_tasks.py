"""Tasks that make pictures of pictures, and latent consistency models: the oracle's pictures, batches, files, errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import calotype

from .conftest import make_tiny, seeded

LATENT_UPSCALER = {
    "in_channels": 8, "out_channels": 5, "block_out_channels": (32, 32, 64, 64), "mid_block_type": None, "act_fn": "gelu",
    "down_block_types": ("KDownBlock2D", *("KCrossAttnDownBlock2D",) * 3), "norm_num_groups": None, "attention_head_dim": 16,
    "up_block_types": (*("KCrossAttnUpBlock2D",) * 3, "KUpBlock2D"), "resnet_time_scale_shift": "scale_shift",
    "time_embedding_type": "fourier", "timestep_post_act": "gelu", "time_cond_proj_dim": 144, "conv_in_kernel": 1,
    "conv_out_kernel": 1,
}


def photo(seed=0, size=16):
    coarse = np.random.default_rng(seed).random((size // 4, size // 4, 3)) * 255
    return Image.fromarray(coarse.astype(np.uint8)).resize((size, size))


def depth(*seeds):
    return torch.cat([torch.rand(1, 16, 12, generator=torch.Generator().manual_seed(seed)) * 5 + 1 for seed in seeds])


def scheduler(name="DDIMScheduler", **options):
    return getattr(calotype, name)(beta_schedule="scaled_linear", **options)


def clip_vision():
    torch.manual_seed(4)
    encoder = calotype.CLIPVisionModelWithProjection(
        hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=2, num_attention_heads=2, image_size=32,
        patch_size=8)
    return {"image_encoder": encoder.eval(), "feature_extractor": calotype.CLIPImageProcessor(size=32, crop_size=32)}


def normalizer():
    made = calotype.StableUnCLIPImageNormalizer(16)
    made.mean.data, made.std.data = torch.randn(1, 16), torch.rand(1, 16) + 0.5
    return made.eval()


@dataclass
class Task:
    """A class, what is special about its components, and calls of it; `batch` is two pictures, and `alone` each of them."""

    name: str
    calls: list[dict[str, Any]]
    batch: dict[str, Any]
    alone: list[dict[str, Any]]
    unet: dict[str, Any] = field(default_factory=dict)
    parts: Callable[[], dict[str, Any]] = dict
    schedulers: tuple[str, ...] = ("DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    held: tuple[str, ...] = ()


CAT, BOTH = {"prompt": "a cat"}, {"prompt": ["a cat", "a dog"]}
IMAGE, IMAGES = {"image": photo()}, {"image": [photo(), photo(1)]}
PAIR = [{"prompt": "a cat", "image": photo()}, {"prompt": "a dog", "image": photo(1)}]
EMBEDS = torch.rand(2, 16, generator=torch.Generator().manual_seed(6))
SMALL = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
TASKS = {task.name: task for task in (
    Task("LatentConsistencyModelPipeline", [
        CAT, {**CAT, "guidance_scale": 2.0}, {**CAT, "original_inference_steps": 20, "num_images_per_prompt": 2},
        {**BOTH, "timesteps": [999, 500, 100]}, {**CAT, "height": 24, "clip_skip": None}],
        BOTH, [{"prompt": "a cat"}, {"prompt": "a dog"}],
        unet={"time_cond_proj_dim": 32}, schedulers=("LCMScheduler",), held=("w_embedding",)),
    Task("LatentConsistencyModelImg2ImgPipeline", [
        CAT | IMAGE, {**CAT, **IMAGE, "strength": 0.3}, {**CAT, **IMAGE, "original_inference_steps": 20, "strength": 1.0},
        {**CAT, **IMAGE, "timesteps": [999, 700, 500, 100], "strength": 0.5}, {**CAT, **IMAGE, "latents": SMALL[:1]},
        BOTH | IMAGES], BOTH | IMAGES, PAIR,
        unet={"time_cond_proj_dim": 32}, schedulers=("LCMScheduler",), held=("w_embedding",)),
    Task("StableDiffusionDepth2ImgPipeline", [
        {**CAT, **IMAGE, "depth_map": depth(1)}, {**CAT, **IMAGE, "depth_map": depth(1), "strength": 0.5, "guidance_scale": 1.0},
        {**CAT, **IMAGE, "depth_map": depth(1), "negative_prompt": "fog"}], {**BOTH, **IMAGES, "depth_map": depth(1, 2)},
        [{**one, "depth_map": depth(i + 1)} for i, one in enumerate(PAIR)],
        unet={"in_channels": 5}, held=("depth_mask",),
        parts=lambda: {"depth_estimator": None, "feature_extractor": None}),
    Task("StableDiffusionInstructPix2PixPipeline", [
        CAT | IMAGE, {**CAT, **IMAGE, "guidance_scale": 1.0}, {**CAT, **IMAGE, "image_guidance_scale": 0.5},
        {**CAT, **IMAGE, "image_guidance_scale": 2.5, "num_images_per_prompt": 2, "negative_prompt": "fog"},
        {**CAT, "image": SMALL[:1]}, BOTH | IMAGES], BOTH | IMAGES, PAIR,
        unet={"in_channels": 8}, held=("image_latents",)),
    Task("StableDiffusionImageVariationPipeline", [
        IMAGE, {**IMAGE, "guidance_scale": 1.0}, {**IMAGE, "num_images_per_prompt": 2, "height": 24, "width": 32}, IMAGES,
        {"image": torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))}],
        IMAGES, [{"image": photo()}, {"image": photo(1)}], parts=clip_vision),
    Task("StableDiffusionUpscalePipeline", [
        CAT | IMAGE, {**CAT, **IMAGE, "guidance_scale": 1.0}, {**CAT, **IMAGE, "noise_level": 300, "num_images_per_prompt": 2},
        {**CAT, "image": photo(0, 20), "negative_prompt": "fog"}, {**CAT, "image": photo(size=17)}, BOTH | IMAGES],
        BOTH | IMAGES, PAIR,
        unet={"in_channels": 7, "num_class_embeds": 1000}, parts=lambda: {"low_res_scheduler": calotype.DDPMScheduler()}),
    Task("StableDiffusionLatentUpscalePipeline", [
        CAT | IMAGE, {**CAT, "image": SMALL[:1]}, {**CAT, **IMAGE, "guidance_scale": 1.0},
        {**CAT, **IMAGE, "negative_prompt": "fog"}, {**CAT, "image": photo(size=17)}, {**BOTH, "image": SMALL}, BOTH | IMAGES],
        BOTH | IMAGES, PAIR,
        unet=LATENT_UPSCALER, schedulers=("EulerDiscreteScheduler",)),
    Task("StableUnCLIPImg2ImgPipeline", [
        IMAGE, CAT | IMAGE, {**CAT, **IMAGE, "noise_level": 700, "guidance_scale": 1.0}, {**CAT, "image_embeds": EMBEDS[:1]},
        {**CAT, **IMAGE, "noise_level": 100, "num_images_per_prompt": 2}, BOTH | IMAGES], BOTH | IMAGES, PAIR,
        unet={"class_embed_type": "projection", "projection_class_embeddings_input_dim": 32},
        parts=lambda: {**clip_vision(), "image_normalizer": normalizer(),
                       "image_noising_scheduler": calotype.DDPMScheduler(beta_schedule="squaredcos_cap_v2")}),
)}
CALLS = [(name, call) for name, task in TASKS.items() for call in range(len(task.calls))]


@cache
def ours(name):
    task = TASKS[name]
    tiny = make_tiny(**task.unet)
    original = "original_sample" if "LatentUpscale" in name else "epsilon"
    parts = {**tiny.components, "scheduler": scheduler(task.schedulers[0], prediction_type=original), **task.parts()}
    parts |= {"requires_safety_checker": False}
    takes = inspect.signature(getattr(calotype, name).__init__).parameters
    pipe = getattr(calotype, name)(**{part: parts[part] for part in takes if part in parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def theirs(diffusers, tmp_path_factory):
    """The oracle's pipeline of a class, loaded from what ours saved."""

    @cache
    def load(name):
        folder = tmp_path_factory.mktemp(name)
        ours(name).save_pretrained(folder)
        nothing = {"depth_estimator": None, "feature_extractor": None} if "Depth" in name else {}
        pipe = getattr(diffusers, name).from_pretrained(folder, **nothing)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


def run(pipe, generator=0, **call):
    call = {"num_inference_steps": 3, "output_type": "np", "generator": generator, **call}
    if isinstance(generator, int):
        call["generator"] = torch.Generator().manual_seed(generator)
    return pipe(**call)[0]


def assert_close(made, expected):
    for one, other in zip(made, expected, strict=True):
        assert np.abs(np.asarray(one) - np.asarray(other)).max() <= 1e-4 * max(1.0, np.abs(np.asarray(other)).max())


# -- the oracle's pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), CALLS)
def test_same_pictures(theirs, name, number):
    call = TASKS[name].calls[number]
    assert_close(*(run(pipe, **call) for pipe in (ours(name), theirs(name))))


@pytest.mark.parametrize("name", TASKS)
def test_same_image_processors(theirs, name):
    """But for grey pictures, which become RGB here; and the same resizing."""
    mine, reference = (pipe.image_processor for pipe in (ours(name), theirs(name)))
    entries = [entry for entry in mine._arguments() if entry != "do_convert_rgb"]
    assert {entry: mine.config[entry] for entry in entries} == {entry: reference.config[entry] for entry in entries}
    odd = photo(size=13)
    assert torch.equal(mine.preprocess(odd), reference.preprocess(odd))


@pytest.mark.parametrize(("name", "other"), [
    (name, other) for name, task in TASKS.items() for other in task.schedulers[1:]])
def test_other_schedulers(diffusers, theirs, name, other):
    made = []
    for library, pipe in ((calotype, ours(name)), (diffusers, theirs(name))):
        before = pipe.scheduler
        how = {"skip_prk_steps": True} if other == "PNDMScheduler" else {}
        pipe.scheduler = getattr(library, other)(beta_schedule="scaled_linear", **how)
        made.append(run(pipe, **TASKS[name].calls[0], output_type="latent", num_inference_steps=4))
        pipe.scheduler = before
    assert_close(*made)


@pytest.mark.parametrize("name", TASKS)
def test_a_checkpoint_of_the_oracle(theirs, name, tmp_path):
    theirs(name).save_pretrained(tmp_path)
    loaded = calotype.DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded).__name__ == name
    loaded.set_progress_bar_config(disable=True)
    assert_close(run(loaded, **TASKS[name].calls[0]), run(ours(name), **TASKS[name].calls[0]))


# -- what holds for all ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_gives_each_picture_what_it_is_alone(name):
    task = TASKS[name]
    together = run(ours(name), seeded(1, 2), **task.batch)
    more = run(ours(name), seeded(1, 2, 3, 4), **task.batch, num_images_per_prompt=2)
    for i, one in enumerate(task.alone):
        assert_close([run(ours(name), seeded(i + 1), **one)[0]], [together[i]])
        assert_close([run(ours(name), seeded(2 * i + 2), **one)[0]], [more[2 * i + 1]])


@pytest.mark.parametrize("name", [name for name in TASKS if name != "LatentConsistencyModelPipeline"])
def test_one_prompt_for_several_pictures(name):
    call = {key: value for key, value in TASKS[name].batch.items() if key != "prompt"}
    prompt = {} if "Variation" in name else {"prompt": "a cat"}
    together = run(ours(name), seeded(1, 2), **call, **prompt)
    alone = TASKS[name].alone[1] | prompt
    assert_close([run(ours(name), seeded(2), **alone)[0]], [together[1]])


@pytest.mark.parametrize("name", [name for name in TASKS if name not in (
    "LatentConsistencyModelPipeline", "StableDiffusionImageVariationPipeline")])
def test_one_picture_for_several_prompts(name):
    together = run(ours(name), seeded(1, 2), **TASKS[name].alone[0] | BOTH)
    alone = TASKS[name].alone[0] | {"prompt": "a dog"}
    assert_close([run(ours(name), seeded(2), **alone)[0]], [together[1]])


@pytest.mark.parametrize("name", TASKS)
def test_output_types_and_streams(name):
    pipe, call = ours(name), TASKS[name].calls[0]
    array = run(pipe, **call)
    (picture,) = pipe(**call, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images
    assert np.array_equal(np.asarray(picture), (array[0] * 255).round().astype(np.uint8))
    assert torch.is_tensor(run(pipe, **call, output_type="pt"))
    images, flagged = pipe(**call, num_inference_steps=2, return_dict=False)
    assert flagged is None
    assert len(images) == 1
    *_, last = pipe.stream(**call, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np")
    assert np.array_equal(last.output.images, array)
    assert len(last.preview()) == 1


@pytest.mark.parametrize("name", TASKS)
def test_callbacks(name):
    """They see what the task holds, and what they change counts."""
    pipe, call, task = ours(name), TASKS[name].calls[0], TASKS[name]
    names = ["latents", "prompt_embeds", *task.held]
    seen = []

    def look(own, step, timestep, tensors):
        seen.append((step, sorted(tensors), own.guidance_scale))

    plain = run(pipe, **call, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    assert len(seen) == pipe.scheduler.table(3).timesteps.numel() or "Img2Img" in name or "Depth" in name
    assert seen[0][1] == sorted(names)
    assert np.array_equal(plain, run(pipe, **call))
    for held in task.held:
        changed = run(pipe, **call, callback_on_step_end=lambda own, step, timestep, tensors: {
            name: 2 * tensor for name, tensor in tensors.items()}, callback_on_step_end_tensor_inputs=[held])
        assert not np.allclose(changed, plain, atol=1e-6)
    with pytest.raises(ValueError, match="callback tensor"):
        run(pipe, **call, callback_on_step_end_tensor_inputs=["sample"])


@pytest.mark.parametrize("name", TASKS)
def test_half_precision(name, tmp_path):
    ours(name).save_pretrained(tmp_path)
    pipe = getattr(calotype, name).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    call = {key: value.bfloat16() if torch.is_tensor(value) else value for key, value in TASKS[name].calls[0].items()}
    made = run(pipe, **call)
    assert np.isfinite(made).all()
    assert np.abs(made - run(ours(name), **TASKS[name].calls[0])).mean() < 0.05


# -- what is each one's own -----------------------------------------------------------------------------------------------------


def test_any_scheduler_steps_the_latent_upscaler():
    """The oracle's has none but those in sigma; the limit of many steps is the same by all."""
    pipe, made = ours("StableDiffusionLatentUpscalePipeline"), []
    before = pipe.scheduler
    for name in ("EulerDiscreteScheduler", "DDIMScheduler"):
        pipe.scheduler = scheduler(name, **({"clip_sample": False} if name == "DDIMScheduler" else {}))
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
        made.append(run(pipe, prompt="a cat", image=SMALL[:1], latents=latents, output_type="latent", num_inference_steps=60,
                        guidance_scale=1.0))
    pipe.scheduler = before
    assert (made[1] - made[0]).abs().mean() < 0.05 * made[0].abs().mean()


def test_pooled_embeddings_stand_for_prompts():
    pipe = ours("StableDiffusionLatentUpscalePipeline")
    states, pooled = pipe._read("prompt", "a cat", None, None)
    unwanted, other = pipe._read("negative_prompt", None, None, None)
    given = run(pipe, image=SMALL[:1], prompt_embeds=states, negative_prompt_embeds=unwanted, pooled_prompt_embeds=pooled,
                negative_pooled_prompt_embeds=other)
    assert np.array_equal(given, run(pipe, prompt="a cat", image=SMALL[:1]))


def test_a_watermarker_marks_pictures():
    class Marker:
        def apply_watermark(self, images, sample_size):
            return [image.resize((sample_size, sample_size)) for image in images]

    pipe = calotype.StableDiffusionUpscalePipeline(
        **(ours("StableDiffusionUpscalePipeline").components | {"watermarker": Marker()}), max_noise_level=10)
    pipe.set_progress_bar_config(disable=True)
    assert run(pipe, prompt="a cat", image=photo(), output_type="pil", noise_level=10)[0].size == (8, 8)
    assert run(pipe, prompt="a cat", image=photo(), noise_level=0).shape == (1, 32, 32, 3)
    with pytest.raises(ValueError, match="noise_level is 11, but must be from 0 to 10"):
        run(pipe, prompt="a cat", image=photo(), noise_level=11)


def test_flat_depth_is_in_the_middle():
    """The oracle divides by zero."""
    seen = []
    run(ours("StableDiffusionDepth2ImgPipeline"), prompt="a cat", image=photo(), depth_map=np.ones((1, 16, 16)),
        callback_on_step_end=lambda pipe, step, timestep, held: seen.append(held["depth_mask"]),
        callback_on_step_end_tensor_inputs=["depth_mask"])
    assert not seen[0].any()


# -- depth by transformers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def estimating(diffusers, tmp_path_factory):
    """A checkpoint of the oracle's with a depth estimator."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    estimator = transformers.DPTForDepthEstimation(transformers.DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8)).eval()
    pipe = calotype.StableDiffusionDepth2ImgPipeline(**ours("StableDiffusionDepth2ImgPipeline").components | {
        "depth_estimator": estimator, "feature_extractor": transformers.DPTImageProcessorPil(size={"height": 32, "width": 32})})
    folder = tmp_path_factory.mktemp("depth")
    pipe.save_pretrained(folder)
    theirs = diffusers.StableDiffusionDepth2ImgPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder)
    return theirs, folder


def test_depth_is_estimated(estimating):
    theirs, folder = estimating
    pipe = calotype.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert_close(run(pipe, prompt="a cat", image=photo()), run(theirs, prompt="a cat", image=photo()))
    together = run(pipe, seeded(1, 2), **BOTH, **IMAGES)
    assert_close([run(pipe, seeded(2), **PAIR[1])[0]], [together[1]])


def test_depth_of_other_kinds_of_pictures(estimating):
    """The estimator sees what the pictures show; transformers' processor would divide floats by 255."""
    pipe = calotype.DiffusionPipeline.from_pretrained(estimating[1])
    array = np.asarray(photo())
    expected = pipe._estimated(photo(), pipe.given_images(photo()))
    signed = torch.from_numpy(array / np.float32(127.5) - 1).permute(2, 0, 1)
    for same in (array, array / 255, signed, [signed], photo().convert("RGBA")):
        assert torch.allclose(pipe._estimated(same, pipe.given_images(same)), expected, atol=1e-4)
    with pytest.raises(ValueError, match="image is latents, of which no depth can be estimated"):
        run(pipe, prompt="a cat", image=SMALL)


def test_without_transformers_a_depth_map_is_asked_for(estimating, monkeypatch, caplog):
    _, folder = estimating
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    pipe = calotype.DiffusionPipeline.from_pretrained(folder)
    assert pipe.depth_estimator is None
    assert "depth_estimator is left out, since transformers is not installed" in caplog.text
    with pytest.raises(ValueError, match=r"give a depth_map, or install transformers \(pip install 'calotype\[depth\]'\)"):
        run(pipe, prompt="a cat", image=photo())
    assert run(pipe, prompt="a cat", image=photo(), depth_map=depth(1)).shape == (1, 16, 16, 3)


# -- errors ----------------------------------------------------------------------------------------------------------------------

LCM, EDIT, UP = "LatentConsistencyModelPipeline", "StableDiffusionInstructPix2PixPipeline", "StableDiffusionUpscalePipeline"
DEPTH, UNCLIP = "StableDiffusionDepth2ImgPipeline", "StableUnCLIPImg2ImgPipeline"
LATENT_UP = "StableDiffusionLatentUpscalePipeline"


@pytest.mark.parametrize(("name", "call", "error", "message"), [
    (LCM, {"negative_prompt": "fog"}, TypeError, "has no argument 'negative_prompt'|negative_prompt"),
    (LCM, {"num_inference_steps": 51}, ValueError, "num_inference_steps is 51, but must be from 1 to 50"),
    (LCM, {"prompt": None}, ValueError, "give a prompt"),
    ("LatentConsistencyModelImg2ImgPipeline", {"strength": 0.0}, ValueError, "strength is 0.0, but must be above 0"),
    (DEPTH, {"depth_map": depth(1)[0]}, ValueError, r"depth_map is a tensor of .* shape \[16, 12\], but must be .* \[n, h, w\]"),
    (DEPTH, {"depth_map": depth(1, 2)}, ValueError, r"one or one for each of 1 pictures"),
    (DEPTH, {"depth_map": depth(1) * torch.nan}, ValueError, "depth_map has values that are not finite"),
    (DEPTH, {"depth_map": depth(1)[:, :0]}, ValueError, r"depth_map is a tensor of .* shape \[1, 0, 12\], but must be .* \[n, h"),
    (DEPTH, {"depth_map": photo()}, ValueError, "depth_map is .*, but must be a tensor of numbers"),
    (DEPTH, {"strength": 1.5}, ValueError, "strength is 1.5"),
    (EDIT, {"image": None}, ValueError, "image is None, but must be a PIL image"),
    (EDIT, {"image": [photo()] * 3, "prompt": ["a", "b"]}, ValueError, "3 pictures for 2 prompts"),
    (EDIT, {"latents": SMALL}, ValueError, "latents have the shape"),
    (UP, {"noise_level": -1}, ValueError, "noise_level is -1, but must be from 0 to 350"),
    (UP, {"image": torch.zeros(1, 4, 8, 8)}, ValueError, "image is latents .*but must be pictures"),
    (LATENT_UP, {"prompt": None, "prompt_embeds": torch.zeros(1, 32, 16)}, ValueError,
     "give prompt_embeds and pooled_prompt_embeds together"),
    (LATENT_UP, {"prompt": ["a", "b", "c"], "negative_prompt": ["a", "b"]}, ValueError, "2 negative prompts for 3 prompts"),
    (LATENT_UP, {"image": SMALL[..., :6]}, ValueError, "latents of 8 x 6, but both must be multiples of 4, that is, of 8 pixels"),
    (LATENT_UP, {"clip_skip": 1}, TypeError, "clip_skip"),
    (UNCLIP, {"noise_level": 1000}, ValueError, "noise_level is 1000, but must be from 0 to 999"),
    (UNCLIP, {"image": None}, ValueError, "give an image or image_embeds"),
    (UNCLIP, {"image": torch.rand(3, 32, 32)}, ValueError, r"image is a Tensor .*\[3, 32, 32\]\), but a tensor must be \[n, 3"),
    (UNCLIP, {"image": torch.full((1, 3, 32, 32), torch.nan)}, ValueError, "of finite values"),
    ("StableDiffusionImageVariationPipeline", {"prompt": "a cat"}, TypeError, "prompt"),
])
def test_bad_input(name, call, error, message):
    with pytest.raises(error, match=message):
        run(ours(name), **{**TASKS[name].calls[0], **call})


def test_models_of_other_tasks():
    plain = make_tiny()
    with pytest.raises(ValueError, match="takes no guidance scale"):
        calotype.LatentConsistencyModelPipeline.from_pipe(plain)("a cat")
    with pytest.raises(ValueError, match="does not know on which steps a model was distilled"):
        tiny = make_tiny(time_cond_proj_dim=32)
        calotype.LatentConsistencyModelPipeline.from_pipe(tiny)("a cat")
    with pytest.raises(ValueError, match="trained for another task: it reads 4 channels"):
        calotype.StableDiffusionInstructPix2PixPipeline.from_pipe(plain)("a cat", image=photo())
