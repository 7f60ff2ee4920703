"""`calotype info` and `calotype schedulers`."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from PIL import Image

from calotype.contents import content_hash

from .calling import EMOJI, call, rewrite


def test_info():
    import calotype

    facts = json.loads(call("info", "calotype/emoji", "--json"))
    assert (facts["class"], facts["where"], facts["picture_size"]) == ("StableDiffusionPipeline", "bundled", [128, 128])
    assert facts["scheduler"]["_class_name"] == "PNDMScheduler"
    unet = next(part for part in facts["components"] if part["name"] == "unet")
    assert unet["parameters"] == calotype.UNet2DConditionModel.from_pretrained(EMOJI / "unet").num_parameters()
    assert unet["dtypes"] == ["F16"]
    assert unet["bytes"] == sum(path.stat().st_size for path in (EMOJI / "unet").iterdir())
    shown = call("info", "calotype/emoji")
    for words in ("19,180,484", "F16", "38.4 MB", "128 x 128", "PNDMScheduler", facts["content_hash"]):
        assert words in shown


def test_info_of_a_picture(apple):
    said = call("info", apple)
    for words in ("prompt: a red apple", "seed: 7", "scheduler: DPMSolverMultistepScheduler, ", "model: calotype/emoji"):
        assert words in said
    rewrite(apple, prompt="a\x1b[2J\x9bcat", seed=0)
    said = call("info", apple)
    assert "\\x1b[2J\\x9bcat" in said and "seed: 0" in said
    assert json.loads(call("info", apple, "--json"))["seed"] == 0
    Image.new("RGB", (8, 8)).save("other.png")
    assert "other.png': no recipe in it" in call("info", "other.png", code=1)
    assert call("info", "nowhere.png", code=1) == "error: No such file or directory: 'nowhere.png'"


def test_info_of_devices():
    facts = json.loads(call("info", "--device", "--json"))
    assert {"auto", "native", "math"} <= set(facts["devices"]["cpu"]["attention"])
    assert "attention by auto, native" in call("info", "--device")
    assert "give a model, a picture, or --device" in call("info", code=2)


@pytest.mark.parametrize(("part", "name"), [("vae", "AutoencoderKL"), ("text_encoder", "CLIPTextModel"),
                                            ("scheduler", "PNDMScheduler")])
def test_info_of_one_part(part, name):
    facts = json.loads(call("info", EMOJI / part, "--json"))
    assert facts["class"] == name
    assert name in call("info", EMOJI / part)


def test_info_of_what_is_none(tmp_path):
    (tmp_path / "words.txt").write_text("x")
    assert "is no checkpoint" in call("info", tmp_path, code=1)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 100)
    assert "diffusion_pytorch_model.safetensors' is damaged" in call("info", tmp_path, code=1)


def test_content_is_hashed_wherever_it_is(tmp_path):
    copy = shutil.copytree(EMOJI, tmp_path / "x")
    (copy / "README.md").write_text("words")
    (copy / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"unused")
    os.utime(copy / "model_index.json", (1, 1))
    assert content_hash(copy) == content_hash(EMOJI)
    with (copy / "vae" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert content_hash(copy) != content_hash(EMOJI)


def test_schedulers():
    said = call("schedulers")
    assert "EulerDiscreteScheduler Euler's method" in said
    assert "First order. [euler] " in said
