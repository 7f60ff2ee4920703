"""The library stays small enough to be read: its bounds are part of its design."""

from __future__ import annotations

from pathlib import Path

import calotype

SOURCE = Path(calotype.__file__).parent
SHARED = {"__init__.py", "base.py", "noise.py", "prediction.py", "table.py"}  # of all solvers


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def test_the_first_four_solvers():
    """The peer's four files have 2,673 lines."""
    first = [SOURCE / "schedulers" / f"{name}.py" for name in ("ddim", "ddpm", "euler", "pndm")]
    assert sum(lines(path) for path in first) < 500


def test_no_solver_is_long():
    for path in (SOURCE / "schedulers").glob("*.py"):
        assert path.name in SHARED or lines(path) <= 200, path.name


def test_no_file_is_long():
    """No file needs more than a screen or five."""
    for path in SOURCE.rglob("*.py"):
        assert lines(path) <= 340, path.name
