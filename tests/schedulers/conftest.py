"""The oracle, where it is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def oracle() -> Any:
    """Diffusers: what its numbers are, ours should be. Tests that ask for it are skipped where it is not installed."""
    diffusers = pytest.importorskip("diffusers")
    diffusers.utils.logging.set_verbosity_error()
    return diffusers


@pytest.fixture(autouse=True)
def _one_thread():
    """Samples here are tiny: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
