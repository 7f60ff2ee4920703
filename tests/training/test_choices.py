"""Every choice that a setting offers does run, with what goes with it, or says what is missing here."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import yaml

import calotype
from calotype.training.recipes import RECIPES, recipe
from calotype.training.timesteps import SAMPLERS
from calotype.training.trainer import Trainer

from .made_pictures import settings_of, task_of

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SAMPLER_OPTIONS = {
    "range": {"begin": 0.1, "end": 0.4, "multiplier": 3}, "earlier": {"multiplier": 2, "portion": 0.5},
    "later": {"multiplier": 2}, "bounded": {"low": 0.25, "high": 0.5}, "mode": {"scale": 0.5}, "shifted": {"shift": 2},
    "logit_normal": {"mean": 1, "std": 0.5, "stratified": True}}
GO_WITH = {("lr_scheduler", "inverse_sqrt"): {"lr_warmup_steps": 1},
           ("new_weights", "text_encoder"): {"train_text_encoder": True}}
MAY_BE_MISSING = {("optimizer", "adamw8bit"): "bitsandbytes", ("report_to", "wandb"): "wandb",
                  ("report_to", "tensorboard"): "tensorboard", ("mixed_precision", "fp16"): "fp16"}


def choices_of(name: str) -> dict[str, list[Any]]:
    """The settings of a recipe that are one of a few words, or a list of such, and the words."""
    found = {}
    for key, field in recipe(name).Settings.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        if words := [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]:
            found[key] = words
    return found


SHARED = set(choices_of("unconditional")) & set(choices_of("lora"))  # of code that all recipes share: one tries it
TRIED = [(name, key, word) for name in RECIPES for key, words in choices_of(name).items()
         if key not in SHARED or name == "unconditional" for word in words if not (name == "autoencoder" and key in SHARED)]


@pytest.fixture
def told(tiny_folder, pictures_folder, tmp_path):
    def of(name: str) -> dict[str, Any]:
        common = {"output_dir": tmp_path / "out", "train_data_dir": pictures_folder, "max_train_steps": 1, "train_batch_size": 2}
        small = {"resolution": 8, "block_out_channels": [8], "layers_per_block": 1, "attention_levels": 0}
        word = {"placeholder_token": "<x>", "initializer_token": "heart"} if name == "textual-inversion" else {}
        return common | (small if name == "unconditional" else {"pretrained_model_name_or_path": str(tiny_folder)} | word)
    return of


def run(name, given):
    return Trainer(task_of(name, **given), settings_of(name, **given), lambda text: None).run()


@pytest.mark.parametrize(("name", "key", "word"), TRIED)
def test_every_choice_runs(told, name, key, word):
    is_list = isinstance(settings_of(name, **told(name)).model_dump()[key], list)
    given = told(name) | {key: [word] if is_list else word} | GO_WITH.get((key, word), {})
    missing = MAY_BE_MISSING.get((key, word))
    try:
        assert run(name, given).steps == 1
    except (ImportError, ValueError) as error:
        if missing is None or missing not in str(error):
            raise


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "log_normal"])
def test_every_sampler_of_timesteps_runs(told, sampler):
    described = str(recipe("lora").Settings.model_fields["timestep_sampler"].description)
    assert sampler in described
    options = SAMPLER_OPTIONS.get(sampler, {})
    given = told("unconditional") | {"timestep_sampler": sampler, "timestep_sampler_options": options}
    run("unconditional", given)
    written = yaml.safe_load((given["output_dir"] / "settings.yaml").read_text())
    assert written["timestep_sampler_options"] == options
    assert settings_of("unconditional", **written) == settings_of("unconditional", **given)


def test_options_reach_the_sampler(told):
    given = told("unconditional") | {"timestep_sampler": "bounded", "timestep_sampler_options": ["low=0.25", "high=0.5"]}
    task = task_of("unconditional", **given)
    timesteps = task.objective.noised(torch.zeros(200, 3, 8, 8), torch.Generator().manual_seed(0)).timesteps
    assert 250 <= timesteps.min() < 260 and 490 < timesteps.max() < 500


@pytest.mark.parametrize(("scheduler", "settings"), [
    ("FlowMatchEulerDiscreteScheduler", {"prediction_type": "flow_prediction"}),
    ("EDMEulerScheduler", {"timestep_sampler": "log_normal"})])
def test_choices_of_other_kinds_of_models_run(told, tmp_path, scheduler, settings):
    unet = task_of("unconditional", **told("unconditional")).pipeline.unet
    calotype.DDPMPipeline(unet, getattr(calotype, scheduler)()).save_pretrained(tmp_path / "begun")
    given = {key: told("unconditional")[key] for key in ("output_dir", "train_data_dir", "max_train_steps")}
    assert run("unconditional", given | settings | {"pretrained_model_name_or_path": str(tmp_path / "begun")}).steps == 1
