"""`calotype evaluate`: checkpoints judged."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from drawings import save_drawings
from PIL import Image

import calotype
from calotype.evaluation import Prompt, generated
from calotype.made import noted_in

from .calling import call


@pytest.fixture(scope="session")
def drawings(tmp_path_factory):
    return save_drawings(tmp_path_factory.mktemp("drawings"))


def test_two_checkpoints(tiny, drawings, here):
    other = shutil.copytree(tiny, here / "other")
    words = ["--data", drawings, "--count", 6, "--steps", 2, "--measured", 2]
    said = call("evaluate", tiny, other, *words, "--batch", 4, "-o", "report.json", "--sheets", "sheets", "--pictures", "kept")
    assert "12 pictures, compared by 'encoder'" in said
    for measure in ("autoencoder PSNR, dB", "loss of the noise", "FID", "KID x 1000", "label, top 5, held out", "style, train",
                    "nearest training picture"):
        assert measure in said
    assert "fewer pictures do not settle" in said
    report = json.loads((here / "report.json").read_text())
    one, two = report["checkpoints"]["tiny"], report["checkpoints"]["other"]
    one.pop("seconds"), two.pop("seconds")
    assert one == two  # the same weights
    assert report["features"] == "encoder"
    assert report["baseline"]["count"] == 1
    assert one["count"] == 6
    assert {one["prompts"][part]["count"] for part in ("train", "held_out")} == {3}
    assert len(one["loss"]["bands"]) == 10
    assert one["loss"]["space"] == "latents"
    assert Image.open("sheets/tiny.png").size == (6 * 36 - 4, 32)
    kept = {path.name: path.stat().st_mtime_ns for path in (here / "kept" / "tiny").glob("*.png")}
    assert len(kept) == 6
    next((here / "kept" / "tiny").glob("*.png")).unlink()
    call("evaluate", tiny, *words, "-o", "again.json", "--pictures", "kept", "--batch", 3)
    again = json.loads((here / "again.json").read_text())["checkpoints"]["tiny"]
    now = {path.name: path.stat().st_mtime_ns for path in (here / "kept" / "tiny").glob("*.png")}
    assert now.keys() == kept.keys()
    assert sum(now[name] != kept[name] for name in kept) == 1
    assert again["neighbours"] == one["neighbours"]
    assert again["fid"] == pytest.approx(one["fid"], rel=1e-3)
    assert again["loss"]["epsilon"] == pytest.approx(one["loss"]["epsilon"], rel=1e-5)


def test_what_exists_is_not_replaced(tiny, drawings, here):
    (here / "sheets").mkdir()
    for name in ("r.json", "sheets/tiny.png"):
        (here / name).write_text("mine")
    words = ["evaluate", tiny, "--data", drawings, "--count", 2, "--steps", 1, "--measured", 0]
    assert "'r.json' exists" in call(*words, "-o", "r.json", code=1)
    assert "'sheets/tiny.png' exists" in call(*words, "--sheets", "sheets", code=1)
    call(*words, "-o", "r.json", "--overwrite")
    assert json.loads((here / "r.json").read_text())["checkpoints"]


def test_prompts_of_a_file(tiny, drawings, here):
    (here / "p.jsonl").write_text('{"prompt": "a red bar", "label": "bar", "seed": 3}\n{"prompt": "a cat", "label": "cat"}\n')
    call("evaluate", tiny, "--data", drawings, "--prompts", "p.jsonl", "--steps", 1, "--measured", 0, "-o", "r.json")
    said = json.loads((here / "r.json").read_text())["checkpoints"]["tiny"]
    assert "loss" not in said
    assert [one["seed"] for one in said["prompts_given"]] == [3, 1]
    assert said["prompts"]["all"]["label"]["count"] == 1  # there are no cats
    (here / "p.txt").write_text("a red bar\na cat\n")
    said = call("evaluate", tiny, "--data", drawings, "--prompts", "p.txt", "--steps", 1, "--measured", 0)
    assert "label" not in said


def test_an_unconditional_checkpoint(unconditional, drawings, here):
    call("evaluate", unconditional, "--data", drawings, "--count", 3, "--steps", 2, "--measured", 3, "-o", "r.json")
    said = json.loads((here / "r.json").read_text())["checkpoints"]["ddpm"]
    assert said["loss"]["space"] == "pixels"
    assert said["prompts"]["all"]["nearest"] > 0
    assert said["prompts"]["all"]["label"] is None
    assert "autoencoder" not in said


def test_a_picture_does_not_depend_on_its_batch(tiny):
    pipeline = calotype.DiffusionPipeline.from_pretrained(tiny)
    prompts = [Prompt("a heart", 3), Prompt("a moon", 9), Prompt("a heart", 4)]
    whole, single = (generated(pipeline, prompts, steps=2, batch=batch) for batch in (3, 1))
    right = pipeline("a moon", num_inference_steps=2, generator=torch.Generator().manual_seed(9)).images[0]
    for one, other in zip(whole, single, strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
    assert np.abs(np.asarray(right, int) - np.asarray(single[1], int)).max() <= 1
    assert whole[0].tobytes() != whole[2].tobytes()


def test_other_weights_are_other_pictures(tiny, tmp_path):
    pipeline = calotype.DiffusionPipeline.from_pretrained(tiny)
    prompts = [Prompt("a heart", 3)]
    generated(pipeline, prompts, steps=1, folder=tmp_path)
    generated(pipeline, prompts, steps=1, folder=tmp_path)
    assert len([*tmp_path.glob("[!.]*")]) == 1
    generated(pipeline, prompts, steps=2, folder=tmp_path)
    with torch.no_grad():
        next(pipeline.unet.parameters())[0] += 0.1
    generated(pipeline, prompts, steps=1, folder=tmp_path)
    assert len([*tmp_path.glob("[!.]*")]) == 3
    assert {path.name for path in tmp_path.glob("[!.]*")} == noted_in(tmp_path)  # so that they never count as data


@pytest.mark.parametrize(("words", "code", "said"), [
    (["--features", "encodr"], 2, "did you mean 'encoder'"), (["--features", "clip"], 1, "need the folder of a CLIP"),
    (["--count", "1"], 2, "2"), (["--split", "heldout"], 1, "no picture of the data set has the split 'heldout'"),
    (["--prompts", "one.txt"], 1, "judged by at least 2"), (["-o", "."], 1, "is a folder"),
    (["--dtype", "half"], 2, "dtype is 'half'")])
def test_what_is_wrong(tiny, drawings, here, words, code, said):
    (here / "one.txt").write_text("a cat\n")
    assert said in call("evaluate", tiny, "--data", drawings, "--steps", 1, *words, code=code)


def test_checkpoints_that_cannot_be_judged(tiny, depth_model, drawings, here):
    assert "named twice" in call("evaluate", tiny, tiny, "--data", drawings, code=1)
    assert "cannot be evaluated" in call("evaluate", depth_model, "--data", drawings, code=1)
    (here / "few").mkdir()
    Image.new("RGB", (8, 8)).save("few/a.png")
    assert "needs at least 2" in call("evaluate", tiny, "--data", "few", code=1)
