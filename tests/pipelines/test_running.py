"""While a generation runs: steps as a stream, previews, interruption, threads; and what is never shown."""

from __future__ import annotations

import itertools
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import calotype

from .conftest import make_tiny, seeded


def test_a_stream_gives_every_step_and_the_output(tiny):
    whole = tiny("a cat", num_inference_steps=4, generator=seeded(0)[0], output_type="np")
    steps = list(tiny.stream("a cat", num_inference_steps=4, generator=seeded(0)[0], output_type="np"))
    assert [(s.call, s.calls) for s in steps] == [(i, 5) for i in range(5)]  # PNDM asks once more than it steps
    assert [(s.step, s.steps) for s in steps] == [(0, 4), (0, 4), (1, 4), (2, 4), (3, 4)]
    assert [int(s.timestep) for s in steps] == tiny.scheduler.table(4).timesteps.tolist()
    assert np.array_equal(steps[-1].output.images, whole.images)
    assert not np.allclose(steps[1].output.images, whole.images)
    assert "_develop" not in repr(steps[0])


def test_a_stream_ends_with_its_consumer(tiny, monkeypatch):
    asked = []
    forward = tiny.unet.forward
    monkeypatch.setattr(tiny.unet, "forward", lambda *a, **k: asked.append(1) or forward(*a, **k))
    for step in itertools.islice(tiny.stream("a cat", num_inference_steps=50), 3):
        assert step.latents.shape == (1, 4, 8, 8)
    assert len(asked) == 3
    assert torch.is_grad_enabled()


def test_streams_take_turns(tiny):
    """Two generations of one pipeline, a step of each in turn, are what they are alone."""
    alone = [tiny(p, num_inference_steps=3, generator=seeded(i)[0], output_type="np").images for i, p in enumerate("ab")]
    streams = [tiny.stream(p, num_inference_steps=3, generator=seeded(i)[0], output_type="np") for i, p in enumerate("ab")]
    for last in zip(*streams, strict=True):  # noqa: B007
        pass
    for step, expected in zip(last, alone, strict=True):
        assert np.allclose(step.output.images, expected, atol=1e-5)


def test_previews_are_small_pictures(tiny):
    step = next(tiny.stream(["a cat", "a dog"], num_inference_steps=2))
    previews = step.preview()
    assert [picture.size for picture in previews] == [(8, 8)] * 2


