"""Pictures are saved while the next ones are made: all of them, in order, or an error says why not."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from calotype.cli import saving
from calotype.cli.saving import saved_beside


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was saved, each only once `gate` is open."""
    names: list[str] = []

    def save(recipe: Any, picture: Any, path: Path, about: str = "") -> None:
        assert gate.wait(10)
        if path.name == "bad.png":
            raise OSError("no space left on the device")
        names.append(path.name)

    gate.clear()
    monkeypatch.setattr(saving, "save", save)
    return names


gate = threading.Event()
PICTURE = Image.new("RGB", (1, 1))


def test_saving_waits_for_nobody_and_keeps_the_order(saved: list[str]) -> None:
    with saved_beside() as keep:
        for i in range(4):
            keep(None, PICTURE, Path(f"{i}.png"))
        assert saved == []
        gate.set()
    assert saved == ["0.png", "1.png", "2.png", "3.png"]


def test_what_was_made_before_an_error_is_saved(saved: list[str]) -> None:
    with pytest.raises(KeyboardInterrupt), saved_beside() as keep:
        keep(None, PICTURE, Path("0.png"))
        gate.set()
        raise KeyboardInterrupt
    assert saved == ["0.png"]


def test_what_cannot_be_saved_is_an_error(saved: list[str]) -> None:
    with pytest.raises(OSError, match="no space left"), saved_beside() as keep:
        keep(None, PICTURE, Path("bad.png"))
        gate.set()
    with pytest.raises(OSError, match="no space left"), saved_beside() as keep:
        while True:  # said at a later call already
            keep(None, PICTURE, Path("bad.png"))
