"""`calotype generate --prompts`: pictures of many texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from calotype.recipe import Recipe

from .calling import call

TEXT = "\ufeff# what to draw\na red heart\n\n  ein Käuzchen, 梟!  \n   # not this\na {red|blue} heart\n"


@pytest.fixture
def words(here, tiny):
    (here / "prompts.txt").write_text(TEXT, encoding="utf-8")
    return ["generate", "--prompts", "prompts.txt", "--model", tiny, "--steps", 1, "--seed", 5]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_picture_for_each(words, here):
    said = call(*words, "--out-dir", "out/new", "--wildcards")
    assert names(here / "out/new") == ["0001-a-red-heart.png", "0002-ein-käuzchen-梟.png", "0003-a-red-blue-heart.png"]
    assert f"saved {Path('out/new/0001-a-red-heart.png')} (32x32, seed 5" in said
    recipes = [Recipe.from_png(path) for path in sorted((here / "out/new").iterdir())]
    assert [one.seed for one in recipes] == [5] * 3
    assert recipes[1].prompt == "ein Käuzchen, 梟!"
    assert recipes[2].prompt in ("a red heart", "a blue heart")


def test_what_exists_is_skipped(words, here, monkeypatch):
    call(*words, "--out-dir", "out", "--count", 2)
    assert len(names(here / "out")) == 6
    before = {name: (here / "out" / name).stat().st_mtime_ns for name in names(here / "out")}
    (here / "out" / "0002-ein-käuzchen-梟-1.png").unlink()
    said = call(*words, "--out-dir", "out", "--count", 2)
    assert said.count("skipped") == 5 and said.count("saved") == 1
    assert "note" not in said
    changed = {name for name, when in before.items() if (here / "out" / name).stat().st_mtime_ns != when}
    assert changed == {"0002-ein-käuzchen-梟-1.png"}
    with monkeypatch.context() as patch:
        patch.setattr("calotype.cli.generate.load", None)
        assert "nothing to do: all 6 pictures are there" in call(*words, "--out-dir", "out", "--count", 2)
    said = call(*words, "--out-dir", "out", "--count", 2, "--overwrite")
    assert said.count("saved") == 6


def test_what_exists_of_other_settings_is_a_note(words, here):
    call(*words, "--out-dir", "out")
    (here / "out" / "0003-a-red-blue-heart.png").write_text("mine")
    said = call(*words, "--out-dir", "out", "--steps", 2, "--negative", "rain")
    assert "0001-a-red-heart.png was made with another negative_prompt and steps" in said
    assert "0003-a-red-blue-heart.png is not a picture as Calotype saves it" in said
    assert (here / "out" / "0003-a-red-blue-heart.png").read_text() == "mine"
    said = call(*words, "--out-dir", "out", "--lora", "style=0.5", "--model", "calotype/emoji", "--wildcards")
    assert "0001-a-red-heart.png was made with another model and adapter; --overwrite" in said


def test_a_sheet_has_a_row_for_each_prompt(words, here):
    call(*words, "--out-dir", "out", "--count", 2)
    (here / "out" / "0001-a-red-heart-0.png").unlink()
    call(*words, "--out-dir", "out", "--count", 2, "--grid", "sheet.png")
    sheet = Image.open("sheet.png")
    assert sheet.size == (2 * 36 - 4, 3 * 36 - 4)
    for i, name in enumerate(names(here / "out")):
        left, top = i % 2 * 36, i // 2 * 36
        assert sheet.crop((left, top, left + 32, top + 32)).tobytes() == Image.open(here / "out" / name).tobytes()
    assert "nothing to do" in call(*words, "--out-dir", "out", "--count", 2, "--grid", "sheet.png")
    (here / "out" / "0001-a-red-heart-0.png").unlink()
    assert "'sheet.png' exists" in call(*words, "--out-dir", "out", "--count", 2, "--grid", "sheet.png", code=1)
    assert not (here / "out" / "0001-a-red-heart-0.png").exists()
    call(*words, "--grid", "alone.png")
    assert names(here) == ["alone.png", "out", "prompts.txt", "sheet.png"]


@pytest.mark.parametrize(("given", "code", "said"), [
    (["--prompts", "prompts.txt", "a prompt", "--out-dir", "out"], 2, "exclude each other"),
    (["--prompts", "prompts.txt"], 2, "go into --out-dir FOLDER, or onto --grid FILE"),
    (["--prompts", "prompts.txt", "--out-dir", "out", "-o", "x.png"], 2, "-o is for one prompt"),
    (["a prompt", "--out-dir", "out"], 2, "--out-dir goes with --prompts"),
    ([], 2, "a prompt is needed"),
    (["--prompts", "none.txt", "--out-dir", "out"], 2, "does not exist"),
    (["--prompts", "prompts.txt", "--out-dir", "prompts.txt"], 2, "is a file"),
    (["--prompts", "empty.txt", "--out-dir", "out"], 1, "has no prompts"),
    (["--prompts", "latin.txt", "--out-dir", "out"], 1, "latin.txt' is damaged: it is not UTF-8"),
])
def test_errors(words, here, given, code, said):
    (here / "empty.txt").write_text("# nothing\n\n")
    (here / "latin.txt").write_bytes("Käuzchen".encode("latin-1"))
    assert said in call("generate", *given, code=code).replace(" │ │ ", " ")
    assert not (here / "out").exists()
