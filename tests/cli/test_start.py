"""How commands begin and end: what is loaded, exit codes, errors."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from calotype.cli.making import progress

from .calling import call, run


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["generate", "--help"], ["info", "calotype/emoji"],
                                   ["generate", "x", "--scheduler", "Eular"], ["reproduce", "nowhere.png"],
                                   ["edit", "nowhere.png", "x"]])
def test_nothing_heavy_is_loaded(words):
    code = ("import sys; from calotype.cli import app\n"
            "try: app(sys.argv[1:])\n"
            "except SystemExit: print([name for name in ('torch', 'numpy', 'tokenizers', 'httpx') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, *words], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_exit_codes_and_tracebacks():
    assert re.fullmatch(r"calotype \d+\.\d+\.\d+\n", run("--version").stdout)
    wrong = run("generate", "x", "--scheduler", "EulerDiscret", COLUMNS="3000")
    assert (wrong.returncode, "did you mean 'EulerDiscreteScheduler'" in wrong.stderr) == (2, True)
    lost = run("info", "./nowhere")
    assert (lost.returncode, lost.stdout) == (1, "")
    assert lost.stderr.startswith("error: no checkpoint './nowhere'")
    assert lost.stderr.count("\n") == 1
    for debugged in (run("--debug", "info", "./nowhere"), run("info", "./nowhere", CALOTYPE_DEBUG="1")):
        assert debugged.returncode == 1
        assert "Traceback" in debugged.stderr


def test_nothing_typed_shows_help():
    assert "generate" in call(code=2)


def test_a_fault_of_ours_is_called_one(monkeypatch, tmp_path):
    monkeypatch.setattr("calotype.cli.show.describe", lambda *_: {}["x"])
    assert call("info", "x", code=1) == "error: KeyError: 'x' (this looks like a fault of Calotype; --debug shows where)"


def test_progress_is_shown_on_a_terminal_alone(monkeypatch, capsys):
    def shown() -> str:
        with progress("x.png") as on_step:
            on_step(1, 2)
        said = capsys.readouterr()
        assert said.out == ""
        return said.err

    monkeypatch.setenv("TERM", "xterm")
    assert shown() == ""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        with progress("x.png") as on_step:
            on_step(1, 2)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "x.png" in shown() and "1/2" in shown()


def test_not_enough_memory_is_said_to_be_that(monkeypatch):
    """Also where PyTorch calls it a `RuntimeError`, with pages of C++ after its first line."""
    said = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to\nframe #0"
    for error in (RuntimeError(said), MemoryError()):
        def fails(*_, error=error):
            raise error

        monkeypatch.setattr("calotype.cli.show.describe", fails)
        shown = call("info", "x", code=1)
        assert shown.startswith("error: not enough memory; a smaller --height") and "frame" not in shown
