"""What cannot be is refused before the work: no picture and no text is encoded, and nothing is written."""

from __future__ import annotations

import json
import sys

import pytest

import calotype
from calotype.training.estimate import estimate
from calotype.training.recipes import RECIPES
from calotype.training.trainer import Trainer

from .made_pictures import settings_of, task_of

pytest.importorskip("accelerate")
PRIOR = {"with_prior_preservation": True, "class_prompt": "a disc"}

IN_EVERY_RECIPE = [
    ({"lr_scheduler": "cosin"}, "did you mean 'cosine'"),
    ({"lr_scheduler": "inverse_sqrt"}, "say lr_warmup_steps too"),
    ({"lr_scheduler": "polynomial", "learning_rate": 1e-8}, "learning_rate must be greater"),
    ({"lr_warmup_steps": 2}, "'constant' has no warm-up"),
    ({"optimizer": "lion"}, "optimizer: is 'lion'"),
    ({"optimizer": "sgd", "use_8bit_adam": True}, "asks for the optimizer 'adamw8bit', and optimizer is 'sgd'"),
    ({"optimizer": "adamw8bit"}, "pip install bitsandbytes"),
    ({"use_8bit_adam": True}, "pip install bitsandbytes"),
    ({"report_to": "wandb"}, "pip install wandb"),
    ({"resume_from_checkpoint": "checkpoint-9"}, "which is no checkpoint's folder"),
    ({"output_dir": "a file"}, "is a file"),
    ({"output_dir": "a file/out"}, "is a file"),
    ({"shard": True}, "shard divides weights among processes, and there is one"),
    ({"seed": 2**64}, "seed: is 18446744073709551616"),
    ({"validation_seed": 2**64}, "validation_seed: is"),
    ({"resolution": 15}, "resolution is 15"),
    ({"max_train_steps": None}, "give either max_train_steps or num_train_epochs"),
]
OF_DENOISERS = [
    ({"timestep_sampler": "unifrom"}, "did you mean 'uniform'"),
    ({"timestep_sampler": "earlier"}, "needs multiplier: see timestep_sampler_options"),
    ({"timestep_sampler": "range", "timestep_sampler_options": {"begin": 0.5, "end": 0.2, "multiplier": 2}}, "0 <= begin < end"),
    ({"timestep_sampler_options": {"mean": 1}}, "takes no argument 'mean'"),
    ({"timestep_sampler": "mode", "timestep_sampler_options": ["scale"]}, "name=value, which 'scale' is not"),
    ({"timestep_sampler": "log_normal"}, "draws sigmas of EDM"),
    ({"validation_inference_steps": 5000, "num_validation_images": 1, "validation_prompt": ["a disc"]},
     "validation_inference_steps is 5000"),
]
OF_DATA = [({"train_data_dir": "nowhere"}, "nowhere"), ({"split": "tst"}, "there are test, train"),
           ({"dataset_name": "a/b"}, "give either train_data_dir or dataset_name")]
OF_ADAPTERS = [({"lora_targets": ["to_z"]}, r"to_z"), ({"rank": 0}, "rank: is 0")]
ONES_OWN = {
    "unconditional": [({"model_config_name_or_path": "nowhere.json"}, "nowhere.json"),
                      ({"ddpm_beta_schedule": "x"}, "ddpm_beta")],
    "text-to-image": [({"new_weights": ["text_encoder"]}, "train_text_encoder must be true"),
                      ({"unet_config": "x.json"}, "name it there"),
                      ({"new_weights": ["unet"], "unet_config": "nowhere.json"}, "nowhere.json")],
    "lora": OF_ADAPTERS,
    "dreambooth": [
        ({"instance_data_dir": "nowhere"}, "nowhere"), ({"instance_prompt": ""}, "instance_prompt"),
        ({"adapter": True, "lora_targets": ["to_z"]}, "to_z"), ({"with_prior_preservation": True}, "needs class_prompt"),
        (PRIOR | {"class_data_dir": "a file"}, "class_data_dir is .* is a file"),
        (PRIOR | {"validation_inference_steps": 5000}, "validation_inference_steps is 5000")],
    "textual-inversion": [({"initializer_token": "red dog"}, "is 2 tokens"),
                          ({"placeholder_token": "heart</w>"}, "a token already"),
                          ({"train_text_encoder": True}, "train_text_encoder cannot be")],
    "autoencoder": [({"perceptual_weight": 1.0, "perceptual_model": "nowhere"}, "nowhere"),
                    ({"model_config_name_or_path": "x.json"}, "train both|not both"), ({"validation_split": "tst"}, "there are")]}


