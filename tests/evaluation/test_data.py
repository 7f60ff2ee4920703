"""Data sets and prompts as they lie in files."""

from __future__ import annotations

import json

import pytest
from drawings import save_drawings
from PIL import Image

from calotype.evaluation import Prompt, prompts_of, read_prompts, read_rows
from calotype.evaluation.data import evenly, read_pictures


def test_rows_and_their_pictures(tmp_path):
    rows = read_rows(save_drawings(tmp_path))
    assert len(rows) == 12
    assert (rows[0].label, rows[0].style, rows[0].split, rows[0].texts) == ("disc", "red", "held_out", ("a red disc", "disc"))
    pictures = read_pictures(rows[:2], 16, 24)
    assert pictures.shape == (2, 3, 16, 24)
    assert float(pictures.max()) == 1
    (tmp_path / "metadata.jsonl").unlink()
    assert [row.path.name for row in read_rows(tmp_path)][:2] == ["bar-blue.png", "bar-green.png"]


def test_prompts(tmp_path):
    rows = [{"prompt": "a red disc", "label": "disc", "style": "red", "seed": 7, "split": "held_out"}, {"prompt": "a bar"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = read_prompts(tmp_path / "p.jsonl", seed=100)
    assert first == Prompt("a red disc", 7, "disc", "red", "held_out")
    assert second == Prompt("a bar", 101)
    (tmp_path / "several.jsonl").write_text('{"prompt": "round", "label": ["disc", "ring"], "style": "red"}')
    assert read_prompts(tmp_path / "several.jsonl") == [Prompt("round", 0, ("disc", "ring"), "red")]
    five = read_prompts(tmp_path / "p.jsonl", seed=100, count=5)
    assert [one.prompt for one in five] == ["a red disc", "a bar"] * 2 + ["a red disc"]
    assert len({one.seed for one in five}) == 5
    (tmp_path / "p.txt").write_text("# no\n\na bar\na disc\n")
    assert read_prompts(tmp_path / "p.txt", 3) == [Prompt("a bar", 3), Prompt("a disc", 4)]
    assert read_prompts(tmp_path / "p.txt", 3, 1) == [Prompt("a disc", 4)]  # the middle of the file


def test_prompts_of_a_data_set(tmp_path):
    rows = read_rows(save_drawings(tmp_path))
    prompts = prompts_of(rows, 4, seed=5)
    assert [one.split for one in prompts] == ["held_out", "held_out", "train", "train"]
    assert [one.seed for one in prompts] == [5, 6, 7, 8]
    assert prompts[0].prompt == "a red disc"
    with pytest.raises(ValueError, match="has no texts"):
        prompts_of([type(rows[0])(rows[0].path)] * 3, 2)


def test_even_choices():
    assert evenly([*range(10)], 3) == [1, 5, 8]
    assert evenly([1, 2], 5) == [1, 2]


@pytest.mark.parametrize(("text", "said"), [
    ("{", "metadata.jsonl' is damaged: it is not JSON"), ('{"text": "x"}', "has no column 'file_name'"),
    ('{"file_name": "a.png", "text": 3}', "a.png' is 3"),
    ('{"file_name": "a.png", "label": 3}', "label is 3, but must be a text"),
    ('{"file_name": "a.png"}', "has 1 picture, and an evaluation needs at least 2")])
def test_bad_rows(tmp_path, text, said):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(ValueError) as error:
        read_rows(tmp_path)
    assert said in str(error.value)


def test_pictures_that_are_not_there(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}')
    with pytest.raises(FileNotFoundError, match="names 'a.png', which is not there"):
        read_rows(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not there; a folder of pictures is needed"):
        read_rows(tmp_path / "nowhere")


@pytest.mark.parametrize(("text", "said"), [
    ('{"text": "x"}', "line 1 has no prompt"), ('{"prompt": "x", "seed": -1}', "seed is -1"), ("", "has no prompts"),
    ('{"prompt": "x", "label": []}', "label is \\[\\], but must be a text, or several"),
    ('{"prompt": "x", "label": ["a", 1]}', "label is .'a', 1."), ('{"prompt": "x", "style": ["a"]}', "style is .'a'.")])
def test_bad_prompts(tmp_path, text, said):
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_prompts(tmp_path / "p.jsonl")
