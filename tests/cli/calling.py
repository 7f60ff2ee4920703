"""Commands as they are typed, in this process or in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image
from typer.testing import CliRunner

from calotype import cli
from calotype.hub import BUNDLED
from calotype.recipe import Recipe

EMOJI = BUNDLED["calotype/emoji"]


def call(*words: object, code: int = 0, **options):
    """Run a command in this process; its output with white space as single spaces."""
    result = CliRunner().invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "400", "NO_COLOR": "1"}, **options)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


def run(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "calotype.cli", *words], text=True, capture_output=True, check=False,
                          env={**os.environ, **environment})


def rewrite(path: Path, **changes: object) -> Path:
    """Change the recipe in a picture, and not the picture."""
    recipe, picture = Recipe.from_png(path), Image.open(path)
    picture.load()
    replace(recipe, **changes).save_png(picture, path)
    return path
