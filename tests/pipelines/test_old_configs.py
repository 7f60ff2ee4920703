"""Configs of old checkpoints, put right when pipelines are made of them: the same entries in the same classes as Diffusers'."""

from __future__ import annotations

import inspect
import json
import warnings

import numpy as np
import pytest

import calotype

from .conftest import make_tiny, seeded

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "image_encoder", "low_res_scheduler", "safety_checker",
         "feature_extractor", "depth_estimator")
CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
           "StableDiffusionDepth2ImgPipeline", "StableDiffusionInstructPix2PixPipeline", "StableDiffusionUpscalePipeline",
           "StableDiffusionImageVariationPipeline", "StableDiffusionLatentUpscalePipeline", "LatentConsistencyModelPipeline",
           "LatentConsistencyModelImg2ImgPipeline")
SCHEDULERS = {
    "DDIMScheduler": [{}, {"steps_offset": 2, "clip_sample": False}, {"steps_offset": 1, "clip_sample": True}],
    "PNDMScheduler": [{}, {"steps_offset": 1}, {"skip_prk_steps": True}], "EulerDiscreteScheduler": [{}],
    "LCMScheduler": [{"clip_sample": True}], "EDMEulerScheduler": [{}],
}


def old_unet(library, **entries):
    unet = library.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",))
    unet.register_to_config(**entries)
    return unet


def made(library, name, scheduler, unet):
    """A pipeline of a class, of no more than a UNet, a scheduler and the factor of a VAE."""
    pipeline = getattr(library, name)
    takes = inspect.signature(pipeline.__init__).parameters
    vae = library.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    given = {"scheduler": scheduler, "unet": unet, "vae": vae, "low_res_scheduler": library.DDPMScheduler()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"requires_safety_checker": False} if "requires_safety_checker" in takes else {}
        return pipeline(**{part: given.get(part) for part in PARTS if part in takes}, **options)


@pytest.mark.parametrize("name", CLASSES)
def test_the_same_entries_are_put_right_as_in_the_oracle(diffusers, name):
    for kind, cases in SCHEDULERS.items():
        for entries in cases:
            ours, theirs = (made(library, name, getattr(library, kind)(**entries), old_unet(library)).scheduler.config
                            for library in (calotype, diffusers))
            for entry in ("steps_offset", "clip_sample", "skip_prk_steps"):
                assert ours.get(entry) == theirs.get(entry), (kind, entries, entry)
    for version in ("0.6.0", "0.8.1", "0.9.0", "0.42.1"):
        ours, theirs = (made(library, name, library.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
                             old_unet(library, _diffusers_version=version)) for library in (calotype, diffusers))
        assert ours.unet.config.sample_size == theirs.unet.config.sample_size, version


def test_what_the_caller_has_is_not_changed_and_another_scheduler_is_as_in_the_oracle(diffusers):
    scheduler = calotype.DDIMScheduler()
    before = dict(scheduler.config)
    pipe = made(calotype, "StableDiffusionPipeline", scheduler, old_unet(calotype))
    assert dict(scheduler.config) == before
    theirs = made(diffusers, "StableDiffusionPipeline", diffusers.DDIMScheduler(), old_unet(diffusers))
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"):  # made of the config that was put right
        ours, other = (getattr(library, name).from_config(one.scheduler.config).config
                       for library, one in ((calotype, pipe), (diffusers, theirs)))
        assert (ours.get("steps_offset"), ours.get("clip_sample")) == (other.get("steps_offset"), other.get("clip_sample"))
    right = calotype.DDIMScheduler(steps_offset=1, clip_sample=False)
    assert made(calotype, "StableDiffusionPipeline", right, old_unet(calotype)).scheduler is right


@pytest.mark.parametrize("said", [{}, {"clip_sample": True, "steps_offset": 1}, {"clip_sample": False}])
def test_an_old_checkpoint_makes_the_oracles_picture(tmp_path, diffusers, said):
    """The latents of a tiny model of random weights are far beyond [-1, 1]: clipped, they would be others altogether."""
    tiny = make_tiny()
    tiny.save_pretrained(tmp_path)
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps({
        "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "set_alpha_to_one": False, **said}))
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", "DDIMScheduler"]}))
    unet = json.loads((tmp_path / "unet/config.json").read_text())
    (tmp_path / "unet/config.json").write_text(json.dumps({**unet, "_diffusers_version": "0.6.0"}))
    latents = []
    for library in (calotype, diffusers):
        pipe = library.DiffusionPipeline.from_pretrained(tmp_path)
        pipe.set_progress_bar_config(disable=True)
        assert pipe.unet.config.sample_size == 64
        latents.append(np.asarray(pipe("a cat", height=16, width=16, num_inference_steps=4, generator=seeded(0)[0],
                                       output_type="latent").images))
    assert np.abs(latents[1]).max() > 1.5
    assert np.allclose(*latents, atol=1e-4)


def test_a_recipes_scheduler_is_the_one_it_names():
    """A solver that was put into a pipeline is not put right, nor is it when the picture is made again."""
    from calotype.cli.making import facts_of
    from calotype.recipe import Recipe

    pipe = calotype.DiffusionPipeline.from_pretrained("calotype/emoji")
    pipe.scheduler = calotype.DDIMScheduler(clip_sample=True)
    recipe = Recipe(prompt="a cat", seed=0, steps=1, guidance=1.0, height=128, width=128, task="text-to-image",
                    **facts_of(pipe, "calotype/emoji", None, None, "0" * 64))
    assert recipe.load().scheduler.config.clip_sample is True
