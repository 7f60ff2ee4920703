"""`calotype edit`, `inpaint` and `depth`: pictures made of pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import calotype
from calotype.inputs import input_hash, read_input
from calotype.recipe import Recipe, pixel_hash

from .calling import EMOJI, call, rewrite
from .conftest import save_tiny


def load(folder, cls="StableDiffusionImg2ImgPipeline"):
    pipeline = getattr(calotype, cls).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# -- edit ---------------------------------------------------------------------------------------------------------------


def test_the_bundled_checkpoint_edits_and_inpaints(photo):
    """A text-to-image checkpoint; nothing of it is loaded twice."""
    call("edit", photo, "a red apple", "--strength", 0.6, "--steps", 4, "-o", "e.png", "--height", 64, "--width", 64)
    call("inpaint", photo, "mask.png", "a red apple", "--steps", 2, "-o", "i.png", "--height", 64, "--width", 64)
    for name, task, size in (("e.png", "image-to-image", (64, 64)), ("i.png", "inpainting", (44, 36))):
        recipe = Recipe.from_png(name)
        assert (recipe.task, recipe.model, recipe.height, recipe.width) == (task, "calotype/emoji", 64, 64)
        assert Image.open(name).size == size
    assert "identical" in call("reproduce", "i.png")


def test_the_picture_is_the_one_that_a_script_makes(photo, tiny):
    said = call("edit", photo, "a heart", "--model", tiny, "--steps", 5, "--seed", 3, "--count", 2)
    assert "saved photo-3-0.png (44x36, seed 3" in said
    pipeline = load(tiny)
    made = pipeline("a heart", Image.open(photo), num_inference_steps=5, num_images_per_prompt=2,
                    generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)]).images
    assert [pixel_hash(one) for one in made] == [Recipe.from_png(f"photo-3-{i}.png").pixels for i in range(2)]
    recipe = Recipe.from_png("photo-3-1.png")
    assert recipe.inputs == {"image": {"file": "photo.png", "pixels": pixel_hash(Image.open(photo))}}
    assert (recipe.strength, recipe.height, recipe.width) == (0.8, 36, 44)
    assert "identical" in call("reproduce", "photo-3-1.png", "--model", tiny)
    assert recipe.generate(pipeline, {"image": read_input(photo)}).tobytes() == made[1].tobytes()
    with pytest.raises(ValueError, match="made of 'image', and 'image' is missing"):
        recipe.generate(pipeline)


def test_sizes_are_whole_multiples(photo, tiny):
    Image.open(photo).resize((45, 37)).save("odd.png")
    call("edit", "odd.png", "x", "--model", tiny, "--steps", 2, "-o", "a.png")
    call("edit", "odd.png", "x", "--model", tiny, "--steps", 2, "-o", "b.png", "--width", 20)
    assert [Image.open(name).size for name in ("a.png", "b.png")] == [(44, 36), (20, 36)]
    Image.new("RGB", (1, 40)).save("thin.png")
    assert "1 x 40 pixels; 2 each way is the least" in call("edit", "thin.png", "x", "--model", tiny, code=1)


def test_pictures_of_any_kind(photo, tiny):
    """Upright, on white, without a palette; the hash is that of what is seen."""
    picture = Image.open(photo)
    turned = picture.getexif()
    turned[0x0112] = 6  # a quarter turn
    picture.save("turned.jpg", exif=turned)
    assert read_input("turned.jpg").size == (36, 44)
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    clear.save("clear.png")
    assert input_hash(read_input("clear.png")) == pixel_hash(Image.new("RGB", picture.size, "white"))
    assert read_input("clear.png", "mask").getextrema() == (0, 0)
    picture.convert("P").save("p.gif")
    call("edit", "p.gif", "x", "--model", tiny, "--steps", 2, "-o", "x.png")
    assert Recipe.from_png("x.png").inputs["image"]["file"] == "p.gif"
    assert "identical" in call("reproduce", "x.png", "--model", tiny)


# -- inpaint ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--padding", 4], ["--blur", 2], ["--strength", 0.7], ["--height", 16, "--width", 20],
                                   ["--padding", 3, "--blur", 1]])
def test_what_is_outside_the_mask_stays(photo, tiny, words):
    call("inpaint", photo, "mask.png", "a heart", "--model", tiny, "--steps", 2, "-o", "x.png", "--seed", 1, *words)
    was, now = np.asarray(Image.open(photo)), np.asarray(Image.open("x.png"))
    mask = Image.open("mask.png")
    if "--blur" in words:
        mask = calotype.VaeImageProcessor.blur(mask, words[words.index("--blur") + 1])
    outside = np.asarray(mask) == 0
    assert outside.any()
    assert (was[outside] == now[outside]).all()
    assert (was[~outside] != now[~outside]).any()
    assert "identical" in call("reproduce", "x.png", "--model", tiny)


def test_without_the_overlay_it_is_what_the_pipeline_makes(photo, tiny):
    call("inpaint", photo, "mask.png", "a heart", "--model", tiny, "--steps", 2, "-o", "x.png", "--seed", 1, "--no-overlay")
    made = load(tiny, "StableDiffusionInpaintPipeline")(
        "a heart", Image.open(photo), Image.open("mask.png"), height=36, width=44, num_inference_steps=2,
        generator=[torch.Generator().manual_seed(1)]).images[0]
    recipe = Recipe.from_png("x.png")
    assert (recipe.pixels, recipe.overlay) == (pixel_hash(made), False)
    assert "identical" in call("reproduce", "x.png", "--model", tiny)


def test_a_checkpoint_for_inpainting(photo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inpaint")
    text = calotype.DiffusionPipeline.from_pretrained(save_tiny(folder / "text", channels=9))
    calotype.StableDiffusionInpaintPipeline.from_pipe(text).save_pretrained(folder / "nine")
    call("inpaint", photo, "mask.png", "x", "--model", folder / "nine", "--steps", 2, "-o", "x.png")
    for words in (["generate", "x"], ["edit", photo, "x"]):
        assert "it can do 'inpainting' (calotype inpaint)" in call(*words, "--model", folder / "nine", code=1)


# -- depth --------------------------------------------------------------------------------------------------------------


def test_depth(photo, depth_model):
    deep = np.linspace(0, 65535, 44 * 36).reshape(36, 44).astype(np.uint16)
    Image.fromarray(deep).save("depth.png")
    assert "saved photo-3.png (44x36" in call("depth", photo, "a heart", "--depth-map", "depth.png", "--model", depth_model,
                                              "--steps", 4, "--seed", 3)
    made = load(depth_model, "StableDiffusionDepth2ImgPipeline")(
        "a heart", Image.open(photo), torch.from_numpy(deep.astype(np.float32))[None], num_inference_steps=4,
        generator=[torch.Generator().manual_seed(3)]).images[0]
    recipe = Recipe.from_png("photo-3.png")
    assert recipe.pixels == pixel_hash(made)
    assert sorted(recipe.inputs) == ["depth_map", "image"]
    assert "identical" in call("reproduce", "photo-3.png", "--model", depth_model)
    deep[0, 0] += 1  # what 8 bits do not show
    Image.fromarray(deep).save("depth.png")
    assert "is not the depth_map that the picture was made of" in call("reproduce", "photo-3.png", "--model", depth_model, code=1)


def test_a_depth_map_that_shows_none(photo, depth_model, tiny):
    Image.new("L", (44, 36), 7).save("flat.png")
    assert "flat.png': a depth map" in call("depth", photo, "x", "--depth-map", "flat.png", "--model", depth_model, code=1)
    assert "no depth_estimator" in call("depth", photo, "x", "--model", depth_model, code=1)
    assert "which cannot do 'depth-to-image': it can do 'text-to-image'" in call("depth", photo, "x", "--model", tiny, code=1)
    assert "it can do 'depth-to-image' (calotype depth)" in call("edit", photo, "x", "--model", depth_model, code=1)


# -- what is wrong --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "code", "said"), [
    (["edit", "none.png", "x"], 2, "'none.png' does not exist"),
    (["edit", ".", "x"], 2, "is a directory"),
    (["edit", "words.png", "x"], 1, "'words.png' is text, and no picture"),
    (["edit", "half.png", "x"], 1, "'half.png' is a damaged PNG"),
    (["edit", "photo.png", "x", "--strength", "0"], 2, "--strength is 0, but must be above 0 and at most 1"),
    (["edit", "photo.png", "x", "--strength", "1.01"], 2, "--strength is 1.01"),
    (["edit", "photo.png", "x", "--strength", "0.1", "--steps", "5"], 1, "leaves none of 5 steps"),
    (["edit", "photo.png", "x", "--height", "33"], 1, "height is 33, but must be a multiple of 2"),
    (["edit", "photo.png", "x", "-o", "photo.png"], 1, "'photo.png' is what the picture is made of"),
    (["edit", "photo.png", "x", "--grid", "./photo.png"], 1, "is what the picture is made of"),
    (["edit", "photo.png", "x", "-o", "small.png"], 1, "'small.png' exists"),
    (["inpaint", "photo.png", "small.png", "x"], 1, "'small.png' has 8 x 8 pixels, but a mask must have those of the picture"),
    (["inpaint", "photo.png", "black.png", "x"], 1, "'black.png' is black everywhere"),
    (["inpaint", "photo.png", "mask.png", "x", "-o", "mask.png"], 1, "'mask.png' is what the picture is made of"),
    (["inpaint", "photo.png", "mask.png", "x", "--padding", "4", "--no-overlay"], 2, "it has no --no-overlay"),
    (["inpaint", "photo.png", "mask.png", "x", "--blur", "-1"], 2, "--blur"),
])
def test_errors(photo, tiny, words, code, said):
    here = photo.parent
    Image.new("L", (8, 8)).save("small.png")
    Image.new("L", (44, 36)).save("black.png")
    (here / "words.png").write_text("words")
    (here / "half.png").write_bytes(photo.read_bytes()[:900])
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    assert said in " ".join(call(*words, "--model", tiny, code=code).replace("│", "").split())
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


# -- reproduce ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def edited(photo, tiny) -> list[object]:
    """A picture beside those that it was made of, and the words to reproduce it."""
    call("inpaint", photo, "mask.png", "a heart", "--model", tiny, "--steps", 2, "-o", "x.png", "--seed", 1)
    return ["reproduce", "x.png", "--model", tiny]


def test_inputs_are_found_or_given(edited, photo):
    folder = photo.parent / "elsewhere"
    folder.mkdir()
    shutil.move("mask.png", folder / "other-name.png")
    said = call(*edited, code=1)
    assert "made of another (mask, 'mask.png'), and no file 'mask.png' lies beside it: say where it is with --mask FILE" in said
    assert "identical" in call(*edited, "--mask", folder / "other-name.png")
    assert "no file 'photo.png' lies" in call("reproduce", shutil.move("x.png", folder), *edited[2:], code=1)
    assert "identical" in call("reproduce", folder / "x.png", *edited[2:], "--image", photo, "--mask", folder / "other-name.png",
                               "-o", "again.png")
    assert Recipe.from_png("again.png") == Recipe.from_png(folder / "x.png")
    assert f"'{folder / 'none.png'}' is no file" in call("reproduce", folder / "x.png", "--image", folder / "none.png", code=1)
    assert "is what the picture is made of" in call(
        "reproduce", folder / "x.png", *edited[2:], "--image", photo, "-o", photo, code=1)


def test_inputs_that_differ(edited, photo):
    changed = Image.open(photo)
    changed.putpixel((5, 5), (1, 2, 3))
    changed.save(photo)
    said = call(*edited, "-o", "no.png", code=1)
    assert "'photo.png' is not the image that the picture was made of: the hash of its pixels is" in said
    assert "--anyway" in said and not Path("no.png").exists()
    said = call(*edited, "--anyway", code=1)
    assert "note: 'photo.png' is not the image" in said
    assert "different: off by at most" in said


def test_inputs_that_are_not_asked_for(edited, photo, apple):
    assert "'--depth-map' is given, but the picture was made of 'image' or 'mask'" in call(*edited, "--depth-map", photo, code=1)
    assert "'--image' is given, but the picture was made of no other" in call("reproduce", apple, "--image", photo, code=1)


@pytest.mark.parametrize("name", ["../photo.png", "/etc/passwd", "..", "", "C:\\photo.png", "a\x1b[2J.png", "x" * 5000, "\0"])
def test_a_picture_reads_no_file_but_its_neighbours(edited, photo, name):
    inputs = Recipe.from_png("x.png").inputs
    rewrite(Path("x.png"), inputs={**inputs, "image": {**inputs["image"], "file": name}})
    said = call(*edited, code=1)
    assert "say where it is with --image FILE" in said
    assert "\x1b" not in said
    assert "identical" in call(*edited, "--image", photo)


def test_the_whole_is_not_bound_to_a_folder(photo, apple):
    """A checkpoint of texts from a folder, where a picture made with it has only the folder's name."""
    shutil.copytree(EMOJI, "mine")
    call("edit", photo, "x", "--model", "mine", "--steps", 2, "-o", "x.png", "--height", 64, "--width", 64)
    assert "say where it is with --model" in call("reproduce", "x.png", code=1)
    assert "identical" in call("reproduce", "x.png", "--model", "mine")
