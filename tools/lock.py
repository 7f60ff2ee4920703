"""Writes constraints.txt: one exact version for every package that the project's own environments hold (`make lock`).

pip itself resolves the newest versions that the bounds of pyproject.toml and the versions held below allow, without installing
anything. What differs from the lock before is printed, and so is what is newer than a version that is held.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.txt"
HELD = {"torch": "2.13.0"}
"""Held until somebody changes it here: the release whose CPU build the environments use."""
TOOLS = ["editables", "hatchling", "pip"]
"""What builds and installs the package."""

HEADER = """\
# Made by `make lock`, not by hand: exact versions for the environments of the Makefile and CI, on Linux with Python 3.11.
# The package's real bounds are in pyproject.toml; `make test-newest` tests with whatever they allow.
"""


def pip(*arguments: str) -> str:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def resolved() -> dict[str, str]:
    """Package name -> version of all that the package with every extra needs, and of the tools."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    held = [f"{name}=={version}" for name, version in HELD.items()]
    report = json.loads(pip("install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", *TOOLS, *held,
                            f"{ROOT}[{','.join(extras)}]"))
    found = {each["metadata"]["name"]: each["metadata"]["version"] for each in report["install"]}
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    return {_normalised(name): version.split("+")[0] for name, version in found.items() if name != own}


def locked() -> dict[str, str]:
    lines = LOCK.read_text().splitlines() if LOCK.exists() else []
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def newest(name: str) -> str:
    """The newest release that the package index has."""
    return pip("index", "versions", name).split("(", 1)[1].split(")", 1)[0]


def _normalised(name: str) -> str:
    """The name as PEP 503 spells it, so that a package has one line."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    before, now = locked(), resolved()
    LOCK.write_text(HEADER + "".join(f"{name}=={version}\n" for name, version in sorted(now.items())))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            print(f"{name}: {before.get(name, 'not there')} -> {now.get(name, 'not needed')}")
    print(f"{LOCK.name}: {len(now)} packages")
    for name, version in HELD.items():
        print(f"{name} is held at {version} (tools/lock.py); the newest is {newest(name)}")


if __name__ == "__main__":
    main()
