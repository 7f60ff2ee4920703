"""Shared by all tests. With CALOTYPE_TEST_ALONE=1 the oracle is hidden, as if it were not installed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ORACLES = ("diffusers", "transformers", "accelerate")
if os.environ.get("CALOTYPE_TEST_ALONE"):
    for name in ORACLES:
        sys.modules[name] = None  # type: ignore[assignment]  # what makes `import name` fail

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(int(os.environ.get("CALOTYPE_TEST_THREADS", "1")))  # tests run side by side, one process a core


def pytest_report_header() -> list[str]:
    """What a failure on another machine may come from."""
    packages = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "pillow", "diffusers", "transformers", "peft",
                "accelerate", "hypothesis")
    settings = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "CALOTYPE_TEST_THREADS", "CALOTYPE_TEST_ALONE",
                "CALOTYPE_EVERY_CASE")
    return [
        f"versions: Python {platform.python_version()}, " + ", ".join(f"{name} {_version(name)}" for name in packages),
        f"processor: {platform.machine()}, {os.cpu_count()} cores, {_vector_extensions()}; PyTorch uses "
        f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread(s) a process",
        "settings: " + (", ".join(f"{name}={os.environ[name]}" for name in settings if name in os.environ) or "none"),
    ]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _vector_extensions() -> str:
    """As Linux tells them, on x86-64 and ARM."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "vector extensions unknown"
    flags = next((line.split(":")[1].split() for line in lines if line.lower().startswith(("flags", "features"))), [])
    found = sorted(flag for flag in flags if flag.startswith(("avx", "amx", "sse4", "fma", "asimd", "sve", "bf16", "i8mm")))
    return " ".join(found) or "no vector extensions"


@pytest.fixture(scope="session")
def diffusers() -> ModuleType:
    """The oracle. Tests that compare with it are skipped where it is not installed."""
    module = pytest.importorskip("diffusers", reason="compares with Diffusers, which is not installed")
    module.utils.logging.set_verbosity_error()
    return module
