"""Without a console, or with one that nobody reads, work goes on."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from types import SimpleNamespace

import pytest

import calotype
from calotype import console

from .conftest import make_tiny


class Broken(io.StringIO):
    """The end of a pipe whose other end was closed."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    flush = write


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


def ascii_only():
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


@pytest.fixture(params=[lambda: None, Broken, closed, ascii_only], ids=["none", "broken", "closed", "ascii"])
def no_console(request, monkeypatch):
    streams = request.param(), request.param()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])


def test_generations_end_well(no_console, tmp_path):
    """Its bar, that of loading, a warning and a word to the log."""
    make_tiny().save_pretrained(tmp_path)
    pipe = calotype.DiffusionPipeline.from_pretrained(tmp_path)
    assert len(pipe("a cat", num_inference_steps=2).images) == 1
    warnings.warn("a warning", stacklevel=1)
    logging.getLogger("calotype").warning("a word")
    with pipe.progress_bar(total=2) as bar:
        bar.update()
        bar.write("a line")
    assert list(pipe.progress_bar([1, 2])) == [1, 2]


def test_training_tells_its_progress(no_console):
    from calotype.training.progress import Progress

    settings = SimpleNamespace(report_to="none", logging_steps=1)
    accelerator = SimpleNamespace(is_main_process=True, scaler=None, device="cpu", reduce=lambda values, how: values)
    import torch

    with Progress(2, 0, 1, settings, accelerator) as progress:
        for step in range(2):
            progress.after(step, {"loss": torch.tensor(1.0)}, True)
    assert not console.is_terminal()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_is_used_where_there_is_one(monkeypatch, terminal):
    """As wide as the terminal, which tqdm only looks up for `sys.stderr` itself."""
    class Terminal(io.StringIO):
        def isatty(self):
            return terminal

        def fileno(self):
            raise OSError

    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    assert console.is_terminal() == terminal
    with console.progress_bar(total=3) as bar:
        bar.update(3)
        assert bar.fp == stream
    console.say("done")
    assert "3/3" in stream.getvalue() and "done" in stream.getvalue()
    own = io.StringIO()
    list(console.progress_bar([1], file=own))
    assert "1/1" in own.getvalue()
