"""`calotype train`, as it is typed."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import calotype
from calotype.training.recipes import RECIPES, recipe

from .calling import call

pytest.importorskip("accelerate")
pytest.importorskip("pydantic")

SMALL = ["--block-out-channels", 8, "--block_out_channels", 16, "--layers-per-block", 1, "--attention-levels", 0]


@pytest.fixture
def pictures(here):
    """A folder of 24 pictures of 8 x 8 pixels."""
    corners = np.random.default_rng(0).integers(0, 256, (24, 2, 2, 3), dtype=np.uint8)
    (here / "pictures").mkdir()
    for i, corner in enumerate(corners):
        Image.fromarray(corner).resize((8, 8), Image.Resampling.BICUBIC).save(here / "pictures" / f"{i}.png")
    return here / "pictures"


@pytest.fixture
def config(pictures, here):
    """A YAML file of a small run."""
    settings = {
        "train_data_dir": str(pictures), "output_dir": str(here / "out"), "resolution": 8, "max_train_steps": 4,
        "block_out_channels": [8], "layers_per_block": 1, "attention_levels": 0, "num_validation_images": 1,
        "validation_inference_steps": 2, "learning_rate": 1e-3, "train_batch_size": 4}
    (here / "run.yaml").write_text(yaml.safe_dump(settings))
    return here / "run.yaml"


# -- help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_help_shows_every_setting(name):
    shown = call("train", name, "--help")
    for setting in recipe(name).Settings.model_fields:
        assert f"--{setting.replace('_', '-')} " in shown
    for heading in ("The run", "The optimisation", "[default: (adamw)]", "[default: (needed)]", "[default: (no)]"):
        assert heading in shown


def test_recipes_are_shown():
    shown = call("train", "--help")
    assert all(name in shown for name in RECIPES)
    assert "unconditional" in call("train", code=2)
    assert "unconditonal" in call("train", "unconditonal", code=2)


# -- what is typed ---------------------------------------------------------------------------------------------------


def test_options_on_top_of_a_file(config, here):
    call("train", "unconditional", "--config", config, "--max_train_steps", 2, "--no_center_crop", "--random-flip",
         "--adam_beta1=0.5", "--block_out_channels", 8, "--block-out-channels", 16, "--num-validation-images", 0)
    told = yaml.safe_load((here / "out" / "settings.yaml").read_text())
    assert (told["max_train_steps"], told["center_crop"], told["random_flip"], told["adam_beta1"]) == (2, False, True, 0.5)
    assert (told["block_out_channels"], told["train_batch_size"], told["learning_rate"]) == ([8, 16], 4, 0.001)
    assert not (here / "out" / "samples").exists()


def test_a_sampler_of_timesteps_with_its_options(config, here):
    call("train", "unconditional", "--config", config, "--max-train-steps", 1, "--num-validation-images", 0,
         "--timestep-sampler", "range", "--timestep-sampler-options", "begin=0.1", "--timestep_sampler_options", "end=5e-1",
         "--timestep-sampler-options=multiplier=3")
    told = yaml.safe_load((here / "out" / "settings.yaml").read_text())
    assert told["timestep_sampler_options"] == {"begin": 0.1, "end": 0.5, "multiplier": 3}


def test_settings_written_can_be_read(config, here):
    call("train", "unconditional", "--config", config, "--max-train-steps", 1)
    said = call("train", "unconditional", "--config", here / "out" / "settings.yaml", "--max-train-steps", 2)
    assert "going on from" in said and "2 steps; loss" in said


@pytest.mark.parametrize(("words", "error"), [
    (["--learning-rate", "-1"], "learning_rate: is -1.0, but input should be greater than 0"),
    (["--mixed-precision", "fp8"], "mixed_precision: is 'fp8', but input should be 'no', 'fp16' or 'bf16'"),
    (["--num-train-epochs", 3], "give either max_train_steps or num_train_epochs"),
    (["--dataset-name", "some/pictures"], "give either train_data_dir or dataset_name"),
    (["--optimizer", "adamv"], "optimizer: is 'adamv', but input should be"),
    (["--lr-scheduler", "cosin"], "did you mean 'cosine'?"),
    (["--timestep-sampler", "unifrom"], "did you mean 'uniform'?"),
    (["--resume-from-checkpoint", "checkpoint-9"], "resume_from_checkpoint is 'checkpoint-9', which is no checkpoint's folder"),
    (["--train-data-dir", "nowhere"], "nowhere"),
    (["--timestep-sampler", "earlier"], "timestep_sampler('earlier') needs multiplier: see timestep_sampler_options"),
    (["--timestep-sampler-options", "multiplier"], "is ['multiplier'], but must be written as name=value"),
    (["--timestep-sampler-options", "stratified=maybe"], "timestep_sampler_options: is 'maybe'"),
])
def test_what_cannot_be(config, here, words, error):
    said = call("train", "unconditional", "--config", config, *words, code=1)
    assert said.startswith("error: ") and error in said


@pytest.mark.parametrize(("words", "error"), [
    (["--train-batch-size", "many"], "train-batch-size"), (["--train_batch_sise", "4"], "train"),
    (["--config"], "config")])
def test_what_is_no_option_or_value(words, error):
    assert error in call("train", "unconditional", *words, code=2)


def test_what_is_missing(pictures):
    assert "output_dir: is needed (Where the result" in call("train", "unconditional", "--train-data-dir", pictures, code=1)
    said = call("train", "unconditional", "--train-data-dir", pictures, "--output-dir", "out", "--max-train-steps", 1, code=1)
    assert said.startswith("error: resolution is needed to make a new network")


def test_wrong_files(config, here):
    config.write_text(config.read_text() + "train_batchsize: 4\n")
    said = call("train", "unconditional", "--config", config, code=1)
    assert "train_batchsize: there is no such setting; did you mean 'train_batch_size'?" in said
    config.write_text("a: [")
    assert "run.yaml' is no YAML" in call("train", "unconditional", "--config", config, code=1)
    config.write_text("- a")
    assert "run.yaml' must hold settings" in call("train", "unconditional", "--config", config, code=1)
    assert "'nowhere.yaml'" in call("train", "unconditional", "--config", "nowhere.yaml", code=1)


def test_ctrl_c(config, here, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("calotype.training.trainer.Trainer.run", interrupted)
    assert call("train", "unconditional", "--config", config, code=130) == "stopped; nothing is half-written"


def test_a_missing_package_is_named(monkeypatch):
    for name in ("accelerate", "pydantic", "yaml"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            said = call("train", "unconditional", "--help", code=1)
            assert said == f"error: training needs {name}, which is not installed: `pip install calotype[train]`"


# -- what is done ----------------------------------------------------------------------------------------------------


def test_a_dry_run_trains_nothing(config, here):
    before = sorted(here.rglob("*"))
    said = call("train", "unconditional", "--config", config, "--dry-run")
    for words in ("pictures 24", "pixel_values [4, 3, 8, 8]", "UNet2DModel, 0.0", "steps 4, 0.7 times", "GiB", "so about"):
        assert words in said
    assert sorted(here.rglob("*")) == before
    said = call("train", "unconditional", "--config", config, "--dry-run", "--timestep-sampler", "unifrom", code=1)
    assert "did you mean 'uniform'?" in said


def test_from_pictures_to_a_picture(config, here, diffusers):
    said = call("train", "unconditional", "--config", config, "--use_ema", *SMALL)
    assert "4 steps; loss" in said and "in the first tenth of them" in said
    assert Image.open(here / "out" / "samples" / "step-000004.png").size == (8, 8)
    made = []
    for library in (calotype, diffusers):
        pipeline = library.DDPMPipeline.from_pretrained(here / "out")
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        made.append(pipeline(generator=generator, num_inference_steps=3, output_type="np").images)
    assert np.abs(made[0] - made[1]).max() < 1e-5
    call("train", "unconditional", "--config", config, *SMALL, "--pretrained-model-name-or-path", here / "out",
         "--output-dir", here / "on", "--max_train_steps", 1)
    said = call("train", "unconditional", "--config", config, "--pretrained-model-name-or-path", here / "out",
                "--resolution", 16, code=1)
    assert "resolution is 16, but the network" in said


def test_a_launcher_starts_one_run_of_two_processes(config):
    """Without a GPU too, where nothing but the launcher's environment tells that there are two."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "calotype",
               "train", "unconditional", "--config", str(config), *map(str, SMALL), "--shard"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("4 steps; loss") == 1


