"""Weights that rest on the CPU until they are used: the same pictures, and never more on the device than was said.

The device is the CPU too. A weight at rest is NaN here, so that whatever works with one that was not let in shows.
"""

from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from resting import Recorder

import calotype
from calotype.depth import DPTForDepthEstimation
from calotype.models.attention import TransformerBlock
from calotype.runtime import offload

from .conftest import make_tiny, seeded
from .test_class_conditional import dit
from .test_image_tasks import TASKS, ours


def recorded(pipe, mode):
    mover = Recorder()
    offload.offload(pipe._models(), mode, mover)
    return mover


def draw(pipe, **call):
    return pipe(**{"num_inference_steps": 3, "generator": seeded(0)[0], "output_type": "np", **call}).images


def parameters(pipe):
    return {name: weight.clone() for i, model in enumerate(pipe._models()) for name, weight in model.state_dict(
        prefix=f"{i}.").items()}


def unconditional():
    torch.manual_seed(0)
    unet = calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=4,
        down_block_types=("SkipDownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()
    pipe = calotype.DDPMPipeline(unet, calotype.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def checked():
    """Stable Diffusion with a safety checker that finds nothing."""
    tiny = make_tiny()
    torch.manual_seed(5)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
              "patch_size": 8}
    checker = calotype.StableDiffusionSafetyChecker(vision_config=vision, projection_dim=8).eval()
    checker.concept_embeds_weights.data.fill_(2.0), checker.special_care_embeds_weights.data.fill_(2.0)
    pipe = calotype.StableDiffusionPipeline(**{
        **tiny.components, "safety_checker": checker, "requires_safety_checker": False,
        "feature_extractor": calotype.CLIPImageProcessor(size=32, crop_size=32)})
    pipe.set_progress_bar_config(disable=True)
    return pipe


CASES = {
    "unconditional": (unconditional, {"batch_size": 2}),
    "text": (make_tiny, {"prompt": ["a cat", "a dog"], "negative_prompt": "fog", "clip_skip": 1}),
    "checked": (checked, {"prompt": "a cat"}),
    "classes": (lambda: dit(calotype), {"class_labels": [3, 5]}),
    **{name: (lambda name=name: copy.deepcopy(ours(name)), TASKS[name].calls[0]) for name in TASKS},
}


# -- the same pictures, in less memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", offload.MODES)
@pytest.mark.parametrize("name", CASES)
def test_same_pictures(name, mode):
    make, call = CASES[name]
    pipe = make()
    before, expected = parameters(pipe), draw(pipe, **call)
    mover = recorded(pipe, mode)
    for _ in range(2):  # the second time, blocks are fetched ahead from the beginning
        assert np.array_equal(draw(pipe, **call), expected)
    lasting = mode == "layers" or "UnCLIP" in name  # a normaliser is never called
    nested = 2 if name == "unconditional" or any(
        isinstance(part, TransformerBlock) for model in pipe._models() for part in model.modules()) else 1
    assert mover.most <= lasting + (1 if mode == "model" else nested + 1)
    offload.restore(pipe._models())
    after = parameters(pipe)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert np.array_equal(draw(pipe, **call), expected)


def test_a_generation_moves_each_model_once(tiny):
    mover = recorded(tiny, "model")
    draw(tiny, prompt="a cat", num_inference_steps=5)
    assert len(mover.fetched) == 1 + 3  # nothing, which is there all the time; the text encoder, the UNet, the autoencoder
    draw(tiny, prompt="a cat")
    assert len(mover.fetched) == 1 + 6


@pytest.mark.parametrize("mode", offload.MODES)
def test_streams_previews_and_large_pictures(tiny, mode):
    """The autoencoder is asked in the middle of a generation, and works in strips."""
    tiny.enable_vae_tiling()
    expected = draw(tiny, prompt="a cat", height=32, width=48)
    mover = recorded(tiny, mode)
    for step in tiny.stream("a cat", num_inference_steps=3, generator=seeded(0)[0], output_type="np", height=32, width=48):
        assert step.preview()[0].size == (24, 16)
    assert np.array_equal(step.output.images, expected)
    assert mover.most <= (1 if mode == "model" else 4)


def test_streams_take_turns(tiny):
    expected = [draw(tiny, prompt=prompt) for prompt in ("a cat", "a dog")]
    for mode in offload.MODES:
        mover = recorded(tiny, mode)
        streams = [tiny.stream(prompt, num_inference_steps=3, generator=seeded(0)[0], output_type="np")
                   for prompt in ("a cat", "a dog")]
        last = list(zip(*streams, strict=True))[-1]
        assert all(np.array_equal(step.output.images, wanted) for step, wanted in zip(last, expected, strict=True))
        assert mover.most <= (1 if mode == "model" else 4)
        offload.restore(tiny._models())


def test_models_of_transformers_come_whole():
    """How their blocks are called is not ours to say."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    estimator = DPTForDepthEstimation(transformers.DPTForDepthEstimation(transformers.DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8)).eval())
    tiny = make_tiny(in_channels=5)
    parts = {name: getattr(tiny, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    pipe = calotype.StableDiffusionDepth2ImgPipeline(**parts, depth_estimator=estimator, feature_extractor=None)
    pictures, mover = torch.randn(1, 3, 32, 32), Recorder()
    with torch.no_grad():
        expected = estimator(pictures).predicted_depth
        pipe.enable_sequential_cpu_offload(device="cpu")
        assert torch.equal(estimator(pictures).predicted_depth, expected)
        assert estimator.model._forward_pre_hooks == {}  # it is there, all of it
        pipe.offload(None)
        offload.offload([estimator], "layers", mover, undivided=[estimator])
        assert torch.equal(estimator(pictures).predicted_depth, expected)
    assert len(mover.fetched) == 2  # what is there all the time, which is nothing, and all the rest


def test_under_inference_mode(tiny):
    expected = draw(tiny, prompt="a cat")
    for mode in offload.MODES:
        tiny.offload(mode, device="cpu")
        with torch.inference_mode():
            assert np.array_equal(draw(tiny, prompt="a cat"), expected)
        assert np.array_equal(draw(tiny, prompt="a cat"), expected)


def test_a_failure_leaves_it_usable(tiny):
    expected = draw(tiny, prompt="a cat")
    recorded(tiny, "layers")
    work, calls = tiny.unet.mid_block.resnets[1].conv1.forward, []

    def fail(x):
        calls.append(x)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return work(x)

    tiny.unet.mid_block.resnets[1].conv1.forward = fail
    with pytest.raises(KeyboardInterrupt):
        draw(tiny, prompt="a cat")
    assert np.allclose(draw(tiny, prompt="a cat"), expected, atol=1e-5)  # by plain calls, since a function was replaced


# -- as pipelines have it ----------------------------------------------------------------------------------------------------


def test_where_it_works(tiny):
    """Models say that they are on the device, and at rest are the very tensors that they were."""

    class Elsewhere(offload.Mover):
        def fetch(self, resting):
            weights = [one.clone() for one in resting]
            return lambda: weights

    def places():
        return [weight.data_ptr() for model in (tiny.unet, tiny.vae) for weight in model.parameters()]

    at_rest, of_unet = places(), len(list(tiny.unet.parameters()))
    offload.offload(tiny._models(), "model", Elsewhere(torch.device("cuda:3")))
    assert {tiny.device, tiny._execution_device, tiny.unet.device, tiny.vae.device} == {torch.device("cuda:3")}
    assert places() == at_rest
    tiny.unet.conv_in(torch.zeros(1, 4, 8, 8))
    assert not set(places()[:of_unet]) & set(at_rest)
    assert places()[of_unet:] == at_rest[of_unet:]
    tiny.vae.decoder.conv_in(torch.zeros(1, 4, 8, 8))
    assert places()[:of_unet] == at_rest[:of_unet]
    assert not set(places()[of_unet:]) & set(at_rest)
    assert tiny.offload(None) is tiny
    assert tiny.device == torch.device("cpu")
    assert places() == at_rest


@pytest.mark.parametrize("call", [
    lambda pipe: pipe.to("cpu"), lambda pipe: pipe.to(torch.float16), lambda pipe: pipe.unet.half(),
    lambda pipe: pipe.load_textual_inversion(torch.zeros(16), "<cat>"), lambda pipe: pipe.unload_textual_inversion()])
def test_what_cannot_be_done_meanwhile(tiny, call):
    tiny.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match=r"is offloaded \('layers', to cpu\).*call offload\(None\)"):
        call(tiny)
    tiny.offload("none")
    call(tiny)


def test_bad_calls(tiny, monkeypatch):
    with pytest.raises(ValueError, match="mode is 'layer', but must be 'model', 'layers', 'none' or None; did you mean 'layers'"):
        tiny.offload("layer")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    with pytest.raises(ValueError, match="there is no accelerator here"):
        tiny.enable_model_cpu_offload()
    with pytest.raises(ValueError, match="device is 'cuda:77', which there is not here"):
        tiny.enable_model_cpu_offload(gpu_id=77)
    with pytest.raises(ValueError, match="gpu_id is 1 and device is 'cuda:0'"):
        tiny.enable_sequential_cpu_offload(gpu_id=1, device="cuda:0")
    tiny.to("cpu")  # nothing was changed


def test_from_one_way_to_the_other_and_shared(tiny):
    expected = draw(tiny, prompt="a cat")
    tiny.offload("model", device="cpu")
    other = calotype.StableDiffusionImg2ImgPipeline.from_pipe(tiny)
    with pytest.raises(ValueError, match="is offloaded"):
        other.to("cpu")
    other.offload("layers", device="cpu")
    assert np.array_equal(draw(tiny, prompt="a cat"), expected)
    tiny.offload(None)
    other.to("cpu")


def test_saving(tiny, tmp_path):
    expected = draw(tiny, prompt="a cat")
    tiny.offload("layers", device="cpu")
    draw(tiny, prompt="a cat")
    tiny.save_pretrained(tmp_path)
    again = calotype.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert np.array_equal(draw(again, prompt="a cat"), expected)


def test_a_deep_copy_is_a_common_pipeline(tiny):
    expected = draw(tiny, prompt="a cat")
    tiny.offload("layers", device="cpu")
    draw(tiny, prompt="a cat")
    copied = copy.deepcopy(tiny).to("cpu")
    for weight in tiny.unet.parameters():
        weight.data.zero_()
    assert np.allclose(draw(copied, prompt="a cat"), expected, atol=1e-6)
    draw(copied, prompt="a cat")
    assert not any(module._forward_pre_hooks for module in copied.unet.modules())


def test_an_overflow_is_decoded_again(tiny, monkeypatch):
    """By a copy of the autoencoder, in single precision."""
    tiny.to(torch.bfloat16)
    tiny.offload("model", device="cpu")
    decode = calotype.AutoencoderKL.decode

    def overflowing(self, z, *args, **options):
        made = decode(self, z, *args, **options)
        made.sample *= torch.inf if self.dtype is torch.bfloat16 else 1
        return made

    monkeypatch.setattr(calotype.AutoencoderKL, "decode", overflowing)
    assert np.isfinite(draw(tiny, prompt="a cat")).all()


def test_nothing_keeps_what_nobody_has():
    pipe = make_tiny()
    pipe.offload("layers", device="cpu")
    draw(pipe, prompt="a cat")
    gone = weakref.ref(pipe.unet)
    del pipe
    gc.collect()
    assert gone() is None
