"""`DiTPipeline` and `ConsistencyModelPipeline` against the oracle, on tiny random weights."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest
import torch

import calotype

from .conftest import seeded
from .test_unconditional import AUTOENCODER, UNET

DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "out_channels": 8, "num_layers": 2, "sample_size": 8}
NAMES = {"0": "tench, Tinca tinca", "1": "goldfish, Carassius auratus", "980": "volcano"}


def dit(library, scheduler="DDIMScheduler", classes=1000, **options):
    """`DiTPipeline` of random weights by the classes of `library`."""
    torch.manual_seed(0)
    transformer = library.DiTTransformer2DModel(**DIT, num_embeds_ada_norm=classes).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():  # those that begin as zeros too
            parameter += 0.1 * torch.randn_like(parameter)
    vae = library.AutoencoderKL(**{**AUTOENCODER, "latent_channels": 4}).eval()
    return library.DiTPipeline(transformer, vae, getattr(library, scheduler)(**options), id2label=NAMES)


def consistency(library, classes=10, **options):
    torch.manual_seed(0)
    unet = library.UNet2DModel(**UNET, num_class_embeds=classes).eval()
    return library.ConsistencyModelPipeline(unet, library.CMStochasticIterativeScheduler(**options))


MAKERS = {"DiTPipeline": dit, "ConsistencyModelPipeline": consistency}


def ask(pipe, call=None, **options):
    pipe.set_progress_bar_config(disable=True)
    count = {} if type(pipe).__name__ == "DiTPipeline" else {"batch_size": 2}
    return (call or pipe)(**{"class_labels": [1, 7], "num_inference_steps": 4, "generator": seeded(0)[0], "output_type": "np",
                             **count, **options})


@pytest.fixture(params=MAKERS)
def pipe(request):
    return MAKERS[request.param](calotype)


@pytest.mark.parametrize(("made_with", "called_with"), [
    ({}, {}), ({}, {"seeds": [1, 2]}), ({}, {"guidance_scale": 1.0}), ({}, {"guidance_scale": 7.5, "num_inference_steps": 9}),
    ({"scheduler": "DPMSolverMultistepScheduler"}, {}), ({"scheduler": "DDPMScheduler"}, {"guidance_scale": 0.0}),
    ({"scheduler": "PNDMScheduler", "skip_prk_steps": True}, {}),
])
def test_same_pictures_by_dit(diffusers, tmp_path, made_with, called_with):
    dit(calotype, **made_with).save_pretrained(tmp_path)
    results = []
    for library in (diffusers, calotype):
        options = {key: value for key, value in called_with.items() if key != "seeds"}
        options["generator"] = generator = seeded(*called_with["seeds"]) if "seeds" in called_with else seeded(0)[0]
        pipe = library.DiTPipeline.from_pretrained(tmp_path)
        step = pipe.scheduler.step
        if library is diffusers and "seeds" not in called_with and "generator" in inspect.signature(step).parameters:
            pipe.scheduler.step = functools.wraps(step)(functools.partial(step, generator=generator))  # which it forgets
        results.append(ask(pipe, **options).images)
    theirs, ours = results
    assert ours.shape == theirs.shape == (2, 16, 16, 3)
    assert np.allclose(ours, theirs, atol=1e-4), abs(ours - theirs).max()
    assert ours.std() > 0.01


@pytest.mark.parametrize(("made_with", "called_with"), [
    ({}, {}), ({}, {"num_inference_steps": 1}), ({}, {"num_inference_steps": 1, "timesteps": [22, 0]}), ({}, {"seeds": [1, 2]}),
    ({"classes": None}, {"class_labels": None}), ({}, {"class_labels": torch.tensor([9])}),
    ({"num_train_timesteps": 201, "clip_denoised": False}, {"num_inference_steps": 3}),
    ({}, {"latents": torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8), "seeds": [3, 4]}),
])
def test_same_pictures_by_consistency(diffusers, tmp_path, made_with, called_with):
    consistency(calotype, **made_with).save_pretrained(tmp_path)
    results = []
    for library in (diffusers, calotype):
        options = {key: value for key, value in called_with.items() if key != "seeds"}
        options["generator"] = seeded(*called_with["seeds"]) if "seeds" in called_with else seeded(0)[0]
        results.append(ask(library.ConsistencyModelPipeline.from_pretrained(tmp_path), **options).images)
    theirs, ours = results
    assert np.allclose(ours, theirs, atol=1e-4), abs(ours - theirs).max()


def test_random_classes(diffusers, tmp_path):
    """The oracle draws them from the global generator; here a picture's own generator says its class."""
    consistency(calotype).save_pretrained(tmp_path)
    pipes = [library.ConsistencyModelPipeline.from_pretrained(tmp_path) for library in (diffusers, calotype)]
    results = []
    for pipe in pipes:
        torch.manual_seed(0)
        results.append(ask(pipe, class_labels=None, generator=None).images)
    assert np.allclose(*results, atol=1e-4)
    pipe = pipes[1]
    together = ask(pipe, class_labels=None, batch_size=3, generator=seeded(1, 2, 3)).images
    assert np.array_equal(together, ask(pipe, class_labels=None, batch_size=3, generator=seeded(1, 2, 3)).images)
    alone = ask(pipe, class_labels=None, batch_size=1, generator=seeded(2)).images
    assert np.allclose(together[1], alone[0], atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_saved_by_either(diffusers, tmp_path, name):
    theirs = MAKERS[name](diffusers)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = getattr(calotype, name).from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = getattr(diffusers, name).from_pretrained(tmp_path / "ours")
    expected = ask(theirs).images
    for pipe in (ours, again):
        assert np.allclose(ask(pipe).images, expected, atol=1e-4)


def test_names_of_classes(diffusers, tmp_path):
    pipe = dit(calotype)
    assert pipe.labels == dit(diffusers).labels
    assert list(pipe.labels) == sorted(pipe.labels)
    assert pipe.get_label_ids(["volcano", "Tinca tinca"]) == [980, 0]
    assert pipe.get_label_ids("goldfish") == [1]
    with pytest.raises(ValueError, match="'volcanoe', but must be .*did you mean 'volcano'"):
        pipe.get_label_ids("volcanoe")
    pipe.save_pretrained(tmp_path)
    for library in (calotype, diffusers):
        assert library.DiTPipeline.from_pretrained(tmp_path).labels == pipe.labels
    loaded = calotype.DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded, calotype.DiTPipeline)
    assert calotype.DiTPipeline.from_pipe(loaded).labels == pipe.labels
    with pytest.raises(ValueError, match="made without id2label"):
        calotype.DiTPipeline(pipe.transformer, pipe.vae, pipe.scheduler).get_label_ids("volcano")


