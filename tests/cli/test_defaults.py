"""What a checkpoint says of its calls: read, checked, carried along, and what the command line goes by."""

from __future__ import annotations

import inspect
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from drawings import save_drawings
from hub_server import HubServer

import calotype
from calotype.defaults import FILE, Defaults, read_defaults, write_defaults
from calotype.hub import BUNDLED
from calotype.recipe import Recipe
from calotype.scheduler_names import meaning

from .calling import EMOJI, call
from .conftest import save_tiny


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint that says how it is to be called."""
    folder = save_tiny(tmp_path_factory.mktemp("telling") / "telling")
    write_defaults(Defaults(2, 3, "dpmpp_2m_karras", ("a [red] apple", "a cat")), folder)
    return folder


def recipe_of(model: object, path: Path, *options: object, command: tuple[object, ...] = ("generate", "a cat")) -> Recipe:
    """What a command, given these options, writes into its picture."""
    call(*command, "--model", model, "-o", path, "--seed", 1, *options)
    return Recipe.from_png(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    said = Defaults(3, 20, "euler_a", ["a cat", "a dog"])  # type: ignore[arg-type]
    write_defaults(said, tmp_path)
    assert json.loads((tmp_path / FILE).read_text()) == {
        "format": 1, "guidance_scale": 3.0, "num_inference_steps": 20, "scheduler": "euler_a", "prompts": ["a cat", "a dog"]}
    assert read_defaults(tmp_path) == said and said.prompts == ("a cat", "a dog")
    (tmp_path / FILE).write_text('{"format": 1}')
    assert read_defaults(tmp_path) == read_defaults(tmp_path / "nowhere") == Defaults()


@pytest.mark.parametrize(("content", "words"), [
    ('{"format": 1', "it is not JSON"),
    ("[1]", "a JSON list"),
    ("{}", "format is None, but must be 1"),
    ('{"format": true}', "format is True"),
    ('{"format": 2, "anything": 1}', "a newer Calotype reads"),
    ('{"format": 1, "guidance": 3}', "there is no entry 'guidance'; did you mean 'guidance_scale'"),
    ('{"format": 1, "guidance_scale": NaN}', "guidance_scale is nan, but must be a number from 0 to 100"),
    ('{"format": 1, "guidance_scale": -1}', "guidance_scale is -1"),
    ('{"format": 1, "guidance_scale": true}', "guidance_scale is True"),
    ('{"format": 1, "num_inference_steps": 0}', "num_inference_steps is 0, but must be a whole number from 1 to 1000"),
    ('{"format": 1, "num_inference_steps": 20.0}', "num_inference_steps is 20.0"),
    ('{"format": 1, "num_inference_steps": 1000000}', "num_inference_steps is 1000000"),
    ('{"format": 1, "scheduler": "dpmpp_2m_karas"}', "did you mean 'dpmpp_2m_karras'"),
    ('{"format": 1, "scheduler": "os.system"}', "no scheduler 'os.system'"),
    ('{"format": 1, "scheduler": ["DDIMScheduler"]}', "must be the name of a solver"),
    ('{"format": 1, "prompts": "a cat"}', "prompts is 'a cat', but must be a list"),
    ('{"format": 1, "prompts": ["\\u001b[2J"]}', "texts of one line"),
])
def test_a_file_that_cannot_be_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError) as caught:
        read_defaults(tmp_path)
    assert words in str(caught.value) and str(tmp_path / FILE) in str(caught.value)


def test_the_command_line_goes_by_it_and_options_outrank_it(telling: Path, tmp_path: Path) -> None:
    said = recipe_of(telling, tmp_path / "said.png")
    assert (said.steps, said.guidance, said.scheduler) == (3, 2.0, "DPMSolverMultistepScheduler")
    assert said.scheduler_config["use_karras_sigmas"] is True
    given = recipe_of(telling, tmp_path / "given.png", "--steps", 2, "--guidance", 1.5, "--scheduler", "ddim")
    assert (given.steps, given.guidance, given.scheduler) == (2, 1.5, "DDIMScheduler")
    one = recipe_of(telling, tmp_path / "one.png", "--guidance", 4)
    assert (one.steps, one.guidance, one.scheduler) == (3, 4.0, said.scheduler)
    assert call("reproduce", tmp_path / "said.png", "--model", telling)  # by the recipe, whatever the checkpoint says
    edited = recipe_of(telling, tmp_path / "edited.png", command=("edit", tmp_path / "said.png", "a dog"))
    assert (edited.steps, edited.guidance, edited.scheduler) == (3, 2.0, said.scheduler)


def test_a_checkpoint_that_says_nothing_is_called_as_ever(tiny: Path, tmp_path: Path) -> None:
    assert not (tiny / FILE).exists()
    made = recipe_of(tiny, tmp_path / "a.png", "--steps", 2)
    assert (made.guidance, made.scheduler) == (7.5, "EulerDiscreteScheduler")
    assert json.loads(call("info", tiny, "--json"))["defaults"] == {}
    assert "defaults" not in call("info", tiny)


def test_info_shows_it(telling: Path) -> None:
    assert json.loads(call("info", telling, "--json"))["defaults"] == {
        "guidance_scale": 2.0, "num_inference_steps": 3, "scheduler": "dpmpp_2m_karras", "prompts": ["a [red] apple", "a cat"]}
    shown = call("info", telling)
    assert "guidance_scale 2.0, num_inference_steps 3, scheduler dpmpp_2m_karras" in shown
    assert "for example: a [red] apple; a cat" in shown


def test_a_damaged_file_is_an_error_before_anything_is_drawn(telling: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(telling, tmp_path / "damaged"))
    (folder / FILE).write_text('{"format": 1, "scheduler": "fastest"}')
    for words in (("generate", "a cat", "--model", folder, "-o", tmp_path / "a.png"), ("info", folder)):
        assert "no scheduler 'fastest'" in call(*words, code=1)
    assert not (tmp_path / "a.png").exists()
    calotype.DiffusionPipeline.from_pretrained(folder)  # Python's calls go by none of it


def test_python_has_its_own_defaults_and_carries_the_file(telling: Path, tmp_path: Path) -> None:
    pipeline: Any = calotype.DiffusionPipeline.from_pretrained(telling)
    assert type(pipeline.scheduler).__name__ == "EulerDiscreteScheduler"
    assert inspect.signature(pipeline.__call__).parameters["guidance_scale"].default == 7.5
    pipeline.save_pretrained(tmp_path / "again")
    assert read_defaults(tmp_path / "again") == read_defaults(telling)
    pipeline.save_pretrained(tmp_path / "again")  # over itself
    calotype.DiffusionPipeline.from_pretrained(tmp_path / "again").save_pretrained(tmp_path / "again")
    assert read_defaults(tmp_path / "again") == read_defaults(telling)
    calotype.StableDiffusionPipeline(**pipeline.components).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / FILE).exists()


def test_the_bundled_checkpoints_say_how_they_are_called() -> None:
    said = {name: read_defaults(folder) for name, folder in BUNDLED.items()}
    assert all(one.num_inference_steps and one.num_inference_steps <= 30 for one in said.values())
    emoji = said["calotype/emoji"]
    assert emoji.scheduler is not None and meaning(emoji.scheduler)[0].startswith("DPMSolver")
    assert emoji.guidance_scale is not None and emoji.guidance_scale < 7.5
    assert len(emoji.prompts) >= 4


def test_an_evaluation_goes_by_it(telling: Path, tmp_path: Path) -> None:
    words = "evaluate", telling, "--data", save_drawings(tmp_path / "data"), "--count", 2, "--measured", 2, "-o"
    for options, expected in (((), (3, 2.0, "DPMSolverMultistepScheduler")),
                              (("--steps", 1, "--guidance", 0, "--scheduler", "ddim"), (1, 0.0, "DDIMScheduler"))):
        call(*words, tmp_path / "report.json", "-f", *options)
        made = json.loads((tmp_path / "report.json").read_text())["checkpoints"]["telling"]
        assert (made["steps"], made["guidance"], made["scheduler"]) == expected
        assert math.isfinite(made["loss"]["epsilon"])


def test_the_documentation_shows_what_the_bundled_checkpoint_says() -> None:
    shown = re.findall(r"^```json\n(.*?)^```", (Path(__file__).parents[2] / "docs" / "cli.md").read_text(), re.M | re.S)
    said = {name: value for name, value in json.loads((EMOJI / FILE).read_text()).items() if name != "prompts"}
    assert [json.loads(one) for one in shown if "guidance_scale" in one] == [said]


def test_it_comes_with_a_checkpoint_of_the_hub(telling: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = HubServer()
    server.reach(monkeypatch, tmp_path / "home")
    server.add("owner/telling", {
        path.relative_to(telling).as_posix(): path.read_bytes() for path in telling.rglob("*") if path.is_file()})
    try:
        made = recipe_of("owner/telling", tmp_path / "a.png")
        assert (made.steps, made.guidance) == (3, 2.0) and "owner/telling/calotype.json" in server.fetched
        assert json.loads(call("info", "owner/telling", "--json"))["defaults"]["num_inference_steps"] == 3
    finally:
        server.close()


def test_diffusers_passes_over_the_file(diffusers: Any, telling: Path, tmp_path: Path) -> None:
    theirs = diffusers.DiffusionPipeline.from_pretrained(telling)
    assert type(theirs.scheduler).__name__ == "EulerDiscreteScheduler"
    theirs.save_pretrained(tmp_path)
    assert calotype.DiffusionPipeline.from_pretrained(tmp_path).unet.config.sample_size == 16
    assert (EMOJI / FILE).is_file()
