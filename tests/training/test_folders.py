"""What in a folder is data: pictures, tables and captions as people's systems write them, and nothing that Calotype made."""

from __future__ import annotations

import json
import os
import re

import pytest
from PIL import Image

from calotype.evaluation import read_prompts, read_rows
from calotype.made import note_made
from calotype.training.folders import folder_entries
from calotype.training.tables import table_rows


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name, format="PNG")
    return folder


def names(folder, caption_column=None, **how):
    return [entry.row["file_name"] for entry in folder_entries(folder, caption_column, **how)]


def run(folder, **settings):
    """What a training run leaves beside its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"output_dir": folder, "checkpointing_steps": 500, **settings}
    (folder / "settings.yaml").write_text("".join(f"{key}: {value}\n" for key, value in told.items()))
    return put(folder, "samples/step-000002.png", "class/00000.png", "logs/media/images/x.png", "cache/x.png",
               "checkpoint-2/x.png")


# -- which files are pictures ----------------------------------------------------------------------------------------


def test_endings_hidden_files_and_folders_called_as_pictures(tmp_path, caplog):
    put(tmp_path, "A.PNG", "b.JpG", "dir.png/c.webp", "._A.PNG", ".thumb/x.png", "d.TIFF", "e.gif", "f.gif")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "Thumbs.db").write_bytes(b"\0")
    assert names(tmp_path) == ["A.PNG", "b.JpG", "dir.png/c.webp"]
    assert "left out in" in caplog.text and "1 .tiff files" in caplog.text and "2 .gif files" in caplog.text
    assert len(caplog.records) == 1


def test_links(tmp_path, caplog):
    put(tmp_path / "data", "a.png", "deep/b.png")
    put(tmp_path / "other", "c.png")
    try:
        for link, target in (("link.png", "a.png"), ("loop", "."), ("deep/up", ".."), ("away", "../other"), 
                             ("gone.png", "no.png"), ("self.png", "self.png")):
            os.symlink(target, tmp_path / "data" / link)
    except OSError:
        pytest.skip("no links here")
    assert names(tmp_path / "data") == ["a.png", "deep/b.png", "link.png"]
    assert "3 links to folders" in caplog.text and "2 links that lead nowhere" in caplog.text


def test_no_pictures_says_what_there_is_instead(tmp_path):
    put(tmp_path, "a.tiff", "b.TIFF")
    with pytest.raises(FileNotFoundError, match=r"no pictures in .*\(2 \.tiff files, which are not read\)"):
        names(tmp_path)


# -- what Calotype made ----------------------------------------------------------------------------------------------


def test_what_runs_made_is_no_data(tmp_path, caplog):
    put(tmp_path, "a.png", "deep/b.png")
    run(tmp_path / "deep" / "dots", train_data_dir=tmp_path)
    assert names(tmp_path) == ["a.png", "deep/b.png"]
    assert "1 folders of training runs" in caplog.text
    assert names(tmp_path, not_in=[tmp_path / "deep"]) == ["a.png"]
    with pytest.raises(FileNotFoundError, match="no pictures"):
        read_rows(tmp_path / "deep" / "dots")
    assert len(read_rows(tmp_path)) == 2


@pytest.mark.parametrize("data", ["photos/cats", "photos/cats/raw"])
def test_pictures_that_lie_in_their_own_run_stay_data(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    cats = run(put(tmp_path / "photos/cats", "1.png", "raw/samples/2.png"), output_dir="photos/cats", train_data_dir=data)
    assert names(cats, not_in=[cats]) == names(cats) == ["1.png", "raw/samples/2.png"]
    assert names(tmp_path) == ["photos/cats/1.png", "photos/cats/raw/samples/2.png"]


def test_a_folder_called_as_those_of_runs_is_data_elsewhere(tmp_path):
    put(tmp_path, "samples/a.png", "class/b.png", "checkpoint-1/c.png", "logs/d.png")
    (tmp_path / "settings.yaml").write_text("camera: 7\n")  # of something else
    assert len(names(tmp_path)) == 4


def test_pictures_noted_as_made_are_no_data_but_where_they_are_asked_for(tmp_path, caplog):
    put(tmp_path, "a.png", "kind/00000.png", "kind/own.png")
    note_made(tmp_path / "kind", ["00000.png"])
    note_made(tmp_path / "kind", ["00001.png"])
    assert names(tmp_path) == ["a.png", "kind/own.png"] and "1 pictures made by Calotype" in caplog.text
    assert names(tmp_path / "kind") == ["00000.png", "own.png"]


# -- captions --------------------------------------------------------------------------------------------------------


def captions(folder):
    return {entry.row["file_name"]: entry.captions for entry in folder_entries(folder)}


def test_captions_beside_pictures(tmp_path, caplog):
    put(tmp_path, "a.PNG", "b.png", "c.v2.png", "d.png")
    (tmp_path / "a.TXT").write_bytes("\ufeffa cat\u2028on a mat\r\n\r\nsecond\r".encode())
    (tmp_path / "c.v2.txt").write_text("see")
    (tmp_path / "d.txt").write_text(" \n")
    (tmp_path / "e.txt").write_text("of nothing")
    assert captions(tmp_path) == {"a.PNG": ("a cat\u2028on a mat", "second"), "b.png": (), "c.v2.png": ("see",), "d.png": ()}
    assert "1 .txt files with no picture of their name" in caplog.text and "2 of 4 pictures" in caplog.text
    (tmp_path / "d.TXT").write_text("other")
    if len(list(tmp_path.glob("d.*"))) == 3:  # where the file system tells them apart
        with pytest.raises(ValueError, match=r"d\.TXT' and .*d\.txt' both are captions of one picture"):
            captions(tmp_path)


def test_lines_of_json_end_where_lines_of_files_do(tmp_path, caplog):
    put(tmp_path, "a.png", "b.png", "c.png", "d.png")
    rows = [{"file_name": "a.png", "text": "a\u2028b\x85c"}, {"file_name": "b.png", "text": ""},
            {"file_name": "./a.png", "text": "x"}, {"file_name": "c.png", "text": None}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "METADATA.JSONL").write_bytes(("\ufeff" + text).encode())
    assert [entry.captions for entry in folder_entries(tmp_path)] == [("a\u2028b\x85c",), ("",), ("x",), ()]
    for words in ("1 pictures that are in no metadata", "2 of 4 pictures", "1 pictures in .* are named more than once"):
        assert [record for record in caplog.records if re.search(words, record.getMessage())]


@pytest.mark.parametrize(("row", "said"), [
    ({"file_name": "A.png"}, "names 'A.png', which is not there; did you mean 'a.png'"),
    ({"file_name": "dir.png"}, "names 'dir.png', which is a folder"),
    ({"file_name": "deep\\b.png"}, "which is not there")])
def test_pictures_that_a_table_names_and_that_are_not_there(tmp_path, row, said):
    put(tmp_path, "a.png", "deep/b.png", "dir.png/x.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    if (tmp_path / "A.PNG").exists():
        pytest.skip("a file system that takes both for one")
    with pytest.raises(FileNotFoundError, match="line 1 of "):
        folder_entries(tmp_path, None)
    with pytest.raises(FileNotFoundError) as error:
        folder_entries(tmp_path, None)
    assert said in str(error.value)


def test_csv(tmp_path):
    table = tmp_path / "metadata.csv"
    table.write_bytes('\ufefffile_name,text\r\n\r\na.png,"one, ""two""\r\nand three"\r\nb.png,a\u2028b\r\n'.encode())
    assert list(table_rows(table)) == [
        (3, {"file_name": "a.png", "text": 'one, "two"\nand three'}), (5, {"file_name": "b.png", "text": "a\u2028b"})]


@pytest.mark.parametrize(("text", "said"), [
    ('a,b\n1,2\n3,"4\n5,6\n', "the row that begins in line 3 is not CSV"),  # else 5 and 6 are part of a value
    ('a,b\n1,"x" y\n', "the row that begins in line 2 is not CSV"),
    ("a,b\n1,\"x\ny\"\n3\n", "line 4 of .* has another number of columns than line 1: 1, and not 2"),
    ("a,b,a\n1,2,3\n", "several columns of one name: 'a'"), ("a,b\n1,\0\n", "line 2 holds a character of number 0")])
def test_damaged_csv_is_an_error_that_names_the_line(tmp_path, text, said):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        list(table_rows(tmp_path / "x.csv"))


def test_prompts_of_an_evaluation_are_read_likewise(tmp_path):
    (tmp_path / "p.JSONL").write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n\r\n{"prompt": "c"}'.encode())
    assert [one.prompt for one in read_prompts(tmp_path / "p.JSONL")] == ["a\u2028b", "c"]
    (tmp_path / "p.txt").write_bytes("a\u2028b\r# no\rc".encode())
    assert [one.prompt for one in read_prompts(tmp_path / "p.txt")] == ["a\u2028b", "c"]
    (tmp_path / "p.txt").write_bytes(b"a\n\xe4")
    with pytest.raises(ValueError, match=r"p\.txt' is damaged: it is not UTF-8 .* line 2"):
        read_prompts(tmp_path / "p.txt")