@pytest.fixture
def base(tiny_folder, pictures_folder, tmp_path, monkeypatch):
    """Settings by recipe with which each could run, in a folder where there is a file called "a file"."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "a file").write_text("")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: False)
    common = {"output_dir": tmp_path / "here" / "out", "train_batch_size": 4, "max_train_steps": 1}
    guided = {"pretrained_model_name_or_path": str(tiny_folder)}
    data = {"train_data_dir": pictures_folder}
    return {
        "unconditional": common | data | {
            "resolution": 8, "block_out_channels": [8, 8], "layers_per_block": 1, "attention_levels": 0},
        "text-to-image": common | guided | data, "lora": common | guided | data,
        "dreambooth": common | guided | {"instance_data_dir": pictures_folder, "instance_prompt": "sks disc"},
        "textual-inversion": common | guided | data | {"placeholder_token": "<x>", "initializer_token": "heart"},
        "autoencoder": common | guided | data | {"train_parts": "decoder"}}


@pytest.fixture
def work(monkeypatch):
    """A list of the networks that were called."""
    called = []

    def watch(kind, method):
        plain = getattr(kind, method)

        def watched(self, *given, **named):
            called.append(kind.__name__)
            return plain(self, *given, **named)
        monkeypatch.setattr(kind, method, watched)

    for kind in (calotype.CLIPTextModel, calotype.UNet2DConditionModel, calotype.UNet2DModel):
        watch(kind, "forward")
    watch(calotype.AutoencoderKL, "encode")
    watch(calotype.AutoencoderKL, "decode")
    return called


OF_TRAINERS = {"optimizer", "use_8bit_adam", "report_to", "resume_from_checkpoint", "output_dir", "shard"}
"""Settings that do not change what a task is made of: one task will do to try them on."""


def begin(name, told, task=None, **changes):
    settings = settings_of(name, **told | changes)
    if task is not None and changes.keys() <= OF_TRAINERS:
        task.settings = settings
    else:
        task = task_of(name, **told | changes)
    return Trainer(task, settings, lambda text: None)


@pytest.mark.parametrize("name", RECIPES)
def test_what_cannot_be_is_refused_before_the_work(base, work, name, tmp_path):
    told = base[name]
    cases = [*IN_EVERY_RECIPE, *(OF_DENOISERS if name != "autoencoder" else ()),
             *(OF_DATA if "train_data_dir" in told else ()), *ONES_OWN[name]]
    task = task_of(name, **told)
    known = type(task.settings).model_fields
    for changes, said in cases:
        given = {key: value for key, value in changes.items() if key in known or key != "validation_prompt"}
        with pytest.raises((ValueError, TypeError, OSError, ImportError), match=said):
            begin(name, told, task, **given)
        assert work == [], changes
        assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["a file"], changes


@pytest.mark.parametrize("name", ["lora", "dreambooth"])
def test_a_run_that_was_another_is_refused_before_the_work(base, work, name):
    told = base[name] | {"cache_latents": False}
    begin(name, told).run()
    work.clear()
    for changes, said in (({"learning_rate": 0.5}, "learning_rate was .* and is 0.5"),
                          ({"noise_offset": 0.1}, "noise_offset was 0.0 and is 0.1")):
        with pytest.raises(ValueError, match=said):
            begin(name, told, cache_latents=True, **changes)
    weights = told["output_dir"] / "checkpoint-1" / "denoiser.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"denoiser\.safetensors' cannot be read as part of a checkpoint"):
        begin(name, told, cache_latents=True)
    assert work == []


def test_a_dry_run_refuses_the_same(base, work):
    for changes, said in (({"optimizer": "adamw8bit"}, "bitsandbytes"),
                          ({"resume_from_checkpoint": "x"}, "no checkpoint's folder"),
                          ({"output_dir": "a file"}, "is a file"), ({"report_to": "wandb"}, "wandb")):
        with pytest.raises((ValueError, OSError, ImportError), match=said):
            list(estimate(task_of("unconditional", **base["unconditional"] | changes),
                          settings_of("unconditional", **base["unconditional"] | changes)))
    assert work == []


def test_a_checkpoint_that_does_not_know_a_setting_had_its_default(base):
    told = base["unconditional"]
    run = begin("unconditional", told)
    run.run()
    file = told["output_dir"] / "checkpoint-1" / "training.json"
    content = json.loads(file.read_text())
    del content["settings"]["timestep_sampler_options"]
    file.write_text(json.dumps(content))
    assert begin("unconditional", told, max_train_steps=2).run().steps == 2
    with pytest.raises(ValueError, match="timestep_sampler_options was"):
        begin("unconditional", told, max_train_steps=3, timestep_sampler_options={"stratified": True})
