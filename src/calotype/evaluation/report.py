"""What evaluations come to: a table to read, and JSON to keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def table(checkpoints: Mapping[str, Mapping[str, Any]], baseline: Mapping[str, Any]) -> list[list[str]]:
    """A heading, then a line a measure: its name, what real pictures reach, and what each checkpoint does.

    Args:
        checkpoints: results of `evaluate`, by name. baseline: of `Reference.baseline`.
    """
    lines = [["", "real pictures", *checkpoints]]
    for name, path, shown in _measures(checkpoints):
        real = _at(baseline, path[2:]) if path[:2] in (("prompts", "held_out"), ("prompts", "all")) else None
        values = [_at(result, path) for result in checkpoints.values()]
        if any(value is not None for value in values):
            lines.append([name, *("" if value is None or value != value else format(value, shown) for value in (real, *values))])
    return lines


def _measures(checkpoints: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, tuple[str, ...], str]]:
    measures = [("autoencoder PSNR, dB", ("autoencoder", "psnr"), ".2f"), ("autoencoder SSIM", ("autoencoder", "ssim"), ".4f"),
                ("loss of the noise", ("loss", "epsilon"), ".4f"), ("… its standard error", ("loss", "error"), ".4f"),
                ("loss of the clean sample", ("loss", "clean"), ".4f"), ("FID", ("fid",), ".4f"), ("KID x 1000", ("kid",), ".3f")]
    parts = list(dict.fromkeys(part for result in checkpoints.values() for part in result["prompts"]))
    for part in parts:
        after = "" if part == "all" else f", {part.replace('_', ' ')}"
        measures += [(f"nearest training picture{after}", ("prompts", part, "nearest"), ".3f"),
                     (f"… the least{after}", ("prompts", part, "least"), ".3f"),
                     (f"label, top 1{after}", ("prompts", part, "label", "top1"), ".1%"),
                     (f"label, top 5{after}", ("prompts", part, "label", "top5"), ".1%"),
                     (f"style{after}", ("prompts", part, "style"), ".1%")]
    return [*measures, ("pictures", ("count",), "d"), ("seconds", ("seconds",), ".1f")]


def _at(result: Any, path: Sequence[str]) -> Any:
    for name in path:
        result = result.get(name) if isinstance(result, Mapping) else None
    return result * 1000 if path == ("kid",) and result is not None else result


def plain(content: Any) -> Any:
    """`content` with `None` for what JSON has no number for."""
    if isinstance(content, Mapping):
        return {name: plain(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