def test_unconditional_pipelines_stream():
    unet = calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()
    pipe = calotype.DDPMPipeline(unet, calotype.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    steps = list(pipe.stream(2, num_inference_steps=3, generator=seeded(0)[0], output_type="np"))
    assert len(steps) == 3
    assert np.array_equal(steps[-1].output.images,
                          pipe(2, num_inference_steps=3, generator=seeded(0)[0], output_type="np").images)
    assert [picture.size for picture in steps[0].preview()] == [(8, 8)] * 2


def test_another_thread_interrupts(tiny):
    """On the pipeline that was called, `interrupt` ends what runs, and nothing that comes later."""
    seen = []

    def watch(pipe, i, t, held):
        seen.append(i)
        if i == 1:
            tiny.interrupt = True

    tiny("a cat", num_inference_steps=20, callback_on_step_end=watch)
    assert seen == [0, 1]
    seen.clear()
    tiny("a cat", num_inference_steps=3)
    assert not tiny.interrupt


def test_progress_counts_solver_steps(tiny, capfd):
    """Heun asks the model 9 times in 5 steps; the bar is of steps, and says so at its end."""
    tiny.scheduler = calotype.HeunDiscreteScheduler.from_config(tiny.scheduler.config)
    tiny.set_progress_bar_config(disable=False, desc="outer", leave=True)
    calls = []
    tiny("a cat", num_inference_steps=5, callback_on_step_end=lambda pipe, i, t, held: calls.append(pipe.num_timesteps))
    assert calls == [9] * 9
    shown = capfd.readouterr().err
    assert "5/5" in shown and "outer" in shown
    tiny.set_progress_bar_config(disable=True)
    tiny("a cat", num_inference_steps=2)
    assert not capfd.readouterr().err


def test_threads_with_step_counts_and_schedulers_of_their_own(tiny):
    """Weights are shared; every thread gets what it would get alone."""
    names = ["EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler", "PNDMScheduler"]
    pipes = [calotype.StableDiffusionPipeline.from_pipe(
        tiny, scheduler=getattr(calotype, name).from_config(tiny.scheduler.config)) for name in names]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)

    def run(i):
        return pipes[i % 4]("a cat", num_inference_steps=2 + i, generator=seeded(i)[0], output_type="np").images

    alone = [run(i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone, pool.map(run, range(8)), strict=True):
            assert np.allclose(one, other, atol=1e-5)


def test_a_scheduler_put_in_meanwhile_is_for_the_next_generation(tiny):
    expected = tiny("a cat", num_inference_steps=4, generator=seeded(0)[0], output_type="np").images

    def swap(pipe, i, t, held):
        tiny.scheduler = calotype.EulerDiscreteScheduler.from_config(tiny.scheduler.config)

    made = tiny("a cat", num_inference_steps=4, generator=seeded(0)[0], output_type="np", callback_on_step_end=swap).images
    assert np.array_equal(made, expected)


# -- never a silent black picture -----------------------------------------------------------------------------------------------


def test_latents_that_are_not_finite(tiny):
    def spoil(pipe, i, t, held):
        return {"latents": held["latents"] * float("nan")}

    with pytest.raises(FloatingPointError, match="the latents are not finite"):
        tiny("a cat", num_inference_steps=2, callback_on_step_end=spoil)


def test_an_overflow_of_the_decoder_is_repeated_in_single_precision(caplog):
    """float16 ends at 65,504."""
    pipe = make_tiny().to(torch.float16)
    weight = pipe.vae.decoder.conv_out.weight
    with torch.no_grad():
        pipe.vae.decoder.conv_norm_out.weight.fill_(300.0)
        weight.fill_(60.0)
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0)[0]).half()
    assert not torch.isfinite(pipe.vae.decode(latents).sample).all()
    with caplog.at_level(logging.WARNING):
        pictures = pipe.decode_latents(latents * pipe.vae.config.scaling_factor)
    assert torch.isfinite(pictures).all()
    assert "the autoencoder overflowed in torch.float16; it decodes again in float32" in caplog.text
    assert pipe.vae.dtype == torch.float16  # the pipeline's own stays as it is
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the decoded pictures are not finite"):
        pipe.decode_latents(latents)


def test_not_checking_is_said_once(caplog):
    pipe = make_tiny()
    options = {**pipe.components, "requires_safety_checker": True}
    from calotype.pipelines import stable_diffusion

    stable_diffusion._warned.discard("StableDiffusionImg2ImgPipeline")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            calotype.StableDiffusionImg2ImgPipeline(**options)
    assert caplog.text.count("has no safety checker") == 1


def test_latents_that_are_not_finite_are_not_handed_out_either():
    """With `output_type="latent"`, and by pipelines of pixels; the advice is one that can be followed."""
    pipe = make_tiny()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    for kind in ("latent", "np"):
        with pytest.raises(FloatingPointError, match="latents are not finite: the model's weights are damaged") as caught:
            pipe("a cat", num_inference_steps=1, output_type=kind)
        assert "torch_dtype" not in str(caught.value)  # it is float32 already
        *_, last = pipe.stream("a cat", num_inference_steps=1, output_type=kind)
        with pytest.raises(FloatingPointError, match="latents are not finite"):
            _ = last.output
    unet = calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2).eval()
    with torch.no_grad():
        unet.conv_out.bias.fill_(float("inf"))
    pixels = calotype.DDPMPipeline(unet, calotype.DDPMScheduler(clip_sample=False))
    with pytest.raises(FloatingPointError, match="samples are not finite"):
        pixels(num_inference_steps=1, output_type="latent")


def test_an_overflow_in_half_precision_says_what_helps():
    from calotype.pipelines.decoding import check_finite

    with pytest.raises(FloatingPointError, match=r"overflowed in torch.float16, .* torch_dtype=torch.bfloat16") as caught:
        check_finite(torch.tensor([1e6]).half())
    assert "torch_dtype=torch.float32" in str(caught.value)


def test_pure_noise_and_a_prediction_of_noise_are_an_error_before_the_first_step(monkeypatch):
    pipe = make_tiny()
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe.scheduler = calotype.DDIMScheduler.from_config(pipe.scheduler.config, **config)
    monkeypatch.setattr(pipe.unet, "forward", lambda *a, **k: pytest.fail("the network was asked"))
    with pytest.raises(ValueError, match="the model must have been trained with prediction_type='v_prediction'"):
        pipe("a cat", num_inference_steps=3, output_type="latent")
