"""The lines of `gpu.py` as tables in Markdown, the last of each part, for each machine and size."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Line = dict[str, Any]


def tables(lines: list[Line]) -> str:
    """All tables, the machine before them; and what failed, was skipped or was measured with other code, after them."""
    runs: dict[tuple[str, ...], dict[str, Line]] = {}
    for line in lines:
        of_run = runs.setdefault((line["machine"], line["device"], line["size"]), {})
        if "error" not in line or "error" in of_run.get(line["part"], {"error": ""}):  # a result outlives a later failure
            of_run[line["part"]] = line
    return "\n".join(_run(name, parts) for name, parts in runs.items())


def _run(name: tuple[str, ...], parts: dict[str, Line]) -> str:
    results = {part: line["result"] for part, line in parts.items() if "result" in line and "skipped" not in line["result"]}
    written = [f"## {', '.join(name)}", ""]
    for part, write in _WRITERS.items():
        if part in results:
            written += [*write(results), ""]
    newest = max(parts.values(), key=lambda line: line["when"])["code"]
    for part, line in parts.items():
        if "error" in line:
            written.append(f"- **{part} failed** after {line['seconds']:.0f} s: `{_last_line(line['error'])}`")
        elif "skipped" in line["result"]:
            written.append(f"- {part} was left out: {line['result']['skipped']}")
        elif line["code"] != newest:
            written.append(f"- {part} was measured with other code ({line['code']}) than the newest line ({newest})")
    return "\n".join(written) + "\n"


def _last_line(text: str) -> str:
    return text.strip().split("\n")[-1][:300].replace("`", "'")


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    body = [f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *body]


def _digits(value: float | None, digits: int = 2, factor: float = 1.0) -> str:
    return "" if value is None else f"{value * factor:.{digits}f}"


def _verdict(passed: bool) -> str:
    return "passed" if passed else "**FAILED**"


def _environment(results: dict[str, Any]) -> list[str]:
    found = results["environment"]
    said = [f"{name} {found[name]}" for name in ("driver", "torch", "cuda", "cudnn", "triton", "python") if found[name]]
    beside = f"Diffusers {found['diffusers']}" if found["diffusers"] else "Diffusers is not installed there"
    side = found["matmul_side"]
    return [f"{found['device']}; {', '.join(said)}; {beside}. Measured: {found['matmul_tflops']:.3g} TFLOP/s in products of "
            f"{side} x {side} matrices, {found['copy_gb_per_s']:.3g} GB/s read and written in copies."]


def _steady(results: dict[str, Any]) -> list[str]:
    """Both kinds of steady state in one table; ratios to Calotype by default, and the floor that arithmetic sets."""
    found = results["steady"]
    ways = {**found["ways"], **results.get("steady-own-compiled", {}).get("ways", {}),
            **results.get("steady-compiled", {}).get("ways", {})}
    base = statistics.median(found["ways"]["calotype"]["seconds"])
    rate = results.get("environment", {}).get("matmul_tflops")
    floor = found["tflop"]["picture"] / rate if rate else None
    rows = []
    for name, way in ways.items():
        middle = statistics.median(way["seconds"])
        rows.append([name, f"{middle:.3f} ({min(way['seconds']):.3f} to {max(way['seconds']):.3f})", f"{middle / base:.2f}",
                     f"{floor / middle:.0%}" if floor else "", _digits(way["first"]), _digits(way.get("load")),
                     _digits(way.get("prediction"), 2, 1e3), _digits(way.get("decoding"), 1, 1e3),
                     _digits(way.get("allocated_gib")), _digits(way.get("reserved_gib"))])
    head = ["", "s a picture", "to Calotype", "share of the floor", "first, s", "load, s", "UNet, ms", "decode, ms",
            "peak, GiB", "reserved, GiB"]
    at_least = f", at least {floor:.3f} s at the measured rate" if floor else ""
    return [f"One picture at a time, {found['steps']} steps, guided; {found['tflop']['picture']:.3g} TFLOP{at_least}:", "",
            *_table(head, rows)]


def _batch(results: dict[str, Any]) -> list[str]:
    found = results["batch"]
    rows = [[name, _digits(way["seconds_a_picture"], 3), _digits(way["prediction"], 1, 1e3), f"{way['tflops']:.3g}",
             _digits(way["allocated_gib"])] for name, way in found["ways"].items()]
    head = ["", "s a picture", "UNet, ms", "UNet, TFLOP/s", "peak beside weights, GiB"]
    return [f"{found['batch']} pictures at once, {found['steps']} steps, guided:", "", *_table(head, rows)]


def _ablation(results: dict[str, Any]) -> list[str]:
    found = results["ablation"]
    base = found["rows"][0].get("picture")
    rows = []
    for row in found["rows"]:
        share = f"{row['channels_last']:.0%}" if "channels_last" in row else ""
        ratio = row["picture"] / base if "error" not in row and base else None
        rows.append([row["case"], share, row.get("error") or _digits(row["picture"], 3), _digits(ratio),
                     _digits(row.get("prediction"), 2, 1e3)])
    return [f"The default with one thing changed ({found['steps']} steps):", "",
            *_table(["", "channels last", "s a picture", "to the default", "UNet, ms"], rows)]


def _memory(results: dict[str, Any]) -> list[str]:
    rows = [[name, mode.get("error") or _digits(mode["allocated_gib"]), _digits(mode.get("reserved_gib")),
             _digits(mode.get("seconds"))] for name, mode in results["memory"]["modes"].items()]
    return ["Memory:", "", *_table(["", "peak, GiB", "reserved, GiB", "s"], rows)]


def _kernels(results: dict[str, Any]) -> list[str]:
    written = []
    for name, way in results["kernels"]["ways"].items():
        rows = [[f"`{kernel[:90]}`".replace("|", "/"), f"{calls:g}", f"{taken:.0f}", f"{taken / way['microseconds']:.0%}"]
                for kernel, calls, taken in way["top"][:12]]
        written += [f"{name}: {way['microseconds'] / 1e3:.2f} ms of kernels a prediction (more in {way['file']})", "",
                    *_table(["kernel", "calls", "µs", "share"], rows), ""]
    return written[:-1]


def _check_kernels(results: dict[str, Any]) -> list[str]:
    found = results["check-kernels"]
    rows = [[row["kernel"], " x ".join(map(str, row["shape"])), row["dtype"], f"{row['away']:.1e}",
             _digits(row["microseconds"], 1), _digits(row["plain_microseconds"], 1), _digits(row["gb_per_s"], 0),
             _verdict(row["passed"])] for row in found["rows"]]
    allowed = ", ".join(f"{dtype} {'yes' if may else 'no'}" for dtype, may in found["allowed"].items())
    return [f"Kernels on real shapes: {_verdict(found['passed'])}. All may be used: {allowed}.", "",
            *_table(["kernel", "shape", "", "error", "µs", "plain, µs", "GB/s", ""], rows)]


def _check_pictures(results: dict[str, Any]) -> list[str]:
    found = results["check-pictures"]
    columns = "picture", "prediction", "clipped"
    rows = [[name, _digits(found["psnr_db"][name], 1), *(_digits(spread[column], 3) for column in columns)]
            for name, spread in found["spread"].items()]
    return [f"Pictures against float32 by plain operators: {_verdict(found['passed'])}.", "",
            *_table(["", "PSNR, dB", "std of the picture", "std of a prediction", "share clipped"], rows)]


def _check_recordings(results: dict[str, Any]) -> list[str]:
    found = results["check-recordings"]
    rows = [[row["case"], _digits(row["same_db"], 1), _digits(row["from_the_case_before_db"], 1), _verdict(row["passed"])]
            for row in found["rows"]]
    return [f"One pipeline asked for one thing after another: {_verdict(found['passed'])}.", "",
            *_table(["", "to the plain way, dB", "to the case before, dB", ""], rows)]


_WRITERS = {
    "environment": _environment, "steady": _steady, "batch": _batch, "ablation": _ablation, "memory": _memory,
    "kernels": _kernels, "check-pictures": _check_pictures, "check-recordings": _check_recordings,
    "check-kernels": _check_kernels,
}
