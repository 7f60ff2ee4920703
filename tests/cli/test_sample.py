"""`calotype sample`: pictures of unconditional models."""

from __future__ import annotations

import json

import torch
from PIL import Image

import calotype
from calotype.recipe import Recipe, pixel_hash
from calotype.tasks import defaults

from .calling import call


def test_pictures_and_their_recipes(unconditional, here):
    said = call("sample", "--model", unconditional, "--count", 2, "--steps", 3, "--seed", 4, "-o", "x.png", "--grid", "g.png")
    assert "saved g.png (20x8, a contact sheet of 2)" in said
    recipe = Recipe.from_png("x-1.png")
    assert (recipe.task, recipe.seed, recipe.index, recipe.batch, recipe.steps) == ("unconditional", 5, 1, 2, 3)
    assert (recipe.height, recipe.width, recipe.scheduler, recipe.prompt) == (8, 8, "DDPMScheduler", "")
    assert "identical" in call("reproduce", "x-1.png", "--model", unconditional)
    pipeline = calotype.DiffusionPipeline.from_pretrained(unconditional)
    pipeline.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    picture = pipeline(batch_size=2, generator=seeds, num_inference_steps=3).images[1]
    assert pixel_hash(picture) == pixel_hash(Image.open("x-1.png")) == recipe.pixels


def test_another_solver(unconditional, here):
    call("sample", "--model", unconditional, "--scheduler", "ddim", "--steps", 2, "--seed", 4)
    assert Recipe.from_png("ddpm-4.png").scheduler == "DDIMScheduler"
    assert "identical" in call("reproduce", "ddpm-4.png", "--model", unconditional)
    assert defaults(calotype.DiffusionPipeline.from_pretrained(unconditional)) == {"steps": 1000, "guidance": 1.0}


def test_errors(unconditional, tiny, here):
    assert "Missing option '--model'" in call("sample", code=2)
    assert ("which cannot do 'unconditional': it can do 'text-to-image', 'image-to-image' or 'inpainting'"
            in call("sample", "--model", tiny, code=1))


def test_info(unconditional):
    facts = json.loads(call("info", unconditional, "--json"))
    assert facts["picture_size"] == [8, 8]
    unet = calotype.UNet2DModel.from_pretrained(unconditional / "unet")
    assert {part["name"]: part["parameters"] for part in facts["components"]} == {
        "scheduler": 0, "unet": unet.num_parameters()}
