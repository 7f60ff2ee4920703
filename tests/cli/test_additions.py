"""`--lora` and `--embedding`: what `calotype train` makes is used, told in the recipe, and found again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from PIL import Image
from safetensors.torch import save_file

import calotype
from calotype.additions import parse_adapter, parse_embedding
from calotype.models.lora import add_lora, lora_parameters, lora_state_dict
from calotype.recipe import Recipe, pixel_hash

from .calling import call, rewrite


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory) -> Path:
    """A folder with `style`, an adapter, and `word`, an embedding called <toy>, of random numbers."""
    folder = tmp_path_factory.mktemp("trained")
    pipeline = calotype.DiffusionPipeline.from_pretrained(tiny)
    add_lora(pipeline.unet, rank=2)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in lora_parameters(pipeline.unet):
            parameter.normal_(std=0.5)
    pipeline.save_lora_weights(folder / "style", unet_lora_layers=lora_state_dict(pipeline.unet))
    (folder / "word").mkdir()
    save_file({"<toy>": torch.randn(2, 16)}, folder / "word" / "learned_embeds.safetensors")
    return folder


@pytest.fixture
def style(trained, here) -> Path:
    """The adapter, in the folder where we are, beside the embedding."""
    shutil.copytree(trained / "word", here / "word")
    return Path(shutil.copytree(trained / "style", here / "style"))


@pytest.fixture
def make(tiny, here):
    def make(name: str, *words: object, **options) -> Recipe:
        call("generate", "a <toy> cat", "-o", name, "--model", tiny, "--steps", 2, "--seed", 3, *words, **options)
        return Recipe.from_png(name)

    return make


def test_what_training_makes_is_used(tiny, here):
    pytest.importorskip("accelerate")
    pytest.importorskip("pydantic")
    rng = np.random.default_rng(0)
    (here / "pictures").mkdir()
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(here / "pictures" / f"{i}.png")
        (here / "pictures" / f"{i}.txt").write_text("a red heart")
    words = ["--pretrained-model-name-or-path", tiny, "--train-data-dir", "pictures", "--resolution", 32, "--max-train-steps", 2,
             "--train-batch-size", 1, "--learning-rate", 0.1, "--num-validation-images", 0]
    call("train", "lora", *words, "--output-dir", "style")
    call("train", "textual-inversion", *words, "--output-dir", "word", "--placeholder-token", "<toy>", "--initializer-token",
         "heart")
    made = {}
    for name, given in (("plain", []), ("style", ["--lora", "style"]), ("word", ["--embedding", "word"])):
        call("generate", "a <toy>", "-o", f"{name}.png", "--model", tiny, "--steps", 2, "--seed", 3, *given)
        made[name] = Recipe.from_png(f"{name}.png").pixels
        assert "identical" in call("reproduce", f"{name}.png", "--model", tiny)
    assert len({*made.values()}) == 3


def test_the_picture_is_the_one_that_a_script_makes(style, make, tiny):
    recipe = make("x.png", "--lora", "style=0.5", "--lora", "style/pytorch_lora_weights.safetensors=-0.25",
                  "--embedding", "word=<car>", "--embedding", "word/learned_embeds.safetensors")
    pipeline = calotype.DiffusionPipeline.from_pretrained(tiny)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion("word", token="<car>")
    pipeline.load_textual_inversion("word")
    pipeline.load_lora_weights("style", adapter_name="a")
    pipeline.load_lora_weights("style", adapter_name="b")
    pipeline.set_adapters(["a", "b"], [0.5, -0.25])
    picture = pipeline("a <toy> cat", num_inference_steps=2, generator=torch.Generator().manual_seed(3)).images[0]
    assert recipe.pixels == pixel_hash(picture)
    assert [(one["file"], one["weight"]) for one in recipe.adapters] == [
        ("style", 0.5), ("pytorch_lora_weights.safetensors", -0.25)]
    assert [(one["file"], one["token"]) for one in recipe.embeddings] == [("word", "<car>"), ("learned_embeds.safetensors", None)]
    found, unlike = recipe.additions({"adapter": ["style"] * 2, "embedding": ["word"] * 2})
    assert not unlike
    assert pixel_hash(recipe.generate(recipe.load(str(tiny), additions=found))) == recipe.pixels
    with pytest.raises(FileNotFoundError, match="say where it is with --lora FILE"):
        recipe.load(str(tiny))


def test_a_recipe_shows_them(style, make):
    make("x.png", "--lora", "style=0.5", "--embedding", "word=<car>")
    said = call("info", "x.png")
    assert re.search(r"adapter 1: style, weight 0.5 \(content [0-9a-f]{12}…\)", said)
    assert "embedding 1: word, token <car> (content" in said
    assert json.loads(call("info", "x.png", "--json")) == json.loads(Recipe.from_png("x.png").to_json())
    assert "LoRA: style 0.5, Embedding: word, " in Image.open("x.png").text["parameters"]
    assert str(style.parent).encode() not in Path("x.png").read_bytes()


@pytest.mark.parametrize("command", ["edit", "inpaint"])
def test_of_pictures_too(command, style, photo, tiny):
    mask = ["mask.png"] if command == "inpaint" else []
    words = [command, photo, *mask, "a <toy>", "--model", tiny, "--steps", 4, "--seed", 1]
    call(*words, "-o", "a.png", "--lora", "style", "--embedding", "word")
    call(*words, "-o", "b.png")
    assert Recipe.from_png("a.png").pixels != Recipe.from_png("b.png").pixels
    assert "identical" in call("reproduce", "a.png", "--model", tiny)


def test_found_or_given(style, make, tiny, here):
    """By their content, whatever they are called and in whatever order."""
    second = shutil.copytree(style, here / "second")
    content = (second / "pytorch_lora_weights.safetensors").read_bytes()
    (second / "pytorch_lora_weights.safetensors").write_bytes(content[:-8] + b"\0" * 8)
    pixels = make("x.png", "--lora", "style", "--lora", "second=2", "--embedding", "word").pixels
    again = ["reproduce", "x.png", "--model", tiny]
    assert "identical" in call(*again)
    (here / "elsewhere").mkdir()
    for name in ("style", "second", "word"):
        shutil.move(name, here / "elsewhere" / f"{name}-now")
    assert "(adapter, 'style'), which is not found: say where it is with --lora FILE" in call(*again, code=1)
    given = ["--lora", "elsewhere/second-now/pytorch_lora_weights.safetensors", "--lora", "elsewhere/style-now"]
    assert "(embedding, 'word'), which is not found: say where it is with --embedding FILE" in call(*again, *given, code=1)
    assert "identical" in call(*again, *given, "--embedding", "elsewhere/word-now", "-o", "y.png")
    assert Recipe.from_png("y.png").pixels == pixels
    assert "is given, but the picture was made with 'style', 'second'" in call(*again, *given, *given[:2], code=1)
    assert "does not exist" in call(*again, "--lora", "nowhere", code=2)


def test_changed(style, make, tiny):
    make("x.png", "--lora", "style")
    file = style / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)
    said = call("reproduce", "x.png", "--model", tiny, "-o", "y.png", code=1)
    assert "is not the adapter that the picture was made with: the hash of its content is" in said
    assert not Path("y.png").exists()
    said = call("reproduce", "x.png", "--model", tiny, "--anyway", code=1)
    assert "note: 'style/pytorch_lora_weights.safetensors' is not the adapter" in said and "different: off by" in said


@pytest.mark.parametrize("name", [
    "../style", "/etc", "..", ".", "", "C:\\style", "a\x1b[2J", "x" * 5000, "\0", "elsewhere/style"])
def test_a_picture_leads_to_no_other_folder(style, make, tiny, here, name):
    """Nor to a folder that has the name of a Hub repository."""
    make("x.png", "--lora", "style")
    (here / "elsewhere").mkdir()
    shutil.move(style, here / "elsewhere" / "style")
    (noted,) = Recipe.from_png("x.png").adapters
    rewrite(Path("x.png"), adapters=[{**noted, "file": name}])
    said = call("reproduce", "x.png", "--model", tiny, code=1)
    assert "say where it is with --lora FILE" in said
    assert "\x1b" not in said


def test_of_the_hub(style, make, tiny, here, monkeypatch):
    server = HubServer()
    server.reach(monkeypatch, here / "home")
    file = "pytorch_lora_weights.safetensors"
    commit = server.add("owner/style", {file: (style / file).read_bytes()})
    shutil.rmtree(style)
    try:
        (noted,) = make("x.png", "--lora", "owner/style=0.5").adapters
        assert (noted["file"], noted["revision"], noted["weight"]) == ("owner/style", commit, 0.5)
        server.forget()
        assert "identical" in call("reproduce", "x.png", "--model", tiny)
        shutil.rmtree(here / "home")
        assert "--lora FILE" in call("reproduce", "x.png", "--model", tiny, code=1)
        assert "no adapter 'style.safetensors'" in call("generate", "x", "-o", "y.png", "--lora", "style.safetensors", code=1)
        assert "no adapter 'style'" in call("generate", "x", "-o", "y.png", "--lora", "style", code=1)
        assert not server.requests
        assert "identical" in call("reproduce", "x.png", "--model", tiny, "--allow-download")
    finally:
        server.close()


@pytest.mark.parametrize(("words", "code", "said"), [
    (["--lora", "style=much"], 2, "the weight is 'much', but must be a number, as in style=0.8"),
    (["--lora", "style=nan"], 2, "weight is nan"),
    (["--lora", "style=1e9"], 2, "weight is 1000000000.0"),
    (["--lora", "word"], 1, "is no LoRA adapter for these models"),
    (["--lora", "broken.safetensors"], 1, "broken.safetensors' is damaged"),
    (["--lora", "empty"], 1, "'empty' has no 'pytorch_lora_weights.safetensors'"),
    (["--embedding", "style"], 1, "no embedding 'style'"),
    (["--embedding", "broken.safetensors"], 1, "broken.safetensors' is damaged"),
    (["--embedding", "word=cat</w>"], 1, "'cat</w>' is a token already"),
    (["--embedding", "none.pt"], 1, "no embedding 'none.pt': there is no such file"),
])
def test_errors(style, tiny, here, words, code, said):
    (here / "broken.safetensors").write_bytes(b"\xff" * 100)
    (here / "empty").mkdir()
    assert said in call("generate", "x", "-o", "x.png", "--model", tiny, *words, code=code).replace(" │ │ ", " ")
    assert not Path("x.png").exists()


def test_a_run_that_goes_on(style, tiny, here):
    """What is there is compared with what would be made now."""
    (here / "prompts.txt").write_text("a <toy>\n")
    words = ["generate", "--prompts", "prompts.txt", "--model", tiny, "--steps", 1, "--seed", 3, "--out-dir", "out"]
    given = ["--lora", "style=0.5", "--embedding", "word"]
    call(*words, *given)
    assert "note" not in call(*words, *given)
    assert "made with another adapter;" in call(*words, "--lora", "style", "--embedding", "word")
    assert "made with another embedding;" in call(*words, *given[:2])


def test_an_equals_sign_may_be_in_a_name(here):
    assert parse_adapter("a=0.5") == ("a", 0.5)
    assert parse_embedding("a=<b=c>") == ("a", "<b=c>")
    (here / "a=2").touch()
    assert parse_adapter("a=2") == ("a=2", 1.0)
    assert parse_adapter("a=2=0.5") == ("a=2", 0.5)
    assert parse_embedding("a=2=<b=c>") == ("a=2", "<b=c>")
