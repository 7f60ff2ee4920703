"""Recipes: in and out of a picture, and what a stranger's picture cannot do."""

from __future__ import annotations

import json
import string
import zlib
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from calotype.pipelines.quality import QUALITIES
from calotype.recipe import DTYPES, KEY, SYNTAXES, Recipe, pixel_hash
from calotype.registry import SCHEDULERS
from calotype.tasks import TASKS

NOTED = {"file": "photo.png", "pixels": "a" * 64}
STYLE = {"file": "style", "revision": None, "content": "a" * 64, "weight": 1.0}
WORD = {"file": "word", "revision": "a" * 40, "content": "a" * 64, "token": None}

plain = Recipe(
    model="calotype/emoji", model_hash="a" * 64, prompt="a cat", seed=7, steps=2, guidance=7.5, height=128, width=128,
    scheduler="PNDMScheduler", scheduler_config={"beta_start": 0.1, "clip": None, "kinds": ["a"]})
picture = Image.effect_noise((24, 16), 90).convert("RGB")
hashes = st.text(string.hexdigits[:16], min_size=64, max_size=64)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10**6, 10**6) | st.floats(-1e6, 1e6) | st.text(), st.lists, max_leaves=5)
files = {"file": st.text(), "revision": st.none() | hashes.map(lambda text: text[:40]), "content": hashes}
noted = st.fixed_dictionaries({"file": st.text(), "pixels": hashes})
recipes = st.tuples(st.integers(1, 64), st.sampled_from(sorted(TASKS))).flatmap(lambda drawn: recipes_of(*drawn))


def recipes_of(batch: int, task: str) -> st.SearchStrategy[Recipe]:
    return st.builds(
        Recipe, model=st.text(), model_hash=hashes, prompt=st.text(), negative_prompt=st.text(), seed=st.integers(64, 2**53),
        steps=st.integers(1, 10_000), guidance=st.floats(-1e4, 1e4), height=st.integers(1, 8192), width=st.integers(1, 8192),
        scheduler=st.text(), scheduler_config=st.dictionaries(st.text(string.ascii_letters, min_size=1), json_values),
        revision=st.none() | hashes.map(lambda text: text[:40]), variant=st.none() | st.text(), index=st.integers(0, batch - 1),
        batch=st.just(batch), dtype=st.sampled_from(DTYPES), device=st.text(), pixels=hashes | st.just(""),
        versions=st.dictionaries(st.text(), st.text()), strength=st.floats(0, 1), padding=st.none() | st.integers(0, 8192),
        blur=st.integers(0, 1024), overlay=st.booleans(), prompt_syntax=st.sampled_from([None, *SYNTAXES]),
        long_prompts=st.booleans(), clip_skip=st.none() | st.integers(0, 100), task=st.just(task),
        quality=st.sampled_from(QUALITIES), compiled=st.booleans(),
        adapters=st.lists(st.fixed_dictionaries({**files, "weight": st.floats(-1000, 1000)}), max_size=2),
        embeddings=st.lists(st.fixed_dictionaries({**files, "token": st.none() | st.just("<toy>")}), max_size=2),
        inputs=st.fixed_dictionaries(dict.fromkeys(TASKS[task].inputs, noted)))


def write(path, chunk: str | None, cut: int | None = None):
    text = PngInfo()
    if chunk is not None:
        text.add_itxt(KEY, chunk)
    picture.save(path, pnginfo=text)
    if cut is not None:
        path.write_bytes(path.read_bytes()[:cut])
    return path


@settings(deadline=None)
@given(recipes)
def test_json_round_trip(recipe):
    text = recipe.to_json()
    assert text.isascii()
    assert Recipe.from_json(text) == recipe


@settings(max_examples=25, deadline=None)
@given(recipes)
def test_png_round_trip(tmp_path_factory, recipe):
    path = tmp_path_factory.mktemp("r") / "x.png"
    recipe.save_png(picture, path)
    assert Recipe.from_png(path) == replace(recipe, pixels=pixel_hash(picture))
    assert Image.open(path).tobytes() == picture.tobytes()


def test_other_programs_see_the_usual_words(tmp_path):
    recipe = replace(plain, prompt="ein Käuzchen, 梟\nat night", negative_prompt="rain", guidance=7.0)
    recipe.save_png(picture, tmp_path / "x.png")
    shown = Image.open(tmp_path / "x.png").text["parameters"]
    assert shown.startswith(
        "ein Käuzchen, 梟\nat night\nNegative prompt: rain\nSteps: 2, Sampler: PNDMScheduler, CFG scale: 7, Seed: 7, "
        "Size: 128x128, Model hash: aaaaaaaaaa, Model: calotype/emoji, Version: Calotype ")
    changed = replace(recipe, task="image-to-image", inputs={"image": NOTED}, strength=0.6, clip_skip=1)
    changed.save_png(picture, tmp_path / "y.png")
    shown = Image.open(tmp_path / "y.png").text["parameters"]
    assert "Model: calotype/emoji, Denoising strength: 0.6, Clip skip: 2, Version" in shown