def test_text_to_image(tiny, pictures, here, diffusers):
    lines = [f'{{"file_name": "{i}.png", "text": "picture {i}"}}' for i in range(24)]
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    words = ["--pretrained-model-name-or-path", tiny, "--train-data-dir", pictures, "--resolution", 32,
             "--output-dir", here / "out", "--train-batch-size", 2, "--validation-prompt", "a cat", "--num-validation-images", 1,
             "--validation-inference-steps", 1]
    for max_train_steps, said in ((1, "encoding 24 pictures"), (2, "going on from")):
        assert said in call("train", "text_to_image", *words, "--max-train-steps", max_train_steps)
    before, after = (calotype.StableDiffusionPipeline.from_pretrained(folder) for folder in (tiny, here / "out"))
    changed = {part: any(bool((one != other).any()) for one, other in
                         zip(getattr(before, part).parameters(), getattr(after, part).parameters(), strict=True))
               for part in ("unet", "vae", "text_encoder")}
    assert changed == {"unet": True, "vae": False, "text_encoder": False}
    assert len(list((here / "out" / "samples").iterdir())) == 2
    assert diffusers.StableDiffusionPipeline.from_pretrained(here / "out", safety_checker=None).unet is not None


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "calotype", "--version"], text=True, capture_output=True, check=True)
    assert done.stdout == f"calotype {calotype.__version__}\n"