def test_without_a_class():
    """The number after the last class is none: guidance towards it changes nothing; and there may be any number of classes."""
    pipe = dit(calotype, classes=10)
    guided, plain = (ask(pipe, class_labels=10, guidance_scale=scale).images for scale in (4.0, 1.0))
    assert np.allclose(guided, plain, atol=1e-5)
    assert not np.allclose(plain, ask(pipe, class_labels=9, guidance_scale=1.0).images, atol=1e-3)


def test_learned_variance_is_heeded():
    """`DDPMScheduler(variance_type="learned_range")` written out, with the class's own variance."""
    pipe, (generator,) = dit(calotype, "DDPMScheduler", variance_type="learned_range"), seeded(0)
    latents = ask(pipe, class_labels=3, output_type="latent").images
    x, scheduler = torch.randn(1, 4, 8, 8, generator=generator), pipe.scheduler
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            said, blank = (pipe.transformer(x, t, torch.tensor([label])).sample for label in (3, 1000))
            said[:, :4] = blank[:, :4] + 4.0 * (said[:, :4] - blank[:, :4])
            x = scheduler.step(said, t, x, generator=generator).prev_sample
    assert torch.allclose(latents, x, atol=1e-4)


def test_schedulers_with_scaled_samples():
    """Euler's method written out. (The oracle begins with too little noise, and takes a step from what the model was given.)"""
    pipe, (generator,) = dit(calotype, "EulerDiscreteScheduler"), seeded(0)
    latents = ask(pipe, class_labels=3, guidance_scale=1.0, output_type="latent").images
    scheduler = pipe.scheduler
    scheduler.set_timesteps(4)
    x = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            said = pipe.transformer(scheduler.scale_model_input(x, t), t, torch.tensor([3])).sample[:, :4]
            x = scheduler.step(said, t, x).prev_sample
    assert torch.allclose(latents, x, atol=1e-3)


