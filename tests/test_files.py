"""Files are whole or absent; the words of errors."""

from __future__ import annotations

import json
import os
import stat
import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calotype.files import read_json, staged_file, staged_folder, to_json, write_json
from calotype.words import check_choice, check_keywords, listing, nearest, some

quick = settings(max_examples=40, deadline=None)  # each example touches the disk
names = st.text(string.ascii_lowercase, min_size=1, max_size=6)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
trees = st.dictionaries(paths, st.binary(max_size=20), max_size=6).filter(
    lambda tree: not any(other.startswith(name + "/") for name in tree for other in tree))


def plant(folder: Path, tree: dict[str, bytes]) -> None:
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def harvest(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


# -- staged folders ---------------------------------------------------------------------------------------------------


@quick
@given(trees, trees, st.booleans())
def test_staged_folder_is_all_or_nothing(before, written, fails):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "x"
        plant(folder, before)
        if any(a.startswith(b + "/") for one, two in ((before, written), (written, before)) for a in one for b in two):
            return  # a file where a folder is needed
        try:
            with staged_folder(folder) as scratch:
                plant(scratch, written)
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert harvest(folder) == (before if fails else {**before, **written})
        assert not list(Path(place).rglob("*.partial"))
        assert folder.exists() or not before


def test_staged_folder_leaves_no_new_folder_after_an_error(tmp_path):
    with pytest.raises(KeyError), staged_folder(tmp_path / "a" / "b") as scratch:
        (scratch / "file").write_text("")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_staged_folder_writes_only_inside_the_folder(tmp_path):
    """The folder may be a mounted volume: its parent is then another file system, or not ours to write to."""
    folder = tmp_path / "volume"
    folder.mkdir()
    with staged_folder(folder) as scratch:
        assert scratch.parent == folder
        (scratch / "file").write_text("")
        assert list(tmp_path.iterdir()) == [folder]


def test_staged_folder_moves_the_index_last(tmp_path, monkeypatch):
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b).name), replace(a, b)))
    with staged_folder(tmp_path) as scratch:
        plant(scratch, {"model_index.json": b"", "a.txt": b"", "unet/index.json": b"", "unet/z.safetensors": b""})
    assert moved == ["z.safetensors", "a.txt", "index.json", "model_index.json"]


def test_staged_folder_removes_what_is_stale_where_it_wrote(tmp_path):
    plant(tmp_path, {"unet/a.old": b"", "unet/b.old": b"", "unet/keep": b"", "vae/a.old": b""})
    with staged_folder(tmp_path, stale=lambda name: name.endswith(".old")) as scratch:
        plant(scratch, {"unet/b.old": b"new"})
    assert harvest(tmp_path) == {"unet/b.old": b"new", "unet/keep": b"", "vae/a.old": b""}


def test_staged_folder_cannot_be_a_file(tmp_path):
    (tmp_path / "x").write_text("kept")
    with pytest.raises(NotADirectoryError, match="x.*it is a file"), staged_folder(tmp_path / "x"):
        pass
    assert (tmp_path / "x").read_text() == "kept"


def test_permissions_follow_the_umask(umask, tmp_path):
    with staged_folder(tmp_path / "new") as scratch:
        plant(scratch, {"a": b"", "sub/b": b""})
        (scratch / "a").chmod(0o600)  # as safetensors makes them
    with staged_file(tmp_path / "file") as scratch:
        scratch.write_text("")
        scratch.chmod(0o600)
    assert {mode(tmp_path / name) for name in ("new/a", "new/sub/b", "file")} == {0o666 & ~umask}
    assert {mode(tmp_path / name) for name in ("new", "new/sub")} == {0o777 & ~umask}


# -- staged files and JSON --------------------------------------------------------------------------------------------


