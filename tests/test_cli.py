"""The command line, as it is typed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from PIL import Image
from typer.testing import CliRunner

from calotype import cli
from calotype.contents import content_hash
from calotype.hub import BUNDLED
from calotype.recipe import Recipe, pixel_hash

EMOJI = BUNDLED["calotype/emoji"]
DOCS = Path(__file__).parents[1] / "docs" / "cli.md"


def call(*words: object, code: int = 0, **options):
    """Run a command in this process; its output with white space as single spaces."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "400", "NO_COLOR": "1"}, **options)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "calotype.cli", *words], text=True, capture_output=True, check=False,
                          env={**os.environ, **environment})


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "apple.png"
    call("generate", "a red apple", "-o", path, "--steps", 2, "--seed", 7)
    return path


@pytest.fixture
def apple(made, tmp_path, monkeypatch) -> Path:
    """A picture of two steps in an empty folder, which is where we are."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(made, tmp_path / "apple.png"))


def rewrite(path: Path, **changes: object) -> Path:
    """Change the recipe in a picture, and not the picture."""
    recipe, picture = Recipe.from_png(path), Image.open(path)
    picture.load()
    replace(recipe, **changes).save_png(picture, path)
    return path


# -- starting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["generate", "--help"], ["info", "calotype/emoji"],
                                   ["generate", "x", "--scheduler", "Euler"], ["reproduce", "nowhere.png"]])
def test_nothing_heavy_is_loaded(words):
    code = ("import sys; from calotype.cli import app\n"
            "try: app(sys.argv[1:])\n"
            "except SystemExit: print([name for name in ('torch', 'numpy', 'tokenizers', 'httpx') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, *words], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == ("['numpy']" if words[0] == "reproduce" else "[]")


def test_exit_codes_and_tracebacks():
    assert re.fullmatch(r"calotype \d+\.\d+\.\d+\n", run("--version").stdout)
    wrong = run("generate", "x", "--scheduler", "EulerDiscret", COLUMNS="3000")
    assert (wrong.returncode, "did you mean 'EulerDiscreteScheduler'" in wrong.stderr) == (2, True)
    lost = run("info", "./nowhere")
    assert (lost.returncode, lost.stdout) == (1, "")
    assert lost.stderr.startswith("error: no checkpoint './nowhere'")
    assert lost.stderr.count("\n") == 1
    for debugged in (run("--debug", "info", "./nowhere"), run("info", "./nowhere", CALOTYPE_DEBUG="1")):
        assert debugged.returncode == 1
        assert "Traceback" in debugged.stderr


def test_nothing_typed_shows_help():
    assert "generate" in call(code=2)


# -- generate -----------------------------------------------------------------------------------------------------------


def test_a_picture_and_its_recipe(made):
    recipe, picture = Recipe.from_png(made), Image.open(made)
    assert picture.size == (128, 128)
    assert recipe.pixels == pixel_hash(picture)
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.guidance) == ("a red apple", 7, 2, 7.5)
    assert (recipe.model, recipe.revision, recipe.device, recipe.dtype) == ("calotype/emoji", None, "cpu", "float32")
    assert recipe.scheduler == "PNDMScheduler"
    assert recipe.scheduler_config["num_train_timesteps"] == 1000
    assert recipe.model_hash == content_hash(EMOJI)


def test_the_picture_is_the_one_that_a_script_makes(made):
    import torch

    import calotype

    pipeline = calotype.DiffusionPipeline.from_pretrained("calotype/emoji")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red apple", num_inference_steps=2, generator=torch.Generator().manual_seed(7)).images[0]
    assert pixel_hash(picture) == Recipe.from_png(made).pixels


def test_several_pictures(tmp_path, monkeypatch, made):
    monkeypatch.setattr(cli, "_MOST_TOGETHER", 2)
    monkeypatch.chdir(tmp_path)
    said = call("generate", "a red apple", "-o", "x.y.png", "--count", 3, "--steps", 2, "--seed", 7, "--device", "cpu")
    recipes = [Recipe.from_png(f"x.y-{i}.png") for i in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.y-0.png", "x.y-1.png", "x.y-2.png"]
    assert [(one.seed, one.index, one.batch) for one in recipes] == [(7, 0, 2), (8, 1, 2), (9, 0, 1)]
    assert all(f"seed {seed}" in said for seed in (7, 8, 9))
    alone = np.asarray(Image.open(made), np.int16)
    assert abs(np.asarray(Image.open("x.y-0.png"), np.int16) - alone).max() <= 1
    assert "identical" in call("reproduce", "x.y-1.png")


def test_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("generate", "ein Käuzchen", "-o", "new/folder/k.png", "--steps", 2, "--guidance", 1, "--height", 64, "--width", 96,
         "--scheduler", "EulerDiscreteScheduler", "--negative", "rain", "--dtype", "float32", "--device", "cpu")
    recipe = Recipe.from_png("new/folder/k.png")
    assert (recipe.height, recipe.width, recipe.scheduler, recipe.dtype) == (64, 96, "EulerDiscreteScheduler", "float32")
    assert (recipe.prompt, recipe.negative_prompt, recipe.guidance) == ("ein Käuzchen", "rain", 1.0)
    assert recipe.scheduler_config["beta_schedule"] == "scaled_linear"
    assert "identical" in call("reproduce", "new/folder/k.png")


def test_no_name_no_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = call("generate", "x", "--steps", 1)
    (path,) = tmp_path.iterdir()
    assert path.name == f"calotype-{Recipe.from_png(path).seed}.png"
    assert path.name in said


@pytest.mark.parametrize("name", ["x.JPEG", "x.webp"])
def test_other_formats(tmp_path, name):
    said = call("generate", "x", "-o", tmp_path / name, "--steps", 1)
    assert "without its recipe" in said
    assert Image.open(tmp_path / name).format == ("WEBP" if name.endswith("webp") else "JPEG")


@pytest.mark.parametrize(("words", "code", "said"), [
    (["-o", "x.gif"], 2, "'.gif', but must be '.png', '.jpg', '.jpeg' or '.webp'"),
    (["-o", "squirrel"], 2, "extension is ''"),
    (["--scheduler", "DDIMSchedular"], 2, "did you mean 'DDIMScheduler'"),
    (["--dtype", "float61"], 2, "did you mean 'float16'"),
    (["--steps", "0"], 2, "--steps"),
    (["--count", "0"], 2, "--count"),
    (["--seed", "-3"], 2, "--seed"),
    (["--stepz", "3"], 2, "--steps"),
    (["--model", "calotype/emojy"], 1, "did you mean 'calotype/emoji'"),
    (["--model", "./none"], 1, "no checkpoint './none'"),
    (["--model", str(EMOJI / "unet")], 1, "model_index.json"),
    (["--device", "cuda:9"], 1, "no device 'cuda:9' here: there is"),
    (["--height", "63"], 1, "height is 63, but must be a multiple of 8"),
    (["-o", "kept.png", "--no-overwrite"], 1, "'kept.png' exists"),
    (["-o", "folder.png"], 1, "'folder.png' is a folder"),
    (["-o", "kept.png/x.png"], 1, "no folder that may be written to"),
])
def test_errors(tmp_path, monkeypatch, words, code, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "kept.png").write_text("kept")
    (tmp_path / "folder.png").mkdir()
    if "cuda:9" in words:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    shown = call("generate", "x", *words, code=code)
    assert said in shown.replace(" │ │ ", " ")
    assert (tmp_path / "kept.png").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 2


def test_ctrl_c_while_generating(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Recipe, "pictures", interrupted)
    assert "stopped" in call("generate", "x", "-o", tmp_path / "x.png", code=130)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_saving(apple, monkeypatch):
    def half(self, path, *_, **__):
        Path(path).write_bytes(b"\x89PNG")
        raise KeyboardInterrupt

    before = apple.read_bytes()
    monkeypatch.setattr(Image.Image, "save", half)
    call("generate", "x", "-o", apple, "--steps", 1, code=130)
    assert apple.read_bytes() == before
    assert list(apple.parent.iterdir()) == [apple]


def test_a_fault_of_ours_is_called_one(monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "describe", lambda *_: {}["x"])
    assert call("info", "x", code=1) == "error: KeyError: 'x' (this looks like a fault of Calotype; --debug shows where)"


def test_a_model_without_text(tmp_path):
    from calotype import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    assert "makes no pictures of a text" in call("generate", "x", "--model", tmp_path / "ddpm", code=1)
    facts = json.loads(call("info", tmp_path / "ddpm", "--json"))
    assert facts["picture_size"] == [8, 8]
    assert {part["name"]: part["parameters"] for part in facts["components"]} == {
        "scheduler": 0, "unet": unet.num_parameters()}


def test_progress_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with cli._progress("x.png") as on_step:
        on_step(1, 2)
        on_step(2, 2)


# -- reproduce ----------------------------------------------------------------------------------------------------------


def test_the_same_picture_again(apple):
    said = call("reproduce", apple, "-o", "again.png")
    assert "identical: every pixel" in said
    assert "note" not in said
    assert Recipe.from_png("again.png") == Recipe.from_png(apple)


def test_a_changed_picture(apple):
    recipe = Recipe.from_png(apple)
    pixels = np.array(Image.open(apple))
    pixels[0, 0, 0] ^= 255
    changed = Image.fromarray(pixels)
    recipe.save_png(changed, apple)
    said = call("reproduce", apple, code=1)
    assert "different: off by at most" in said
    assert "0.00%" in said
    assert "was changed" not in said
    changed.putpixel((5, 5), (1, 2, 3))
    text = Image.open(apple)
    from PIL.PngImagePlugin import PngInfo

    kept = PngInfo()
    kept.add_itxt("calotype", text.text["calotype"])
    changed.save(apple, pnginfo=kept)
    assert "was changed after it was made" in call("reproduce", apple, code=1)
    changed.crop((0, 0, 50, 60)).save(apple, pnginfo=kept)
    assert "(128, 128)" in call("reproduce", apple, code=1)


def test_another_model(apple):
    rewrite(apple, model_hash="0" * 64)
    said = call("reproduce", apple, "-o", "no.png", code=1)
    assert "is not the model that the picture was made with" in said
    assert "000000000000…" in said
    assert not Path("no.png").exists()
    said = call("reproduce", apple, "--anyway")
    assert "note: 'calotype/emoji' is not the model" in said
    assert "identical" in said


def test_a_model_that_is_not_here(apple, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rewrite(apple, model="nobody/nothing")
    said = call("reproduce", apple, code=1)
    assert "no checkpoint 'nobody/nothing'" in said
    assert "--allow-download" in said
    assert "identical" in call("reproduce", apple, "--model", "calotype/emoji")
    assert "calotype/emoji is used for it" in call("reproduce", apple, "--anyway")


def test_versions_and_devices_are_notes(apple):
    rewrite(apple, versions={"calotype": "0.0.1", "torch": "1.0\x1b[2J"}, device="cuda")
    said = call("reproduce", apple, "--device", "cpu")
    for words in ("calotype is '0.0.1'", r"torch is '1.0\x1b[2J'", "python is None", "device is 'cuda', and here it is 'cpu'"):
        assert words in said
    assert "identical" in said


def test_an_unknown_scheduler(apple):
    rewrite(apple, scheduler="PNDMSchedule")
    assert "did you mean 'PNDMScheduler'" in call("reproduce", apple, code=1)
    said = call("reproduce", apple, "--anyway")
    assert "the recipe's scheduler is 'PNDMSchedule', and here it is 'PNDMScheduler'" in said
    assert "identical" in said


def test_no_recipe(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    assert "x.png': no recipe in it" in call("reproduce", tmp_path / "x.png", code=1)
    assert "No such file" in call("reproduce", tmp_path / "none.png", code=1)


def test_a_folder_keeps_its_place_to_itself(apple, tmp_path):
    shutil.copytree(EMOJI, tmp_path / "private" / "mine")
    call("generate", "a red apple", "-o", "x.png", "--steps", 2, "--seed", 7, "--model", tmp_path / "private" / "mine")
    recipe = Recipe.from_png("x.png")
    assert recipe.model == "mine"
    assert b"private" not in Path("x.png").read_bytes()
    assert recipe.pixels == Recipe.from_png(apple).pixels
    assert "say where it is with --model" in call("reproduce", "x.png", code=1)
    assert "identical" in call("reproduce", "x.png", "--model", tmp_path / "private" / "mine")


def test_a_hub_repository(tmp_path, monkeypatch):
    server = HubServer()
    server.reach(monkeypatch, tmp_path / "home")
    monkeypatch.chdir(tmp_path)
    commit = server.add("owner/model", {path.relative_to(EMOJI).as_posix(): path.read_bytes()
                                        for path in EMOJI.rglob("*") if path.is_file()} | {"README.md": b"words"})
    try:
        call("generate", "x", "-o", "x.png", "--steps", 1, "--model", "owner/model")
        recipe = Recipe.from_png("x.png")
        assert (recipe.model, recipe.revision, recipe.model_hash) == ("owner/model", commit, content_hash(EMOJI))
        assert "(Hub cache:" in call("info", "owner/model")
        server.forget()
        assert "identical" in call("reproduce", "x.png")
        assert not server.requests
        shutil.rmtree(tmp_path / "home")
        assert "--allow-download" in call("reproduce", "x.png", code=1)
        assert "nor in the cache" in call("info", "owner/model", code=1)
        assert not server.requests
        assert "identical" in call("reproduce", "x.png", "--allow-download")
    finally:
        server.close()


# -- info ---------------------------------------------------------------------------------------------------------------


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


# -- the documentation --------------------------------------------------------------------------------------------------


def test_every_example_in_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(bash|console|python)\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for kind, block in blocks if kind != "python" for line in block.splitlines()]
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line.removeprefix("$ "))
        settings = dict(word.split("=", 1) for word in words[: words.index("calotype")])
        words = words[words.index("calotype") + 1 :]
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        if words[0] == "generate":
            words += ["--steps", "2"]  # the last one counts
        call(*words)
    for kind, block in blocks:
        if kind == "python":
            exec(block, {})
