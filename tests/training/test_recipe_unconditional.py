"""The recipe "unconditional": from settings to a pipeline that Diffusers runs too."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import calotype
from calotype.training.recipes import recipe
from calotype.training.trainer import Trainer

from .made_pictures import assert_same_bits, assert_same_picture, make_pictures, settings_of, state_of, task_of, train
from .running import left

NETWORK = {
    "_class_name": "UNet2DModel", "sample_size": 8, "block_out_channels": [16, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "add_attention": False}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The config of a network that trains in seconds."""
    file = tmp_path_factory.mktemp("network") / "config.json"
    file.write_text(json.dumps(NETWORK))
    return file


@pytest.fixture
def told(network, pictures_folder, tmp_path):
    return {"model_config_name_or_path": str(network), "train_data_dir": pictures_folder, "output_dir": tmp_path / "out",
            "resolution": 16, "train_batch_size": 8, "max_train_steps": 60, "learning_rate": 4e-3}


@pytest.fixture(scope="module")
def trained(network, pictures_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unconditional") / "out"
    task = task_of("unconditional", model_config_name_or_path=str(network), train_data_dir=pictures_folder, output_dir=folder,
                   resolution=16, train_batch_size=8, max_train_steps=60, learning_rate=4e-3)
    before, _, after = train(task)
    return folder, before, after


def test_learns(trained):
    _, before, after = trained
    assert after < 0.25 * before  # measured: 0.14


def test_makes_the_same_pictures_here_and_in_diffusers(trained, diffusers):
    folder = trained[0]
    made = []
    for library in (calotype, diffusers):
        pipeline = library.DDPMPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline(2, generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images)
    assert made[0].shape == (2, 16, 16, 3)
    assert_same_picture(*made)


def test_goes_on_from_a_pipeline(trained, told, tmp_path):
    del told["model_config_name_or_path"], told["resolution"]
    task = task_of("unconditional", **told | {
        "pretrained_model_name_or_path": str(trained[0]), "max_train_steps": 1, "prediction_type": "v_prediction",
        "use_ema": True})
    unet = calotype.UNet2DModel.from_pretrained(trained[0] / "unet")
    assert_same_bits(state_of(task.pipeline.unet), state_of(unet))
    train(task)
    saved = calotype.DDPMPipeline.from_pretrained(tmp_path / "out")
    assert saved.scheduler.config.prediction_type == "v_prediction" == task.objective.prediction_type
    assert saved.scheduler.config.num_train_timesteps == 1000


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_writes_what_the_network_predicts(told, tmp_path, kind):
    task = task_of("unconditional", **told | {"prediction_type": kind, "max_train_steps": 1, "ddpm_num_steps": 50,
                                              "ddpm_beta_schedule": "squaredcos_cap_v2"})
    train(task)
    config = calotype.DDPMPipeline.from_pretrained(tmp_path / "out").scheduler.config
    assert (config.prediction_type, config.num_train_timesteps, config.beta_schedule) == (kind, 50, "squaredcos_cap_v2")


def test_levels_of_a_new_network(told):
    del told["model_config_name_or_path"]
    unet = task_of("unconditional", **told | {"block_out_channels": [32, 32, 64], "layers_per_block": 1,
                                              "attention_levels": 1}).pipeline.unet
    assert unet.config.down_block_types == ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")
    assert unet.config.up_block_types == ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    assert (unet.config.sample_size, unet.config.layers_per_block) == (16, 1)


def test_weights_to_begin_with_follow_from_the_seed_and_leave_others_random(told):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (state_of(task_of("unconditional", **told | {"seed": seed}).pipeline.unet) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert_same_bits(one, same)
    assert not torch.equal(one["0.conv_in.weight"], other["0.conv_in.weight"])


def test_pictures_of_many_shapes(told, tmp_path):
    told["train_data_dir"] = make_pictures(tmp_path / "wide", 8, (32, 16))
    task = task_of("unconditional", **told | {"aspect_buckets": True, "max_train_steps": 1, "train_batch_size": 4})
    assert task.data[0]["pixel_values"].shape == (3, 12, 20)
    train(task)


def test_refuses_what_cannot_be(told, tiny_folder, tmp_path):
    def refused(words, kind=ValueError, **changes):
        given = {name: value for name, value in (told | changes).items() if value is not None}
        with pytest.raises(kind, match=words):
            task_of("unconditional", **given)

    refused("resolution is needed to make a new network", resolution=None)
    refused("resolution is 15, but must be a multiple of 2.*14 or 16", resolution=15)
    refused(r"is a StableDiffusionPipeline, and has no UNet2DModel", model_config_name_or_path=None, resolution=None,
            pretrained_model_name_or_path=str(tiny_folder))
    (tmp_path / "empty").mkdir()
    refused("there are no pictures in", FileNotFoundError, train_data_dir=tmp_path / "empty")
    refused("prediction_type: is 'v', but input should be 'epsilon', 'v_prediction'", prediction_type="v")
    refused("split = 'tst'; there are test, train", split="tst")
    with pytest.raises(ValueError, match="either max_train_steps or num_train_epochs"):
        settings_of("unconditional", **told | {"num_train_epochs": 1})
    with pytest.raises(ValueError, match="either train_data_dir or dataset_name"):
        settings_of("unconditional", **told | {"dataset_name": "some/data"})


def test_a_run_in_its_own_data_does_not_learn_its_samples(tmp_path, monkeypatch):
    """Not when it goes on, not in a second run beside it, and not where the output is the data folder itself."""
    def run(folder, output, steps):
        monkeypatch.chdir(folder)
        settings = settings_of("unconditional", train_data_dir=".", output_dir=output, resolution=8, block_out_channels=[8],
                               layers_per_block=1, attention_levels=0, max_train_steps=steps, train_batch_size=2, seed=1,
                               num_validation_images=1, validation_inference_steps=1, validation_steps=1)
        task = recipe("unconditional")(settings)
        seen = [entry.row["file_name"] for entry in task.data.entries]
        Trainer(task, settings, lambda text: None).run()
        return seen, left(folder / output)

    folders = [tmp_path / name for name in ("whole", "stopped", "inside")]
    make_pictures(folders[0], 4, (8, 8))
    (folders[0] / "metadata.jsonl").unlink()
    for folder in folders[1:]:
        shutil.copytree(folders[0], folder)
    names = [f"0{i}.png" for i in range(4)]
    whole = run(folders[0], "dots", 3)
    assert whole[0] == names and len(list(folders[0].rglob("*.png"))) == 4 + 3
    assert run(folders[1], "dots", 1)[0] == names
    assert run(folders[1], "dots", 3) == whole
    assert run(folders[1], "deep/other", 3) == whole
    assert run(folders[2], ".", 1)[0] == names
    assert run(folders[2], ".", 3) == whole
