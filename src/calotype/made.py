"""Pictures that Calotype made, told from those that it is given: a run must not learn its own samples."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .files import staged_file

NOTE = ".made-by-calotype"
"""A file in a folder, which lists pictures there, one name a line: made to be compared or learned beside others, and no data."""

RUN = "settings.yaml"
"""What every training run leaves in its folder."""

_OF_A_RUN = ("samples", "logs", "cache", "class")  # folders in it, and checkpoint-500
_DATA = ("train_data_dir", "instance_data_dir")


def note_made(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Note that Calotype makes the pictures of these names in a folder, which is made if need be."""
    folder = Path(folder)
    noted = noted_in(folder)
    if new := sorted(set(names) - noted):
        with staged_file(folder / NOTE) as scratch:
            scratch.write_text("".join(f"{name}\n" for name in sorted(noted.union(new))), encoding="utf-8")


def noted_in(folder: Path) -> set[str]:
    """The names of the pictures in a folder that Calotype is known to have made."""
    try:
        return set((folder / NOTE).read_text(encoding="utf-8").split("\n")) - {""}
    except (OSError, UnicodeDecodeError):
        return set()


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a training run."""
    return bool(_settings_in(folder))


def data_lies_in(folder: Path) -> bool:
    """Whether the pictures of the run whose folder this is lay in that folder too."""
    told = _settings_in(folder)
    places = {os.path.realpath(folder), os.path.abspath(told.get("output_dir", folder))}
    return any(Path(os.path.abspath(told[key])).is_relative_to(place) for key in _DATA if key in told for place in places)


def is_of_a_run(name: str) -> bool:
    """Whether a folder of this name, in that of a run, holds what the run made."""
    return name in _OF_A_RUN or name.startswith("checkpoint-")


def _settings_in(folder: Path) -> dict[str, str]:
    """The settings, as text, of the run whose folder this is; none if it is no run's. What can read YAML may not be installed."""
    try:
        text = (folder / RUN).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    told = dict(re.findall(r"^(\w+): (.*)$", re.sub(r"\n +", " ", text), re.MULTILINE))
    if not {"output_dir", "checkpointing_steps"} <= told.keys():
        return {}
    return {key: value.strip("'\"") for key, value in told.items() if value != "null"}