@pytest.mark.parametrize(("change", "words"), [
    ({"steps": "50"}, "steps is int, and this is '50'"),
    ({"steps": True}, "steps is int"),
    ({"steps": 0}, "steps is 0, but must be from 1 to 10000"),
    ({"height": 10**9}, "height is 1000000000"),
    ({"guidance": float("nan")}, "guidance is nan"),
    ({"guidance": None}, "guidance is float"),
    ({"prompt": ["a"]}, "prompt is str"),
    ({"scheduler_config": []}, "scheduler_config is dict"),
    ({"scheduler_config": {"num_train_timesteps": 10**12}}, "num_train_timesteps"),
    ({"scheduler_config": {"\x1b[2J": 1}}, r"'\\x1b\[2J'"),
    ({"model_hash": "A" * 64}, "model_hash is 'AAA"),
    ({"revision": "../../main"}, "revision is '../../main', but must be 40 hex"),
    ({"dtype": "float61"}, "dtype is 'float61', but must be 'float32', .*; did you mean 'float16'"),
    ({"task": "run"}, "task is 'run', but must be 'text-to-image', .* or 'unconditional'"),
    ({"task": "image-to-image"}, "of 'image-to-image' names no 'image'"),
    ({"task": "inpainting", "inputs": {"image": NOTED}}, "of 'inpainting' names no 'mask'"),
    ({"inputs": {"image": NOTED}}, "an input of 'text-to-image' is 'image'"),
    ({"task": "image-to-image", "inputs": {"image": NOTED, "mask": NOTED}}, "is 'mask', but must be 'image'"),
    ({"task": "image-to-image", "inputs": {"image": "photo.png"}}, "image is its file and its pixels, and this is 'photo.png'"),
    ({"task": "image-to-image", "inputs": {"image": {**NOTED, "file": 3}}}, "image is its file and its pixels"),
    ({"task": "image-to-image", "inputs": {"image": {**NOTED, "pixels": "A"}}}, "image has pixels 'A', but must have 64 hex"),
    ({"inputs": ["image"]}, "inputs is dict"),
    ({"strength": 1.5}, "strength is 1.5, but must be from 0 to 1"),
    ({"padding": -1}, "padding is -1, but must be from 0 to 8192"),
    ({"blur": 10**6}, "blur is 1000000"),
    ({"overlay": 1}, "overlay is bool, and this is 1"),
    ({"prompt_syntax": "latex"}, "prompt_syntax is 'latex', but must be None, 'a1111' or 'compel'"),
    ({"clip_skip": True}, "clip_skip is int"),
    ({"quality": "low"}, "quality is 'low', but must be 'exact', 'high' or 'draft'"),
    ({"compiled": 1}, "compiled is bool"),
    ({"adapters": {}}, "adapters is list"),
    ({"adapters": ["style"]}, "adapter has a file, a revision, a content and a weight, and this is 'style'"),
    ({"adapters": [{**STYLE, "path": "/"}]}, "adapter has a file, a revision"),
    ({"adapters": [{**STYLE, "file": 3}]}, "adapter has texts"),
    ({"adapters": [{**STYLE, "content": "A"}]}, "adapter has content 'A', but must have 64 hex"),
    ({"adapters": [{**STYLE, "revision": "../main"}]}, "adapter has revision '../main'"),
    ({"adapters": [{**STYLE, "weight": "1"}]}, "adapter's weight is '1', but must be a number from -1000 to 1000"),
    ({"adapters": [{**STYLE, "weight": True}]}, "adapter's weight is True"),
    ({"adapters": [{**STYLE, "weight": float("nan")}]}, "adapter's weight is nan"),
    ({"embeddings": [STYLE]}, "embedding has a file, a revision, a content and a token"),
    ({"embeddings": [{**WORD, "token": " "}]}, "embedding has token ' '"),
    ({"index": 2, "batch": 2}, "picture 2 with seed 7 cannot be one of 2"),
    ({"index": 8, "batch": 9}, "picture 8 with seed 7"),
    ({"seed": -1}, "seed is -1"),
    ({"stepz": 3}, "no argument 'stepz'; did you mean 'steps'"),
    ({"format": 4}, "format 4, newer than 3"),
    ({"format": 0}, "format is 0"),
    ({"format": True}, "format is int"),
    ({"format": "2"}, "format is int"),
])
def test_what_cannot_be_is_named(tmp_path, change, words):
    path = write(tmp_path / "x.png", json.dumps(asdict(plain) | change))
    with pytest.raises(ValueError, match=f"x.png.*{words}"):
        Recipe.from_png(path)