@quick
@given(st.none() | st.binary(max_size=20), st.binary(max_size=20), st.booleans())
def test_staged_file_is_all_or_nothing(before, written, fails):
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "x.png"
        if before is not None:
            path.write_bytes(before)
        try:
            with staged_file(path) as scratch:
                assert scratch.suffix == ".png" and scratch.parent == path.parent
                scratch.write_bytes(written)
                if fails:
                    raise KeyError
        except KeyError:
            pass
        assert (path.read_bytes() if path.exists() else None) == (before if fails else written)
        assert set(os.listdir(place)) <= {"x.png"}


json_objects = st.dictionaries(st.text(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8), max_size=5)


@quick
@given(json_objects)
def test_json_comes_back(content):
    with tempfile.TemporaryDirectory() as place:
        write_json(Path(place) / "new" / "x.json", content)
        assert read_json(Path(place) / "new" / "x.json") == content
        assert os.listdir(Path(place) / "new") == ["x.json"]


def test_json_text_is_that_of_the_format():
    assert to_json({"b": [1], "a": Path("x")}) == '{\n  "a": "x",\n  "b": [\n    1\n  ]\n}\n'
    import numpy
    import torch

    content = {"n": numpy.float32(1.5), "t": torch.arange(2), "d": torch.float16, "s": {"b", "a"}}
    assert json.loads(to_json(content)) == {"n": 1.5, "t": [0, 1], "d": "torch.float16", "s": ["a", "b"]}


@pytest.mark.parametrize(("content", "says"), [
    (b"", "it is not JSON"), (b"{", "it is not JSON"), (b"\xff\xfe{}", "it is not JSON"), (b"[" * 200_000, "not JSON"),
    (b"[1]", "holds a JSON list"), (b"3", "holds a JSON int"), (b"null", "holds a JSON NoneType")])
def test_a_damaged_json_file_is_named(tmp_path, content, says):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        read_json(tmp_path / "config.json")
    assert str(tmp_path / "config.json") in str(caught.value)


def test_what_cannot_be_json_leaves_the_old_file(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises((TypeError, ValueError)):
        write_json(tmp_path / "x.json", {1: 0, "a": 0})
    assert (tmp_path / "x.json").read_text() == "{}" and os.listdir(tmp_path) == ["x.json"]


# -- words ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.text(string.ascii_letters, min_size=1), min_size=1, unique_by=str.lower), st.data())
def test_nearest_finds_a_word_whatever_its_case(words, data):
    word = data.draw(st.sampled_from(words))
    assert nearest(word, words) == f"; did you mean {word!r}?"
    assert "did you mean" in nearest(word.swapcase(), words)


@settings(deadline=None)
@given(st.text(max_size=30), st.lists(st.text(max_size=30)))
def test_nearest_names_only_what_is_allowed(given_word, words):
    said = nearest(given_word, words)
    assert said == "" or said in [f"; did you mean {word!r}?" for word in words]


def test_nearest_of_scheduler_names():
    allowed = ["EulerDiscreteScheduler", "DDIMScheduler", "fp16"]
    assert nearest("EulerDiscret", allowed) == "; did you mean 'EulerDiscreteScheduler'?"
    assert nearest("ddimscheduler", allowed) == "; did you mean 'DDIMScheduler'?"
    assert nearest("xyz", allowed) == "" and nearest(None, []) == ""


def test_lists_in_words():
    assert listing("abc") == "'a', 'b' or 'c'" and listing([1]) == "1" and listing([]) == ""
    assert some(["a", "b", "c"], most=2) == "a, b and 1 more" and some(["a"]) == "a" and some([]) == ""


def test_checks():
    check_choice("mode", "a", iter("ab"))
    with pytest.raises(ValueError, match="mode is 'abd', but must be 'abc' or 'x'; did you mean 'abc'?"):
        check_choice("mode", "abd", ["abc", "x"])
    check_keywords("f", ["a"], iter("ab"))
    with pytest.raises(TypeError, match="f takes no argument 'widht'; did you mean 'width'?"):
        check_keywords("f", ["width", "widht"], ["width"])
