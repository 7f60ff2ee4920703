"""`calotype reproduce`: the same picture again, or a word on why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from hub_server import HubServer
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from calotype.contents import content_hash
from calotype.recipe import Recipe

from .calling import EMOJI, call, rewrite


def test_the_same_picture_again(apple):
    said = call("reproduce", apple, "-o", "again.png")
    assert "identical: every pixel" in said
    assert "note" not in said
    assert Recipe.from_png("again.png") == Recipe.from_png(apple)


def test_what_exists_is_not_replaced(apple):
    Path("again.png").write_text("mine")
    assert "'again.png' exists" in call("reproduce", apple, "-o", "again.png", code=1)
    assert "'apple.png' exists" in call("reproduce", apple, "-o", "apple.png", code=1)
    assert Path("again.png").read_text() == "mine"
    assert "saved again.png" in call("reproduce", apple, "-o", "again.png", "-f")


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
    call("generate", "a red apple", "-o", apple, "-f", "--steps", 2, "--seed", 7, "--scheduler", "PNDMScheduler")  # its own
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


def test_the_first_format(apple):
    """A picture of Calotype 0.1, whose recipe knew texts alone."""
    since = ("inputs", "strength", "padding", "blur", "overlay", "prompt_syntax", "long_prompts", "clip_skip", "quality",
             "adapters", "embeddings", "compiled")
    with Image.open(apple) as picture:
        recipe = json.loads(picture.text["calotype"])
        kept = PngInfo()
        kept.add_itxt("calotype", json.dumps({name: recipe[name] for name in recipe if name not in since} | {"format": 1}))
        picture.save("old.png", pnginfo=kept)
    said = call("reproduce", "old.png", "-o", "new.png")
    assert "identical" in said and "note" not in said
    assert Recipe.from_png("new.png") == Recipe.from_png(apple)


def test_a_newer_format(apple):
    with Image.open(apple) as picture:
        recipe, kept = json.loads(picture.text["calotype"]), PngInfo()
        kept.add_itxt("calotype", json.dumps(recipe | {"format": 9, "mood": "blue"}))
        picture.save("new.png", pnginfo=kept)
    assert "has format 9, newer than 3; --anyway takes what it can" in call("reproduce", "new.png", code=1)
    assert "identical" in call("reproduce", "new.png", "--anyway")