@pytest.mark.parametrize("text", ["", "no", "[1]", "3", "null", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_a_damaged_recipe(tmp_path, text):
    with pytest.raises(ValueError, match="x.png.*the recipe is damaged"):
        Recipe.from_png(write(tmp_path / "x.png", text))


def test_a_recipe_that_lacks_something(tmp_path):
    lacking = {name: value for name, value in asdict(plain).items() if name != "seed"}
    with pytest.raises(ValueError, match=r"x.png.*missing.*'seed'"):
        Recipe.from_png(write(tmp_path / "x.png", json.dumps(lacking)))


def test_a_newer_format_is_read_as_far_as_it_is_known(tmp_path):
    newer = json.dumps(asdict(plain) | {"format": 9, "mood": "blue"})
    assert Recipe.from_png(write(tmp_path / "x.png", newer), anyway=True) == plain


def test_the_first_format_is_read(tmp_path):
    since = ("inputs", "strength", "padding", "blur", "overlay", "prompt_syntax", "long_prompts", "clip_skip", "quality",
             "adapters", "embeddings", "compiled")
    first = {name: value for name, value in asdict(plain).items() if name not in since} | {"format": 1}
    assert Recipe.from_png(write(tmp_path / "x.png", json.dumps(first))) == plain


def test_no_recipe(tmp_path):
    with pytest.raises(ValueError, match=r"x.png': no recipe in it"):
        Recipe.from_png(write(tmp_path / "x.png", None))


def test_a_picture_that_claims_to_be_huge(tmp_path):
    path = write(tmp_path / "x.png", plain.to_json())
    content = bytearray(path.read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2  # of the header, whose checksum follows
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.png' has too many pixels"):
        Recipe.from_png(path)


@pytest.mark.parametrize("cut", [0, 5, 20, 40, 300, -200])
def test_a_truncated_picture(tmp_path, cut):
    with pytest.raises(ValueError, match=r"x.png"):
        Recipe.from_png(write(tmp_path / "x.png", plain.to_json(), cut))


def test_no_picture(tmp_path):
    (tmp_path / "x.png").write_text("words")
    with pytest.raises(ValueError, match=r"x.png' is text, .*'PNG'"):
        Recipe.from_png(tmp_path / "x.png")
    picture.save(tmp_path / "x.jpg")
    with pytest.raises(ValueError, match=r"x.jpg' is JPEG, .*'PNG'"):
        Recipe.from_png(tmp_path / "x.jpg")
    with pytest.raises(FileNotFoundError):
        Recipe.from_png(tmp_path / "none.png")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1400), st.integers(1, 255))
def test_a_changed_byte_never_leads_to_another_error(tmp_path_factory, at, flip):
    path = tmp_path_factory.mktemp("r") / "x.png"
    plain.save_png(picture, path)
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= flip
    path.write_bytes(content)
    said = ""
    try:
        Recipe.from_png(path)
    except ValueError as error:
        said = str(error)
    assert not said or "x.png" in said


# -- what a recipe may ask for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc", "../up", "~/x", "folder", "a/b/c", "//host/share", "C:\\x", "", "owner/here"])
def test_a_picture_opens_no_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "here").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="say where it is with --model"):
        replace(plain, model=name).load()


def test_a_picture_names_classes_that_there_are():
    with pytest.raises(ValueError, match=r"no scheduler 'PNDMSchedule', .*did you mean 'PNDMScheduler'"):
        replace(plain, scheduler="PNDMSchedule").load()
    for name in ("Path", "StableDiffusionPipeline", "os.system"):
        with pytest.raises(ValueError, match="no scheduler"):
            replace(plain, scheduler=name).load()


def test_schedulers_are_all():
    from calotype.schedulers import ALL

    assert sorted(cls.__name__ for cls in ALL) == SCHEDULERS


def test_generate_in_python():
    import calotype

    pipeline = calotype.DiffusionPipeline.from_pretrained("calotype/emoji")
    pipeline.set_progress_bar_config(disable=True)
    recipe = replace(plain, scheduler_config=dict(pipeline.scheduler.config), batch=2, index=1, height=64, width=96)
    told = []
    made = recipe.pictures(pipeline, lambda done, total: told.append((done, total)))
    assert [one.size for one in made] == [(96, 64)] * 2
    assert told == [(1, 3), (2, 3), (3, 3)]
    first = replace(recipe, scheduler_config={k: v for k, v in pipeline.scheduler.config.items() if k[0] != "_"}, index=0, seed=6)
    assert first.generate().tobytes() == made[0].tobytes()
