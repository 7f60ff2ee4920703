"""The process of a command: Ctrl-C at any moment, pipes that break, consoles that are closed or of another encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image

from calotype import files
from calotype.cli.checks import text
from calotype.cli.saving import file_name, saved_beside
from calotype.recipe import Recipe

from .calling import call, rewrite, run

STOPPED = "stopped; nothing is half-written\n"
IMPORTING = """
class Finder:
    def find_spec(name, path=None, target=None):
        if name == moment:
            interrupt()
sys.meta_path.insert(0, Finder)
"""
STEPPING = """
import calotype.cli.making, contextlib
@contextlib.contextmanager
def progress(label):
    yield lambda done, total: interrupt()
calotype.cli.making.progress = progress
"""
SAVING = """
from PIL import Image
import time
whole = Image.Image.save
def save(self, path, *args, **options):
    whole(self, path, *args, **options)
    for _ in range(int(moment)):
        interrupt()
        time.sleep(0.3)
    time.sleep(60 * (moment == "2"))
Image.Image.save = save
"""


def interrupted(setup: str, moment: str, *words: str) -> subprocess.CompletedProcess:
    """A command in a process of its own, which gets its Ctrl-C at a certain moment."""
    code = (f"import os, signal, sys\nmoment = {moment!r}\ndef interrupt(): os.kill(os.getpid(), signal.SIGINT)\n{setup}\n"
            "from calotype.cli import main\nmain()")
    return subprocess.run([sys.executable, "-c", code, *words], text=True, capture_output=True, timeout=120, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.parametrize("moment", [
    "typer", "calotype.cli.generate", "torch", "torch._tensor", "calotype.pipelines.stable_diffusion"])
def test_ctrl_c_while_things_are_loaded(here, moment):
    done = interrupted(IMPORTING, moment, "generate", "x", "-o", "x.png", "--steps", "1")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", STOPPED)
    assert not list(here.iterdir())


def test_ctrl_c_while_steps_are_done(here, tiny):
    done = interrupted(STEPPING, "", "generate", "x", "-o", "x.png", "--steps", "3", "--model", str(tiny))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", STOPPED)
    assert not list(here.iterdir())


def test_ctrl_c_while_the_picture_is_saved(here, tiny):
    """It is there, and whole. A second one is not patient, and leaves nothing of what is being written."""
    words = ["generate", "x", "-o", "x.png", "--steps", "1", "--model", str(tiny)]
    done = interrupted(SAVING, "2", *words)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr
    assert not list(here.iterdir())
    done = interrupted(SAVING, "1", *words)
    assert (done.returncode, done.stderr) == (130, STOPPED)
    assert "saved x.png" in done.stdout
    assert [path.name for path in here.iterdir()] == ["x.png"]
    assert Recipe.from_png("x.png").prompt == "x"


def test_where_ctrl_c_is_ignored_it_stays_so(here, tiny):
    """As for a command in the background of a script."""
    ignored = f"signal.signal(signal.SIGINT, signal.SIG_IGN)\n{STEPPING}"
    done = interrupted(ignored, "", "generate", "x", "-o", "x.png", "--steps", "1", "--model", str(tiny))
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("x.png").exists()


def test_ctrl_c_while_the_last_pictures_are_saved(monkeypatch):
    """An interruption of the wait for them: they are saved, and then it goes on."""
    import threading

    gate, saved = threading.Event(), []

    def save(name):
        gate.wait(10)
        saved.append(name)

    class Impatient:
        def result(self):
            gate.set()
            raise KeyboardInterrupt

    monkeypatch.setattr("calotype.cli.saving.save", save)
    monkeypatch.setattr("calotype.cli.saving.deque", lambda: [Impatient()])
    Impatient.done = lambda self: False  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt), saved_beside() as keep:
        keep("a")
        keep("b")
    assert saved == ["a", "b"]


def test_nothing_unfinished_is_left(here):
    with files.staged_file("x.png") as one, files.staged_folder("folder") as two:
        one.write_text("half")
        (two / "x").write_text("half")
        files.remove_unfinished()
        assert not one.exists() and not two.exists()
        one.write_text("")  # that the blocks can end
        two.mkdir()
    with files.staged_file("y.png") as one:
        one.write_text("whole")
    files.remove_unfinished()
    assert Path("y.png").read_text() == "whole"


# -- pipes and consoles ---------------------------------------------------------------------------------------------------


def shell(line: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(["sh", "-c", line.replace("calotype", f"{sys.executable} -m calotype")], text=True, timeout=120,
                          capture_output=True, check=False, env={**os.environ, **environment})


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize("words", ["schedulers", "--help", "train --help", "info calotype/emoji"])
def test_a_reader_that_is_gone(here, words):
    command = f"(sleep 0.1; calotype {words}; echo $? > status) | true"
    done = shell(command.replace("calotype/emoji", "$MODEL"), MODEL="calotype/emoji")
    assert (Path("status").read_text(), done.stderr) == ("141\n", "")


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_consoles_that_are_closed_or_full(here, made, tiny):
    done = shell(f"calotype generate x -o x.png --steps 1 --model {tiny} <&- >&- 2>&-")
    assert done.returncode == 0
    assert Recipe.from_png("x.png").prompt == "x"
    assert shell("calotype info ./nowhere 2>&-").returncode == 1
    if Path("/dev/full").exists():
        done = shell("calotype schedulers > /dev/full")
        assert (done.returncode, done.stderr) == (1, "error: No space left on device\n")


def test_a_console_that_lacks_characters(apple):
    rewrite(apple, prompt="a Käuzchen 梟")
    info = [sys.executable, "-m", "calotype", "info", "apple.png"]
    done = subprocess.run(info, capture_output=True, check=False, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert "prompt: a Käuzchen \\u689f\n".encode("latin-1") in done.stdout
    done = subprocess.run([*info[:-1], b"./k\xe4"], capture_output=True, check=False)
    assert done.returncode == 1 and b"no checkpoint './k" in done.stderr


def test_what_is_typed_in_another_locale():
    """UTF-8, which Python took for ASCII; and bytes that are none."""
    assert text("ein Käuzchen\n梟") == "ein Käuzchen\n梟"
    assert text("K\udcc3\udca4uzchen") == "Käuzchen"
    with pytest.raises(typer.BadParameter, match=r"no text in UTF-8"):
        text("K\udce4uzchen")
    assert r"'K\udce4uzchen' is no text in UTF-8" in call("generate", "K\udce4uzchen", code=2)
    assert "is no text in UTF-8" in call("generate", "x", "--negative", "K\udce4uzchen", code=2)


def test_names_of_files_are_what_the_file_system_takes(monkeypatch):
    assert file_name(7, "梟" * 300) == f"0007-{'梟' * 40}.png"
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert file_name(7, "ein Käuzchen, 梟") == "0007-ein-k-uzchen.png"


def test_a_prompt_that_begins_with_a_dash(tiny, here):
    call("generate", "--model", tiny, "--steps", 1, "-o", "x.png", "--negative", "-ugly-", "--", "-- a cat")
    recipe = Recipe.from_png("x.png")
    assert (recipe.prompt, recipe.negative_prompt) == ("-- a cat", "-ugly-")


# -- completion -------------------------------------------------------------------------------------------------------------


def completed(line: str) -> list[str]:
    """What a shell offers at the end of a line, found without loading anything heavy."""
    code = ("import sys, calotype.cli.process as process\n"
            "end = process._flushed\n"
            "process._flushed = lambda status: print([n for n in ('torch', 'numpy', 'PIL') if n in sys.modules]) or end(status)\n"
            "from calotype.cli import main\nmain()")
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True, env={
        **os.environ, "_CALOTYPE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))})
    *offered, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    return [one for one in offered if one]


@pytest.mark.parametrize(("line", "offered"), [
    ("calotype repr", ["reproduce"]),
    ("calotype generate --off", ["--offload"]),
    ("calotype generate --scheduler dpmpp_2m_k", ["dpmpp_2m_karras"]),
    ("calotype edit --scheduler EulerA", ["EulerAncestralDiscreteScheduler"]),
    ("calotype sample --model cal", ["calotype/emoji", "calotype/cats"]),
    ("calotype sample --model fold", ["folder/"]),
    ("calotype generate --dtype ", ["float32", "float16", "bfloat16"]),
    ("calotype generate --device c", ["cpu", "cuda", "cuda:1"]),
    ("calotype train d", ["dreambooth"]),
    ("calotype train lora --config ", []),  # then shells offer files
    ("calotype edit ", []),
])
def test_completion(here, line, offered):
    (here / "folder").mkdir()
    (here / "folder.png").touch()
    assert completed(line) == offered


def test_the_script_of_a_shell():
    assert "_CALOTYPE_COMPLETE=complete_bash" in run(_CALOTYPE_COMPLETE="source_bash").stdout
    assert "--show-completion" in call("--help")


# -- endings ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code", "said"), [
    ("folder", 2, "'folder' is a folder; name a file in it, such as 'folder/picture.png'"),
    ("new/folder/", 2, "the file's extension is ''"),
    ("x.tiff", 2, "extension is '.tiff', but must be '.png', '.jpg', '.jpeg' or '.webp'"),
    ("-", 2, "extension is ''"),
    (f"{'x' * 300}.png", 1, "File name too long"),
])
def test_where_a_picture_cannot_go(here, name, code, said):
    (here / "folder").mkdir()
    assert said in call("generate", "x", "-o", name, code=code).replace(" │ │ ", " ")
    assert [path.name for path in here.iterdir()] == ["folder"]


def test_a_sheet_that_is_too_large_for_its_format(tiny, here, monkeypatch):
    monkeypatch.setattr("calotype.cli.saving._MOST_PIXELS", {".webp": 99})
    words = ["generate", "x", "--model", tiny, "--steps", 1, "--count", 9, "--grid"]
    assert "'x.webp' would have 104 x 104 pixels, and .webp has at most 99 each way" in call(*words, "x.webp", code=1)
    assert not list(here.iterdir())
    call(*words, "x.png")
    assert Image.open("x.png").size == (104, 104)
