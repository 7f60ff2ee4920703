"""Pipelines that are told nothing, or a picture at most, against the oracle, on tiny random weights."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest
import torch
from PIL import Image

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


# -- the other pipelines: an autoencoder, a score, a picture to begin with -----------------------------------------------

PIXELS = {"PNDMPipeline": "PNDMScheduler", "ScoreSdeVePipeline": "ScoreSdeVeScheduler", "RePaintPipeline": "RePaintScheduler"}
LATENT = ("LDMPipeline", "LDMSuperResolutionPipeline")
ALL = (*PIXELS, *LATENT)
AUTOENCODER = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 3,
               "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def made(library, name, autoencoder="VQModel", scheduler="DDIMScheduler", **options):
    """A pipeline of random weights by the classes of `library`."""
    torch.manual_seed(0)
    extra = {"ScoreSdeVePipeline": {"time_embedding_type": "fourier", "freq_shift": 0},
             "LDMSuperResolutionPipeline": {"in_channels": 6}}.get(name, {})
    parts = {"unet": library.UNet2DModel(**UNET, **extra), "scheduler": getattr(library, PIXELS.get(name, scheduler))(**options)}
    if name in LATENT:
        parts["vqvae"] = getattr(library, autoencoder)(**AUTOENCODER)
        parts["vqvae"].eval()
        if autoencoder == "VQModel":  # entries so far apart that rounding does not choose between them
            parts["vqvae"].quantize.embedding.weight.data *= 1000
    parts["unet"].eval()
    return getattr(library, name)(**parts)


@pytest.fixture
def checkpoints(tmp_path):
    """Folders by a pipeline's name and the options of `made`, as this library writes them."""

    def checkpoint(name, **options):
        made(calotype, name, **options).save_pretrained(tmp_path / name)
        return tmp_path / name

    return checkpoint


def pictures(count=1, size=(32, 32)):
    shown = np.random.default_rng(0).integers(0, 256, (count, *size[::-1], 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in shown]


def masks(count=1, size=(32, 32)):
    return [Image.fromarray(one) for one in np.random.default_rng(1).integers(0, 256, (count, *size[::-1]), dtype=np.uint8)]


def ask(pipe, count=2, call=None, **options):
    """`count` pictures, each as small as can be; those that begin with pictures begin with different ones."""
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "generator": seeded(0)[0], "output_type": "np", **options}
    small = torch.linspace(-1, 1, 3 * 3 * 8 * 8).reshape(3, 3, 8, 8)[:count]
    if type(pipe).__name__ == "RePaintPipeline":
        mask = (torch.arange(64).reshape(1, 1, 8, 8) % 3 == 0).float()
        return (call or pipe)(**{"image": small, "mask_image": mask, "jump_length": 2, "jump_n_sample": 2, **options})
    if type(pipe).__name__ == "LDMSuperResolutionPipeline":
        return (call or pipe)(**{"image": small, **options})
    return (call or pipe)(**{"batch_size": count, **options})


def both(diffusers, folder, name, generators, steps):
    """The two libraries' pipelines of one folder.

    The oracle's are helped where they go wrong: LDM's solvers draw from the generator, not from the global one; RePaint's
    takes a list of generators, and goes up as far as it came down.
    """
    theirs, ours = (getattr(library, name).from_pretrained(folder) for library in (diffusers, calotype))
    step = getattr(theirs.scheduler, "step", None)
    if name in LATENT and "generator" in inspect.signature(step).parameters:
        theirs.scheduler.step = functools.wraps(step)(functools.partial(step, generator=generators))
    if name == "RePaintPipeline":
        right = calotype.RePaintScheduler()
        right.set_timesteps(steps)
        theirs.scheduler.undo_step = lambda sample, timestep, _=None: right.undo_step(sample, timestep, generators)
        theirs.scheduler.step = lambda *args: step(*args[:5], generators)
    return theirs, ours


@pytest.mark.parametrize(("name", "made_with", "called_with"), [
    ("PNDMPipeline", {}, {}), ("PNDMPipeline", {}, {"num_inference_steps": 11, "seeds": [1, 2]}),
    ("LDMPipeline", {}, {}), ("LDMPipeline", {}, {"eta": 0.7, "seeds": [1, 2]}),
    ("LDMPipeline", {"scheduler": "EulerDiscreteScheduler"}, {"eta": 0.7}), ("LDMPipeline", {"scheduler": "DDPMScheduler"}, {}),
    ("LDMPipeline", {"autoencoder": "AutoencoderKL"}, {}),
    ("ScoreSdeVePipeline", {}, {"num_inference_steps": 12}),
    ("ScoreSdeVePipeline", {"correct_steps": 2, "sigma_max": 50.0, "snr": 0.2}, {"num_inference_steps": 5}),
    ("LDMSuperResolutionPipeline", {}, {}), ("LDMSuperResolutionPipeline", {}, {"eta": 0.7, "seeds": [1, 2]}),
    ("LDMSuperResolutionPipeline", {"scheduler": "PNDMScheduler"}, {"image": pictures(1, (70, 40))[0], "count": 1}),
    ("RePaintPipeline", {}, {}), ("RePaintPipeline", {}, {"eta": 0.7, "jump_n_sample": 1, "seeds": [1, 2]}),
    ("RePaintPipeline", {}, {"jump_length": 3, "jump_n_sample": 3, "num_inference_steps": 8}),
    ("RePaintPipeline", {}, {"image": pictures(1, (70, 38))[0], "mask_image": masks(1, (70, 38))[0], "eta": 0.3}),
])
def test_the_other_pipelines(diffusers, checkpoints, name, made_with, called_with):
    def fresh():
        return seeded(*called_with["seeds"]) if "seeds" in called_with else seeded(0)[0]

    first = fresh()
    options = {"num_inference_steps": 4, **{key: value for key, value in called_with.items() if key != "seeds"}}
    pipes = both(diffusers, checkpoints(name, **made_with), name, first, options["num_inference_steps"])
    theirs, ours = (ask(pipe, **options, generator=one).images for pipe, one in zip(pipes, (first, fresh()), strict=True))
    assert ours.shape == theirs.shape
    assert np.allclose(ours, theirs, atol=1e-4), abs(ours - theirs).max()
    assert ours.std() > 0.01


