"""Shared by all tests. With CALOTYPE_TEST_ALONE=1 the oracle is hidden, as if it were not installed."""

from __future__ import annotations

import os
import sys
from types import ModuleType

import pytest
import torch

ORACLES = ("diffusers", "transformers", "accelerate")
if os.environ.get("CALOTYPE_TEST_ALONE"):
    for name in ORACLES:
        sys.modules[name] = None  # type: ignore[assignment]  # what makes `import name` fail

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # tests run side by side, one process a core


@pytest.fixture(scope="session")
def diffusers() -> ModuleType:
    """The oracle. Tests that compare with it are skipped where it is not installed."""
    module = pytest.importorskip("diffusers", reason="compares with Diffusers, which is not installed")
    module.utils.logging.set_verbosity_error()
    return module
