"""The Triton kernels, in Triton's interpreter, which runs them on the CPU.

Triton decides when it is imported whether it interprets, so the tests proper (`kernels_interpreted.py`) run in a process of
their own: the rest of the suite is not to meet an interpreted Triton.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).with_name("kernels_interpreted.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="runs the kernels, and Triton is not installed")
def test_in_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(TESTS)], check=False, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stdout
