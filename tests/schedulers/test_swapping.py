"""Any scheduler in the place of another: what a config carries over, what it keeps, and what it must not bring."""

from __future__ import annotations

import json
import logging

import pytest

from calotype import config as config_module
from calotype.schedulers import ALL

from .cases import make
from .plans import PLANS, every_class, with_betas

NAMES = sorted(PLANS.keys() - {"SCMScheduler", "UnCLIPScheduler"})  # whose models are like no others
every_name = pytest.mark.parametrize("one", NAMES)
UNUSUAL = {
    "num_train_timesteps": 500, "beta_start": 0.001, "beta_end": 0.01, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "steps_offset": 3, "timestep_spacing": "trailing", "clip_sample": "flip",
    "set_alpha_to_one": "flip", "skip_prk_steps": True, "thresholding": True, "sample_max_value": 1.5,
    "rescale_betas_zero_snr": True, "variance_type": "fixed_large", "use_karras_sigmas": True, "clip_sample_range": 2.0,
    "final_sigmas_type": "sigma_min", "sigma_max": 10.0, "interpolation_type": "log_linear",
}


def unusual(name: str):
    """A scheduler of which everything that can be told is told, and is not the default."""
    defaults = make(name).config
    told = {key: not defaults[key] if value == "flip" else value for key, value in UNUSUAL.items() if key in defaults}
    if name == "SCMScheduler":  # it has one prediction type
        del told["prediction_type"]
    if name == "UnCLIPScheduler":  # the peer's knows one schedule
        del told["beta_schedule"]
    elif defaults.get("beta_schedule") == told.get("beta_schedule") is not None:
        told["beta_schedule"] = "linear"
    if defaults.get("prediction_type") == told.get("prediction_type") is not None:
        told["prediction_type"] = "epsilon"
    return make(name, **told), told


@pytest.fixture
def log(caplog, monkeypatch):
    """Warnings of this test alone: each is given once in the life of a process."""
    monkeypatch.setattr(config_module, "_reported", set())
    caplog.set_level(logging.WARNING, logger="calotype.config")
    return caplog


@every_name
def test_shared_entries_are_carried(one, log):
    scheduler, told = unusual(one)
    for other in NAMES:
        made = type(make(other)).from_config(scheduler.config)
        for key, value in told.items():
            assert made.config[key] == value, other  # its own, or kept
        assert type(made).__name__ == other
    assert not log.records  # entries of another scheduler are no news


@every_name
def test_defaults_do_not_leak(one):
    """What a config has only by default is left to the default of the class that is made."""
    for other in NAMES:
        made = type(make(other)).from_config(make(one).config)
        assert made.config == make(other).config, other


@every_name
def test_entries_of_others_change_nothing(one):
    """They are kept in the config, but steps are those of the class's own. Once, a foreign `timestep_spacing` placed levels."""
    scheduler, told = unusual(one)
    for other in NAMES:
        cls = type(make(other))
        plain = cls(**{key: value for key, value in told.items() if key in make(other).config}).table(7)
        made = cls.from_config(scheduler.config).table(7)
        assert made.steps == plain.steps and made.timesteps.equal(plain.timesteps), other


@every_name
def test_there_and_back(one):
    scheduler, _ = unusual(one)
    told = json.loads(scheduler.to_json_string())
    for other in NAMES:
        back = type(scheduler).from_config(type(make(other)).from_config(scheduler.config).config)
        kept = {**back.config, **scheduler.config, "_use_default_values": back.config["_use_default_values"]}
        assert back.config == kept, other
        assert json.loads(back.to_json_string()) == {**json.loads(back.to_json_string()), **told}, other


def test_the_known_traps():
    """The two that users meet: DDIM's end, which differs from PNDM's, and Runge-Kutta after a visit to Euler."""
    pndm = make("PNDMScheduler", skip_prk_steps=True, steps_offset=1)
    assert pndm.config.set_alpha_to_one is False
    assert type(make("DDIMScheduler")).from_config(pndm.config).config.set_alpha_to_one is True
    euler = type(make("EulerDiscreteScheduler")).from_config(pndm.config)
    assert euler.config.timestep_spacing == "linspace" and euler.config.steps_offset == 1
    assert type(pndm).from_config(euler.config).config.skip_prk_steps is True


@with_betas
def test_arguments_replace_entries(name):
    cls = type(make(name))
    made = cls.from_config(make(name, beta_end=0.05).config, beta_end=0.01, prediction_type="v_prediction")
    assert (made.config.beta_end, made.config.prediction_type) == (0.01, "v_prediction")
    made, unused = cls.from_config(make(name).config, return_unused_kwargs=True, beta_end=0.01, colour="red")
    assert made.config.beta_end == 0.01 and unused == {"colour": "red"}


@every_class
def test_unknown_entries_are_kept_and_reported_once(name, log):
    cls = type(make(name))
    for _ in range(2):
        made = cls.from_config({"beta_end": 0.01, "colour": "red", "_class_name": "Elsewhere", "_diffusers_version": "0.1"})
    assert made.config["colour"] == made.config.colour == "red"
    assert json.loads(made.to_json_string())["colour"] == "red"
    (record,) = log.records
    assert name in record.getMessage() and "colour" in record.getMessage()


@with_betas
def test_entries_by_default_in_a_file(name):
    """`_use_default_values` of a file names what nobody chose: it does not bind another class."""
    entries = {**make(name).config, "beta_end": 0.05, "beta_start": 0.003, "_use_default_values": ["beta_end"]}
    made = type(make(name)).from_config(entries)
    assert made.config.beta_end == make(name).config.beta_end and made.config.beta_start == 0.003
    assert "beta_end" in made.config["_use_default_values"] and "beta_start" not in made.config["_use_default_values"]


@with_betas
def test_config_is_frozen(name):
    config = make(name).config
    for change in (lambda: config.update(beta_end=1), lambda: setattr(config, "beta_end", 1), lambda: config.pop("beta_end"),
                   lambda: config.__setitem__("beta_end", 1), lambda: config.clear(), lambda: config.__delitem__("beta_end"),
                   lambda: config.setdefault("colour", 1), lambda: config.popitem()):
        with pytest.raises(TypeError, match="frozen"):
            change()
    with pytest.raises(AttributeError):
        make(name).config = {}
    assert config["beta_end"] == config.beta_end == config.get("beta_end") > 0.01
    with pytest.raises(AttributeError, match="no entry 'colour'; it has .*beta_end"):
        _ = config.colour


@with_betas
def test_repr_is_name_and_json(name):
    shown = repr(make(name))
    assert shown.startswith(name + " {")
    told = json.loads(shown.removeprefix(name))
    assert told["_class_name"] == name and told["beta_end"] == make(name).config.beta_end and "_use_default_values" not in told


@every_class
def test_compatibles(name):
    """Every class takes every other's config."""
    assert set(make(name).compatibles) == set(ALL)


@with_betas
def test_from_config_takes_mappings_and_folders_only(name, tmp_path):
    cls = type(make(name))
    with pytest.raises(TypeError, match="mapping"):
        cls.from_config(make(name))
    make(name, beta_end=0.05).save_config(tmp_path)
    assert cls.from_config(tmp_path).config.beta_end == cls.from_config(str(tmp_path)).config.beta_end == 0.05
