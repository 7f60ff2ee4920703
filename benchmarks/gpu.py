"""Calotype beside Diffusers on a GPU: speed, memory, and whether what is fast is right.

    python benchmarks/gpu.py             # as many parts as fit into --budget seconds; the next call goes on from there
    python benchmarks/gpu.py --report    # the tables of all calls so far, in Markdown

Each part runs in a process of its own and adds a line to gpu.jsonl in --out. What is there already, of the same machine and size,
is not measured again; what failed is, after everything else. Where Diffusers is not installed, Calotype is measured alone.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
RESULTS = HERE.parent / "results"
LINES = "gpu.jsonl"
NO_DEVICE = 3  # the status of a process that was to measure on one that is not there


@dataclass(frozen=True)
class Part:
    """What one process does: `function` of `module`; about how many seconds it takes at full size, and when it is ended."""

    name: str
    module: str
    function: str
    seconds: float
    limit: float


PARTS = [  # in order of importance
    Part("environment", "gpu_parts", "environment", 30, 90),
    Part("check-kernels", "gpu_checks", "check_kernels", 60, 180),
    Part("check-pictures", "gpu_checks", "check_pictures", 75, 200),
    Part("steady", "gpu_parts", "steady", 80, 240),
    Part("check-recordings", "gpu_checks", "check_recordings", 40, 150),
    Part("ablation", "gpu_checks", "ablation", 90, 240),
    Part("kernels", "gpu_parts", "kernels", 40, 150),
    Part("steady-own-compiled", "gpu_parts", "own_compiled", 120, 300),
    Part("batch", "gpu_parts", "batch", 70, 240),
    Part("memory", "gpu_parts", "memory", 60, 240),
    Part("steady-compiled", "gpu_parts", "steady_compiled", 200, 420),
]
LIGHTER = {"sd15": 1.0, "bundled": 0.5, "tiny": 0.1}
"""The share of `Part.seconds` that a size takes."""


def chosen(only: str | None) -> list[Part]:
    """The parts of these names, or of groups: `check` is all that begin with `check-`. A `SystemExit` names what is unknown."""
    if only is None:
        return PARTS
    names = [name.strip() for name in only.split(",") if name.strip()]
    exact = {part.name for part in PARTS}
    found = set()
    for name in names:
        group = {name} & exact or {each for each in exact if each.startswith(f"{name}-")}
        if not group:
            near = difflib.get_close_matches(name, exact, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            sys.exit(f"no part {name!r}{hint} (there are {', '.join(part.name for part in PARTS)})")
        found |= group
    return [part for part in PARTS if part.name in found]


def key_of(device: str, size: str) -> dict[str, str]:
    """What makes lines comparable: the machine, and the size of what is measured."""
    machine = platform.machine()
    if device.startswith("cuda") and shutil.which("nvidia-smi"):
        said = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
        machine = said.stdout.strip().split("\n")[0] or device
    return {"machine": machine, "device": device, "size": size}


def code_mark() -> str:
    """What tells whether lines were measured with the same code."""
    files = sorted([*(HERE.parents[1] / "src").rglob("*.py"), *HERE.parent.glob("gpu*.py")])
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:8]


# -- lines -----------------------------------------------------------------------------------------------------------------


def read_lines(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """All lines of these folders, the oldest first. What a killed process left half-written is passed over."""
    lines = []
    for path in {(folder / LINES).resolve() for folder in folders}:
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return sorted(lines, key=lambda line: line["when"])


def add_line(folder: Path, line: dict[str, Any]) -> None:
    """Append a line by one write, after a half-written one on a line of its own."""
    text = json.dumps(line) + "\n"
    with open(folder / LINES, "a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def pending(parts: list[Part], lines: list[dict[str, Any]], key: dict[str, str], again: bool) -> list[Part]:
    """The parts that have no result yet; then those that failed when they were last tried."""
    last = {line["part"]: line for line in lines if all(line[name] == value for name, value in key.items())}
    if again:
        return parts
    return [part for part in parts if part.name not in last] + [part for part in parts if "error" in last.get(part.name, {})]


# -- processes -------------------------------------------------------------------------------------------------------------


def run_part(part: Part, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """`{"result": …}` or `{"error": …}` of a part, in a process of its own that is ended after `limit` seconds."""
    written = options.out / f".{part.name}.json"
    written.unlink(missing_ok=True)
    command = [sys.executable, str(HERE), "--run", part.name, "--device", options.device, "--size", options.size,
               "--work", str(options.work), "--out", str(options.out), *(["--alone"] if options.alone else [])]
    source = str(HERE.parents[1] / "src")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1",
                   "PYTHONPATH": os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])}
    with tempfile.TemporaryFile() as said_file:  # a pipe would be waited for as long as anybody holds its other end
        process = subprocess.Popen(command, stdout=said_file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # compilers have processes of their own
            process.wait()
            return {"error": f"ended after {limit:.0f} s"}
        said_file.seek(0)
        said = said_file.read().decode(errors="replace")
    if process.returncode == NO_DEVICE:
        sys.exit(f"there is no {options.device!r} here; --device cpu --size tiny tries the parts out")
    if not written.exists():
        return {"error": said.strip()[-2000:] or f"ended with status {process.returncode}"}
    result = json.loads(written.read_text())  # also of a process that failed afterwards, in taking itself down
    written.unlink()
    return {"result": result}


def run_here(name: str, options: argparse.Namespace) -> None:
    """The part `name`, in this process; its figures go to a file, since libraries print what they like."""
    import importlib

    import torch
    from gpu_setting import Setting

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(NO_DEVICE)
    if options.size == "tiny":
        torch.set_num_threads(1)  # too small for more
    part = next(part for part in PARTS if part.name == name)
    function = getattr(importlib.import_module(part.module), part.function)
    result = function(Setting(options.device, options.size, options.work, options.out, options.alone))
    written = options.out / f".{name}.json"
    written.with_suffix(".part").write_text(json.dumps(result))
    written.with_suffix(".part").replace(written)


def measure(options: argparse.Namespace) -> None:
    started, key, mark = time.monotonic(), key_of(options.device, options.size), code_mark()
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    parts = chosen(options.only)
    due = pending(parts, read_lines([options.out, RESULTS]), key, options.again)
    print(f"{key['machine']}, {options.size}: {len(due)} of {len(parts)} parts to measure, {options.budget:.0f} s", flush=True)
    for part in due:
        left = options.budget - (time.monotonic() - started)
        if left < part.seconds * LIGHTER[options.size]:
            print(f"{part.name:<18} left for the next call ({left:.0f} s left)", flush=True)
            continue
        began = time.monotonic()
        found = run_part(part, options, min(part.limit, left))
        seconds = round(time.monotonic() - began, 2)
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1000 % 1000000:06d}"
        add_line(options.out, {"part": part.name, **key, "when": when, "seconds": seconds, "code": mark, **found})
        state = found.get("error", "").split("\n")[-1] or found["result"].get("skipped") or (
            "a check FAILED" if found["result"].get("passed") is False else "done")
        print(f"{part.name:<18} {seconds:6.1f} s  {state}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of parts, or the beginnings that several share (check), by commas")
    parser.add_argument("--again", action="store_true", help="measure also what is there already")
    parser.add_argument("--alone", action="store_true", help="without Diffusers")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all parts together (%(default)s)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=LIGHTER, default="sd15", help="of the checkpoint (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or RESULTS), help="of the lines (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "calotype-benchmarks",
                        help="where checkpoints are kept (%(default)s)")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run_here(options.run, options)
        return
    if not options.report:
        measure(options)
    from gpu_report import tables

    lines = read_lines([options.out, RESULTS])
    print(tables(lines) if lines else f"nothing is measured yet: no lines in {options.out / LINES}")


if __name__ == "__main__":
    main()