def test_each_picture_is_what_it_is_alone():
    for pipe in (dit(calotype, "DDPMScheduler"), consistency(calotype)):
        labels = {"class_labels": [1, 2, 3], **({} if isinstance(pipe, calotype.DiTPipeline) else {"batch_size": 3})}
        together = ask(pipe, **labels, generator=seeded(1, 2, 3)).images
        alone = ask(pipe, **{**labels, "class_labels": 2, **({"batch_size": 1} if "batch_size" in labels else {})},
                    generator=seeded(2)).images
        assert np.allclose(together[1], alone[0], atol=1e-5)


def test_forms_of_the_result(pipe):
    array = ask(pipe).images
    assert np.allclose(ask(pipe, output_type="pt").images.permute(0, 2, 3, 1), array)
    shown = ask(pipe, output_type="pil", return_dict=False)[0]
    assert np.array_equal(np.stack([np.asarray(one) for one in shown]), (array * 255).round().astype(np.uint8))
    assert ask(pipe, output_type="latent").images.shape[2:] == (8, 8)


def test_streaming_and_stopping(pipe):
    steps = list(ask(pipe, call=pipe.stream, return_dict=False))
    assert np.array_equal(steps[-1].output[0], ask(pipe).images)
    assert len(steps) == 4
    assert [one.size for one in steps[1].preview()] == [(8, 8)] * 2
    for step in ask(pipe, call=pipe.stream):
        pipe.interrupt = True
        assert step.call == 0
    assert np.isfinite(step.output.images).all()


def test_what_is_not_finite_is_said(pipe):
    for parameter in pipe.components.get("unet", pipe.components.get("transformer")).parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN|not finite"):
        ask(pipe)


def test_half_precision(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    half = type(pipe).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert np.allclose(ask(half).images, ask(pipe).images, atol=0.5)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "change", "error", "message"), [
    ("DiTPipeline", {"class_labels": [1001]}, ValueError, r"class_labels are \[1001\], but must be whole numbers from 0 to 1000"),
    ("DiTPipeline", {"class_labels": []}, ValueError, "an empty list"),
    ("DiTPipeline", {"class_labels": ["volcano"]}, ValueError, "'volcano'.*must be whole numbers"),
    ("DiTPipeline", {"class_labels": 0.5}, ValueError, "must be whole numbers"),
    ("DiTPipeline", {"generator": seeded(1)}, ValueError, "1 generators for a batch of 2"),
    ("DiTPipeline", {"output_type": "array"}, ValueError, "output_type is 'array'"),
    ("ConsistencyModelPipeline", {"class_labels": [1, 2, 3]}, ValueError, "3 class_labels for 2 pictures"),
    ("ConsistencyModelPipeline", {"class_labels": -1}, ValueError, "from 0 to 9"),
    ("ConsistencyModelPipeline", {"latents": torch.zeros(1, 3, 8, 8)}, ValueError, r"makes \[2, 3, 8, 8\]"),
    ("ConsistencyModelPipeline", {"latents": torch.full((2, 3, 8, 8), torch.inf)}, ValueError, "not finite"),
    ("ConsistencyModelPipeline", {"timesteps": [0, 22]}, ValueError, "falling numbers"),
    ("ConsistencyModelPipeline", {"num_inference_steps": 41}, ValueError, "from 1 to 40"),
])
def test_bad_input(name, change, error, message):
    with pytest.raises(error, match=message):
        ask(MAKERS[name](calotype), **change)


def test_classes_for_a_model_without():
    with pytest.raises(ValueError, match="not conditioned on classes"):
        ask(consistency(calotype, classes=None))
