"""The recipe "lora": an adapter alone is trained and saved, for pipelines here and in Diffusers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import calotype
from calotype.models.lora import lora_parameters, lora_state_dict, remove_lora
from calotype.training.trainer import Trainer

from .made_pictures import assert_same_bits, assert_same_picture, state_of, task_of, train

FILE = "pytorch_lora_weights.safetensors"


def adapter(task):
    return {f"{part}.{key}": value.clone() for part in ("unet", "text_encoder")
            if lora_parameters(model := getattr(task.pipeline, part)) for key, value in lora_state_dict(model).items()}


@pytest.fixture
def told(tiny_folder, pictures_folder, tmp_path):
    return {"pretrained_model_name_or_path": str(tiny_folder), "train_data_dir": pictures_folder, "output_dir": tmp_path / "out",
            "train_batch_size": 8, "max_train_steps": 3, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def trained(tiny_folder, pictures_folder, tmp_path_factory):
    """A run of some length, of the UNet and the text encoder, and a picture that its pipeline made at the end."""
    folder = tmp_path_factory.mktemp("lora") / "out"
    task = task_of("lora", pretrained_model_name_or_path=str(tiny_folder), train_data_dir=pictures_folder, output_dir=folder,
                   train_batch_size=8, max_train_steps=60, learning_rate=3e-2, train_text_encoder=True, rank=8, lora_alpha=12.0,
                   lora_targets=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"])
    before, _, after = train(task)
    task.denoiser.eval()
    return task, before, after, picture(task.pipeline)


def picture(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a red disc", generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images


def test_learns(trained):
    _, before, after, _ = trained
    assert after < 0.8 * before  # measured: 0.64


def test_makes_the_same_pictures_wherever_it_is_loaded(trained, tiny_folder, diffusers):
    pytest.importorskip("peft")
    task, _, _, made = trained
    for library in (calotype, diffusers):
        pipeline = library.StableDiffusionPipeline.from_pretrained(
            tiny_folder, safety_checker=None, requires_safety_checker=False)
        plain = picture(pipeline)
        assert abs(plain - made).max() > 0.01
        pipeline.load_lora_weights(str(task.settings.output_dir))
        assert_same_picture(made, picture(pipeline))


@pytest.mark.parametrize("with_text", [False, True])
def test_the_adapter_alone_changes(told, tiny_folder, with_text):
    task = task_of("lora", **told | {"train_text_encoder": with_text, "rank": 2, "lora_dropout": 0.1})
    before, parts = adapter(task), ("unet", "text_encoder", "vae")
    trains = {id(p) for p in task.denoiser.parameters() if p.requires_grad}
    assert trains == {id(p) for part in parts[:2] for p in lora_parameters(getattr(task.pipeline, part))}
    train(task)
    after = adapter(task)
    assert before.keys() == after.keys() and all(not torch.equal(before[key], after[key]) for key in before)
    assert any(key.startswith("text_encoder.") for key in after) == with_text
    saved = load_file(told["output_dir"] / FILE)
    assert sorted(value.shape for value in saved.values()) == sorted(value.shape for value in after.values())
    assert {key.split(".")[0] for key in saved} == {"unet", "text_encoder"} if with_text else {"unet"}
    for part in parts[:2]:
        remove_lora(getattr(task.pipeline, part))
    base = calotype.StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    assert_same_bits(*(state_of(*(getattr(pipeline, part) for part in parts)) for pipeline in (base, task.pipeline)))
    assert [file.name for file in told["output_dir"].glob("*.safetensors")] == [FILE]


def test_the_average_of_the_adapter_is_saved(told):
    task = task_of("lora", **told | {"use_ema": True, "max_train_steps": 4})
    trainer = Trainer(task, task.settings, lambda text: None)
    trainer.run()
    last = lora_state_dict(task.pipeline.unet)
    with trainer.result():
        averaged = {key: value.clone() for key, value in lora_state_dict(task.pipeline.unet).items()}
    saved = load_file(told["output_dir"] / FILE)
    for key, value in averaged.items():
        assert torch.equal(saved[f"unet.{key}"], value) and not torch.equal(value, last[key])


def test_refuses_what_cannot_be(told, tmp_path):
    def refused(words, kind=ValueError, **changes):
        with pytest.raises(kind, match=words):
            task_of("lora", **told | changes)

    refused(r"no linear layer or convolution of UNet2DConditionModel is called \['to_z'\]; their names end in .*to_q",
            lora_targets=["to_z"])
    refused("rank: is 0, but input should be greater than or equal to 1", rank=0)
    refused("resolution is 15, but must be a multiple of 2", resolution=15)
    refused("split = 'tst'; there are test, train", split="tst")
    (tmp_path / "empty").mkdir()
    refused("there are no pictures in", FileNotFoundError, train_data_dir=tmp_path / "empty")
