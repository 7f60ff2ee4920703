"""`calotype generate`: pictures of a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calotype.cli.making import choose_device
from calotype.contents import content_hash
from calotype.recipe import Recipe, pixel_hash

from .calling import EMOJI, call


def test_a_picture_and_its_recipe(made):
    recipe, picture = Recipe.from_png(made), Image.open(made)
    assert picture.size == (128, 128)
    assert recipe.pixels == pixel_hash(picture)
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.guidance) == ("a red apple", 7, 2, 4.0)
    assert (recipe.model, recipe.revision, recipe.device, recipe.dtype) == ("calotype/emoji", None, "cpu", "float32")
    assert recipe.scheduler == "DPMSolverMultistepScheduler"
    assert recipe.scheduler_config["num_train_timesteps"] == 1000
    assert recipe.model_hash == content_hash(EMOJI)


def test_the_picture_is_the_one_that_a_script_makes(made):
    import torch

    import calotype

    pipeline = calotype.DiffusionPipeline.from_pretrained("calotype/emoji")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = calotype.named_scheduler("dpmpp_2m_karras", pipeline.scheduler.config)
    generator = torch.Generator().manual_seed(7)
    picture = pipeline("a red apple", num_inference_steps=2, guidance_scale=4, generator=generator).images[0]
    assert pixel_hash(picture) == Recipe.from_png(made).pixels


def test_several_pictures(tmp_path, monkeypatch, made):
    monkeypatch.setattr("calotype.cli.making._MOST_TOGETHER", 2)
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
    (["--scheduler", "dpmpp_2m_kerras"], 2, "did you mean 'dpmpp_2m_karras'"),
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
    (["-o", "kept.png"], 1, "'kept.png' exists; name another file, or have it replaced by --overwrite (-f)"),
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


def test_a_device_that_is_not_here_is_said_before_anything_is_loaded(here, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("calotype.pipelines.base.DiffusionPipeline.from_pretrained", None)
    for device in ("cuda", "cuda:1", "mps"):
        assert f"no device '{device}' here: there is 'cpu'" in call("generate", "x", "--device", device, code=1)
        assert f"no device '{device}' here" in call("sample", "--model", "calotype/cats", "--device", device, code=1)
    for device in ("gpu", "cuda:", "cuda:x", "CPU", "meta", ""):
        assert f"device is '{device}', but must be 'auto', 'cpu'" in call("generate", "x", "--device", device, code=2)
    assert "and there is none here" in call("generate", "x", "--offload", "layers", code=1)
    assert "offload is 'model ', but must be" in call("generate", "x", "--offload", "model ", code=2)


def test_a_device_is_chosen(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [choose_device(one) for one in (None, "auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda", "cuda:1", "cpu"]
    assert choose_device(None, "model") == "cuda"
    with pytest.raises(ValueError, match="no device 'cuda:2' here: there is 'cuda:0' or 'cuda:1'"):
        choose_device("cuda:2")


def test_offloaded_and_compiled(tiny, here, monkeypatch):
    """The same picture, and one that is made again as it was made."""
    compiled = []
    monkeypatch.setattr("calotype.pipelines.base.DiffusionPipeline.compile", lambda self: compiled.append(1) or self)
    words = ["generate", "x", "--model", tiny, "--steps", 2, "--seed", 3, "--device", "cpu"]
    for name, given in (("plain", []), ("model", ["--offload", "model"]), ("layers", ["--offload", "layers"])):
        call(*words, "-o", f"{name}.png", *given)
    assert len({Recipe.from_png(f"{name}.png").pixels for name in ("plain", "model", "layers")}) == 1
    assert "identical" in call("reproduce", "plain.png", "--model", tiny, "--offload", "layers", "--device", "cpu")
    assert not compiled
    call(*words, "-o", "compiled.png", "--compile")
    assert Recipe.from_png("compiled.png").compiled
    call("reproduce", "compiled.png", "--model", tiny)
    assert len(compiled) == 2


@pytest.mark.parametrize("words", [["-o", "x.png", "--count", 3], ["--count", 3], ["-o", "a.png", "--grid", "x-1.png"]])
def test_what_exists_is_not_replaced(tiny, here, monkeypatch, words):
    """The error comes before anything is loaded, and `--overwrite` is what it says."""
    words = ["generate", "x", "--model", tiny, "--steps", 1, "--seed", 3, *words]
    for name in ("x-1.png", "calotype-3-1.png"):
        (here / name).write_text("mine")
    with monkeypatch.context() as patch:
        patch.setattr("calotype.cli.generate.load", None)
        assert "-1.png' exists; name another file, or have it replaced by --overwrite (-f)" in call(*words, code=1)
    assert len(list(here.iterdir())) == 2
    call(*words, "-f")
    assert [path.read_bytes() for path in here.iterdir()].count(b"mine") == 1


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
    call("generate", "x", "-o", apple, "-f", "--steps", 1, code=130)
    assert apple.read_bytes() == before
    assert list(apple.parent.iterdir()) == [apple]


def test_a_short_name(tmp_path):
    call("generate", "x", "-o", tmp_path / "x.png", "--steps", 3, "--scheduler", "dpmpp_2m_sde_karras")
    recipe = Recipe.from_png(tmp_path / "x.png")
    assert recipe.scheduler == "DPMSolverMultistepScheduler"
    assert (recipe.scheduler_config["algorithm_type"], recipe.scheduler_config["use_karras_sigmas"]) == ("sde-dpmsolver++", True)
    assert "identical" in call("reproduce", tmp_path / "x.png")


def test_latents_need_a_model_of_texts(unconditional):
    assert ("is a DDPMPipeline, which cannot do 'text-to-image': it can do 'unconditional' (calotype sample)"
            in call("generate", "x", "--model", unconditional, code=1))


def test_what_is_said_of_a_prompt(tiny, here):
    """Each option changes the picture, and the picture can be made again."""
    def make(name, *words):
        call("generate", "a red heart, shiny " * 9, "-o", name, "--model", tiny, "--steps", 2, "--seed", 1, *words)
        return Recipe.from_png(name)

    plain = make("plain.png")
    made = {"syntax": make("a.png", "--syntax", "a1111", "--negative", "(flat:1.4)"),
            "long": make("b.png", "--long"), "clip": make("c.png", "--clip-skip", "1")}
    assert len({one.pixels for one in (plain, *made.values())}) == 4
    assert (made["syntax"].prompt_syntax, made["long"].long_prompts, made["clip"].clip_skip) == ("a1111", True, 1)
    for name in "abc":
        assert "identical" in call("reproduce", f"{name}.png", "--model", tiny)


def test_quality_is_in_the_recipe(tiny, here):
    pixels = set()
    for word in ("exact", "high", "draft"):
        call("generate", "a cat", "-o", f"{word}.png", "--model", tiny, "--steps", 12, "--seed", 1, "--quality", word)
        recipe = Recipe.from_png(f"{word}.png")
        pixels.add(recipe.pixels)
        assert recipe.quality == word
        assert "identical" in call("reproduce", f"{word}.png", "--model", tiny)
    assert len(pixels) == 3
    assert "quality is 'darft', but must be" in call("generate", "a cat", "--quality", "darft", code=2)


def test_wildcards_are_chosen_by_the_seed(tiny, here):
    call("generate", "a {red|blue|green|pink} {heart|moon}", "-o", "x.png", "--model", tiny, "--steps", 1, "--seed", 3,
         "--count", 6, "--wildcards")
    recipes = [Recipe.from_png(f"x-{i}.png") for i in range(6)]
    from calotype import expand_wildcards

    assert [one.prompt for one in recipes] == [expand_wildcards("a {red|blue|green|pink} {heart|moon}", 3 + i) for i in range(6)]
    assert len({one.prompt for one in recipes}) > 2
    assert "identical" in call("reproduce", "x-4.png", "--model", tiny)
    call("generate", "a {red|blue} heart", "--negative", "{flat|noto} style", "-o", "n.png", "--model", tiny, "--steps", 1,
         "--seed", 3, "--count", 8, "--wildcards")
    recipes = [Recipe.from_png(f"n-{i}.png") for i in range(8)]
    assert [one.prompt for one in recipes] == [expand_wildcards("a {red|blue} heart", 3 + i) for i in range(8)]
    assert {one.negative_prompt for one in recipes} == {"flat style", "noto style"}
    assert len({(one.prompt, one.negative_prompt) for one in recipes}) > 2  # one choice does not follow the other
    assert "identical" in call("reproduce", "n-4.png", "--model", tiny)
    assert "several choices at once" in call("generate", "{2$$a|b}", "--wildcards", "-o", "y.png", code=1)


def test_a_contact_sheet(tiny, here):
    words = ["generate", "x", "--model", tiny, "--steps", 1, "--seed", 3, "--count", 3, "--height", 16, "--width", 24]
    said = call(*words, "--grid", "sheet.png")
    assert "saved sheet.png (52x36, a contact sheet of 3)" in said
    assert [path.name for path in here.iterdir()] == ["sheet.png"]
    call(*words, "--grid", "sheet.jpg", "-o", "x.png")
    assert sorted(path.name for path in here.iterdir()) == ["sheet.jpg", "sheet.png", "x-0.png", "x-1.png", "x-2.png"]
    sheet = Image.open("sheet.png")
    for i, corner in enumerate([(0, 0), (28, 0), (0, 20)]):
        box = (*corner, corner[0] + 24, corner[1] + 16)
        assert sheet.crop(box).tobytes() == Image.open(f"x-{i}.png").tobytes()
    assert sheet.getpixel((40, 30)) == (255, 255, 255)
    assert "contact sheet needs another" in call(*words, "--grid", "x-1.png", "-o", "x.png", code=1)
    assert "'sheet.png' exists" in call(*words, "--grid", "sheet.png", code=1)
    assert "saved sheet.png" in call(*words, "--grid", "sheet.png", "--overwrite")


def test_what_a_pipeline_does_by_itself(tiny, here):
    from calotype import DiffusionPipeline
    from calotype.tasks import defaults

    assert defaults(DiffusionPipeline.from_pretrained(tiny)) == {"steps": 50, "guidance": 7.5}
