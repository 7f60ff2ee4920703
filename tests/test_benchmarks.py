"""The benchmark for GPUs, tried out on a CPU: its parts, and the command that runs, resumes and reports them."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Scripts import what lies beside them."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return importlib.import_module("gpu")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def command(*arguments: str, out: Path, work: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(FOLDER / "gpu.py"), "--device", "cpu", "--size", "tiny", "--alone",
                           "--out", str(out), "--work", str(work), *arguments], capture_output=True, text=True)


def line(part: str, when: str, **found: Any) -> dict[str, Any]:
    return {"part": part, "machine": "one", "device": "cuda", "size": "sd15", "when": when, "code": "a", "seconds": 1.0, **found}


PARTS = ("check-kernels", "check-pictures", "check-recordings", "steady", "ablation", "kernels", "batch", "memory")


@pytest.mark.parametrize("name", PARTS)
def test_every_part_measures(name: str, gpu: ModuleType, work: Path, tmp_path: Path):
    part = next(part for part in gpu.PARTS if part.name == name)
    function = getattr(importlib.import_module(part.module), part.function)
    found = function(importlib.import_module("gpu_setting").Setting("cpu", "tiny", work, tmp_path, alone=True))
    json.dumps(found)
    assert found.get("passed", True)
    assert not [row for row in found.get("rows", []) if "error" in row]
    assert importlib.import_module("gpu_report").tables([line(name, "1", result=found)]).count("\n|") > 3
    if name == "kernels":
        assert all((tmp_path / way["file"]).exists() and way["top"] for way in found["ways"].values())


def test_a_check_sees_what_is_wrong(gpu: ModuleType, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A recording that goes on with the text of the generation before."""
    from calotype.models.conditioning import Kept

    checks, setting = importlib.import_module("gpu_checks"), importlib.import_module("gpu_setting")
    monkeypatch.setattr(Kept, "update", lambda self, other, row=None: None)
    assert not checks.check_recordings(setting.Setting("cpu", "tiny", work, tmp_path))["passed"]


def test_the_command(gpu: ModuleType, tmp_path: Path):
    """It measures, survives a part that fails, does not measure twice what it has, and tries again what failed."""
    broken = tmp_path / "work"
    (broken / "tiny").mkdir(parents=True)
    (broken / "tiny" / "model_index.json").write_text("{")
    done = command("--only", "kernels,environment", "--budget", "60", out=tmp_path, work=broken)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(text) for text in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [each["part"] for each in lines] == ["environment", "kernels"]
    assert lines[0]["result"]["matmul_tflops"] > 0 and "model_index.json" in lines[1]["error"]
    assert "**kernels failed**" in done.stdout

    again = command("--only", "environment", out=tmp_path, work=broken)
    assert "0 of 1 parts to measure" in again.stdout and "TFLOP/s" in again.stdout
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == 2

    left = command("--only", "kernels", "--budget", "0.1", out=tmp_path, work=broken)
    assert "left for the next call" in left.stdout
    options = argparse.Namespace(device="cpu", size="tiny", out=tmp_path, work=broken, alone=True)
    assert gpu.run_part(gpu.PARTS[0], options, 0.05) == {"error": "ended after 0 s"}
    report = command("--report", out=tmp_path, work=broken)
    assert "cpu, tiny" in report.stdout and "parts to measure" not in report.stdout


def test_what_is_pending(gpu: ModuleType):
    parts, key = gpu.PARTS[:4], {"machine": "one", "device": "cuda", "size": "sd15"}
    names = [part.name for part in parts]
    lines = [line(names[0], "1", error="no"), line(names[1], "2", result={}), line(names[2], "3", result={})]

    def due(*more: dict[str, Any], again: bool = False) -> list[str]:
        return [part.name for part in gpu.pending(parts, [*lines, *more], key, again)]

    assert due() == [names[3], names[0]]
    assert due(line(names[0], "4", result={}), line(names[2], "5", error="no")) == [names[3], names[2]]
    assert due(line(names[3], "4", result={}) | {"machine": "another"}) == [names[3], names[0]]
    assert due(again=True) == names


def test_half_written_lines_are_passed_over(gpu: ModuleType, tmp_path: Path):
    (tmp_path / gpu.LINES).write_text('{"part": "environment", "whe')
    gpu.add_line(tmp_path, line("steady", "1", result={}))
    gpu.add_line(tmp_path, line("batch", "0", result={}))
    assert [each["part"] for each in gpu.read_lines([tmp_path, tmp_path, tmp_path / "none"])] == ["batch", "steady"]


def test_parts_by_name_and_by_group(gpu: ModuleType):
    assert [part.name for part in gpu.chosen("steady,check")] == ["check-kernels", "check-pictures", "steady", "check-recordings"]
    with pytest.raises(SystemExit, match="no part 'stedy'; did you mean 'steady'"):
        gpu.chosen("environment,stedy")
