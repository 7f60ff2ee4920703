"""`scheduler_config.json`: what Calotype writes, Diffusers reads, and the other way round."""

from __future__ import annotations

import json

import pytest

import calotype.schedulers as ours

from .cases import make
from .plans import PLANS, every_class, with_betas
from .test_swapping import UNUSUAL, unusual

ALWAYS = {"_class_name", "_diffusers_version"}
NAMES = sorted(PLANS.keys() - {"SCMScheduler", "UnCLIPScheduler"})  # whose models are like no others


def written(scheduler, folder) -> dict:
    scheduler.save_pretrained(folder)
    return json.loads((folder / "scheduler_config.json").read_text())


@pytest.fixture(params=["default", "unusual"])
def told(request):
    return (lambda name: {}) if request.param == "default" else (lambda name: unusual(name)[1])


@every_class
def test_files_are_equal(name, told, oracle, tmp_path):
    """The same arguments make the same file, key by key, apart from the order."""
    reference = written(getattr(oracle, name)(**told(name)), tmp_path / "theirs")
    assert written(make(name, **told(name)), tmp_path / "ours") == reference


@every_class
def test_each_reads_the_others_file(name, told, oracle, tmp_path):
    for saving, reading in ((oracle, ours), (ours, oracle)):
        folder = tmp_path / saving.__name__
        saved = written(getattr(saving, name)(**told(name)), folder)
        read = getattr(reading, name).from_pretrained(folder)
        assert {key: read.config[key] for key in saved.keys() - ALWAYS} == {key: saved[key] for key in saved.keys() - ALWAYS}
        read.set_timesteps(2 if name == "SCMScheduler" else 5)


@pytest.mark.parametrize("one", NAMES)
def test_swapping_writes_the_same_file(one, oracle, tmp_path):
    """A class made from another's config, and the first made again from that, in both libraries."""
    for other in NAMES:
        files = []
        for library in (oracle, ours):
            first = getattr(library, one)(**unusual(one)[1])
            second = getattr(library, other).from_config(first.config)
            third = getattr(library, one).from_config(second.config)
            folder = tmp_path / library.__name__ / other
            files.append((written(second, folder / "second"), written(third, folder / "third")))
        assert files[0] == files[1], other


@every_class
def test_round_trip(name, told, tmp_path):
    scheduler = make(name, **told(name))
    scheduler.save_pretrained(tmp_path)
    cls = type(scheduler)
    for read in (cls.from_pretrained(tmp_path), cls.from_config(str(tmp_path)), cls.from_config(cls.load_config(tmp_path)),
                 cls.from_pretrained(str(tmp_path / "scheduler_config.json"))):
        assert read.to_json_string() == scheduler.to_json_string()
        assert repr(read) == repr(scheduler)


@with_betas
def test_subfolder_and_replacements(name, tmp_path):
    """As in a pipeline's folder; keyword arguments replace entries, and unknown ones are errors."""
    make(name).save_pretrained(tmp_path / "scheduler")
    cls = type(make(name))
    assert cls.from_pretrained(tmp_path, subfolder="scheduler", beta_end=0.05).config.beta_end == 0.05
    with pytest.raises(TypeError, match="'bta_end'; did you mean 'beta_end'"):
        cls.from_pretrained(tmp_path, subfolder="scheduler", bta_end=0.5)


@every_class
def test_old_files(name, tmp_path):
    """Files of years ago lack most entries, which are then defaults, and have some that nobody knows today."""
    (tmp_path / "scheduler_config.json").write_text(json.dumps({
        "_class_name": name, "_diffusers_version": "0.2.0", "beta_end": 0.012, "timestep_values": None}))
    read = type(make(name)).from_pretrained(tmp_path)
    assert read.config.beta_end == 0.012 and read.config.timestep_values is None
    assert {key: read.config[key] for key in make(name).config if key not in ("beta_end", "_use_default_values")} == {
        key: value for key, value in make(name).config.items() if key not in ("beta_end", "_use_default_values")}


def test_entries_marked_default_in_a_file(oracle, tmp_path):
    """`_use_default_values` in a file is honoured, as the peer does."""
    (tmp_path / "scheduler_config.json").write_text(json.dumps({
        "_class_name": "PNDMScheduler", "set_alpha_to_one": False, "steps_offset": 1,
        "_use_default_values": ["set_alpha_to_one"]}))
    for library in (oracle, ours):
        read = library.DDIMScheduler.from_config(library.DDIMScheduler.load_config(tmp_path))
        assert read.config.set_alpha_to_one is True and read.config.steps_offset == 1


def test_unusual_values_are_not_defaults():
    """A guard of these tests: what they tell is what no class has by default."""
    for name in NAMES:
        scheduler, told = unusual(name)
        assert told
        assert all(scheduler.config[key] != make(name).config[key] for key in told)
    assert UNUSUAL.keys() == {key for name in NAMES for key in unusual(name)[1]}