@pytest.mark.parametrize("name", ALL)
def test_saved_by_either(diffusers, tmp_path, name):
    theirs = made(diffusers, name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = getattr(calotype, name).from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = getattr(diffusers, name).from_pretrained(tmp_path / "ours")
    assert type(calotype.DiffusionPipeline.from_pretrained(tmp_path / "ours")) is type(ours)
    options = {"jump_n_sample": 1} if name == "RePaintPipeline" else {}
    expected = ask(theirs, **options).images
    for pipe in (ours, again):
        assert np.allclose(ask(pipe, **options).images, expected, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_each_picture_is_what_it_is_alone(name):
    """With a generator each: also where the corrector's step depends on the batch (`ScoreSdeVePipeline`)."""
    pipe = made(calotype, name)
    options = {"eta": 0.5} if "eta" in type(pipe).__call__.__annotations__ else {}
    together = ask(pipe, count=3, generator=seeded(1, 2, 3), **options).images
    small = torch.linspace(-1, 1, 3 * 3 * 8 * 8).reshape(3, 3, 8, 8)
    for i, seed in enumerate((1, 2, 3)):
        own = {"image": small[i : i + 1]} if name in ("RePaintPipeline", "LDMSuperResolutionPipeline") else {}
        alone = ask(pipe, count=1, generator=seeded(seed), **options, **own).images
        assert np.allclose(together[i], alone[0], atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_forms_of_the_result(name):
    pipe = made(calotype, name)
    array = ask(pipe).images
    assert np.allclose(ask(pipe, output_type="pt").images.permute(0, 2, 3, 1), array)
    shown = ask(pipe, output_type="pil", return_dict=False)[0]
    assert np.array_equal(np.stack([np.asarray(one) for one in shown]), (array * 255).round().astype(np.uint8))
    latent = ask(pipe, output_type="latent").images
    assert latent.shape == (2, 3, 8, 8)
    assert latent.min() < 0


@pytest.mark.parametrize("name", ALL)
def test_streaming_and_stopping(name):
    pipe = made(calotype, name)
    steps = list(ask(pipe, call=pipe.stream, return_dict=False))
    assert np.array_equal(steps[-1].output[0], ask(pipe).images)
    assert len(steps) == steps[-1].calls
    assert steps[-1].step == steps[-1].steps - 1
    assert [one.mode for one in steps[1].preview()] == ["RGB"] * 2
    for step in ask(pipe, call=pipe.stream):
        pipe.interrupt = True
        assert step.call == 0
    assert np.isfinite(step.output.images).all()
    assert np.array_equal(ask(pipe).images, steps[-1].output[0])


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_finite_is_said(name):
    pipe = made(calotype, name)
    pipe.unet.conv_out.bias.data[0] = torch.nan
    with pytest.raises(FloatingPointError, match="NaN|not finite"):
        ask(pipe)


@pytest.mark.parametrize("name", ALL)
def test_half_precision(checkpoints, name):
    folder = checkpoints(name)
    exact, half = (ask(getattr(calotype, name).from_pretrained(folder, torch_dtype=kind), num_inference_steps=8, generator=None)
                   for kind in (torch.float32, torch.bfloat16))
    assert half.images.shape == exact.images.shape
    assert half.images.dtype == np.float32


def test_the_corrector_goes_by_the_loop_of_ones_own():
    """`ScoreSdeVeScheduler`'s own steps give the pipeline's pictures, which its table makes."""
    pipe = made(calotype, "ScoreSdeVePipeline", correct_steps=2)
    scheduler, (generator,) = pipe.scheduler, seeded(0)
    before = scheduler.timesteps
    expected = ask(pipe).images
    assert scheduler.timesteps is before
    scheduler.set_timesteps(4)
    x = torch.randn(2, 3, 8, 8, generator=generator) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
            for _ in range(2):
                x = scheduler.step_correct(pipe.unet(x, sigma).sample, x, generator).prev_sample
            x, mean = scheduler.step_pred(pipe.unet(x, sigma).sample, t, x, generator, return_dict=False)
    assert np.allclose(expected, mean.clamp(0, 1).permute(0, 2, 3, 1), atol=1e-4)


def test_repaint_goes_by_the_loop_of_ones_own():
    pipe, (generator,) = made(calotype, "RePaintPipeline"), seeded(0)
    original, mask = torch.rand(2, 3, 8, 8) * 2 - 1, torch.rand(2, 1, 8, 8)
    options = {"num_inference_steps": 7, "jump_length": 2, "jump_n_sample": 3}
    expected = ask(pipe, image=original, mask_image=mask, eta=0.6, output_type="latent", **options).images
    scheduler = calotype.RePaintScheduler(eta=0.6)
    scheduler.set_timesteps(*options.values())
    x, last = torch.randn(2, 3, 8, 8, generator=generator), 1000
    with torch.no_grad():
        for t in scheduler.timesteps:
            if t < last:
                x = scheduler.step(pipe.unet(x, t).sample, t, x, original, mask, generator).prev_sample
            else:
                x = scheduler.undo_step(x, last, generator)
            last = t
    assert torch.allclose(expected, x, atol=1e-4)


def test_what_is_kept_is_kept():
    kept = torch.zeros(1, 1, 8, 8)
    kept[..., :4] = 1
    original = torch.rand(1, 3, 8, 8) * 2 - 1
    result = ask(made(calotype, "RePaintPipeline"), image=original, mask_image=kept, output_type="latent").images
    assert torch.allclose(result[..., :4], original[..., :4], atol=1e-5)
    assert not torch.allclose(result[..., 4:], original[..., 4:], atol=0.1)


def test_several_pictures_to_inpaint_or_enlarge():
    """Lists of pictures, one mask for all, sizes that are no multiples: what the oracle cannot do."""
    pipe = made(calotype, "RePaintPipeline")
    shown, mask = pictures(2, (21, 18)), masks(1, (40, 40))[0]
    two = ask(pipe, image=shown, mask_image=mask, generator=seeded(1, 2)).images
    assert two.shape == (2, 16, 16, 3)
    assert np.allclose(two[1:], ask(pipe, image=shown[1], mask_image=mask, generator=seeded(2)).images, atol=1e-5)
    pipe = made(calotype, "LDMSuperResolutionPipeline")
    two = ask(pipe, image=pictures(2), generator=seeded(1, 2)).images
    assert two.shape == (2, 64, 64, 3)
    same = ask(pipe, image=pictures(1)[0], batch_size=2, generator=seeded(1, 2)).images
    assert np.allclose(two[0], same[0], atol=1e-5)
    assert not np.allclose(same[0], same[1], atol=1e-2)


def test_any_config_is_taken_over():
    unet = calotype.UNet2DModel(**UNET)
    for name in ("PNDMPipeline", "RePaintPipeline"):
        pipe = getattr(calotype, name)(unet, calotype.EulerDiscreteScheduler(beta_end=0.03))
        assert type(pipe.scheduler).__name__ == PIXELS[name]
        assert pipe.scheduler.config.beta_end == 0.03


@pytest.mark.parametrize(("name", "change", "error", "message"), [
    ("PNDMPipeline", {"batch_size": 0}, ValueError, "batch_size is 0"),
    ("PNDMPipeline", {"num_inference_steps": 0}, ValueError, "whole number from 1"),
    ("LDMPipeline", {"output_type": "latents"}, ValueError, "did you mean 'latent'"),
    ("LDMPipeline", {"generator": seeded(1)}, ValueError, "1 generators for a batch of 2"),
    ("ScoreSdeVePipeline", {"num_inference_steps": -1}, ValueError, "whole number"),
    ("LDMSuperResolutionPipeline", {"image": None}, ValueError, "a picture is a PIL image"),
    ("LDMSuperResolutionPipeline", {"batch_size": 3}, ValueError, "batch_size is 3 for 2 pictures, but must be 1 or 2"),
    ("LDMSuperResolutionPipeline", {"image": pictures(1, (20, 20))[0]}, ValueError, "must be at least 32"),
    ("RePaintPipeline", {"jump_length": 0}, ValueError, "jump_length is 0"),
    ("RePaintPipeline", {"mask_image": torch.zeros(3, 1, 8, 8)}, ValueError, "3 masks for 2 pictures"),
    ("RePaintPipeline", {"mask_image": -torch.ones(1, 1, 8, 8)}, ValueError, "a mask has values from -1"),
    ("RePaintPipeline", {"image": 300 * torch.ones(1, 3, 8, 8)}, ValueError, "with values from 300"),
])
def test_bad_input_of_the_others(name, change, error, message):
    with pytest.raises(error, match=message):
        ask(made(calotype, name), **change)


def test_a_unet_for_something_else():
    pipe = calotype.LDMSuperResolutionPipeline(
        calotype.VQModel(**AUTOENCODER), calotype.UNet2DModel(**UNET), calotype.DDIMScheduler())
    with pytest.raises(ValueError, match="it is not one for super-resolution"):
        ask(pipe)
