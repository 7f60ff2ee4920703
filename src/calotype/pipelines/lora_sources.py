"""Where a LoRA adapter's file is, and how much an adapter counts in each layer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import local_path
from ..hub import split_options
from ..models.lora_files import PEFT_NAMES, WEIGHT_NAME
from ..words import check_choice, listing, some


def adapter_file(
    source: str | os.PathLike[str], weight_name: str | None = None, use_safetensors: bool | None = None,
    low_cpu_mem_usage: bool | None = None, **where: Any,
) -> Path:
    """The local path of an adapter's file."""
    path = local_path(source)
    if path.is_file():
        return path
    origin, _ = split_options(source, where)
    if weight_name is not None:
        if weight_name == PEFT_NAMES[1] and origin.local is None:
            origin.file(PEFT_NAMES[0])
        return origin.file(weight_name)
    folder = origin.folder(lambda names: [
        *_adapter_files(names, use_safetensors), *(name for name in PEFT_NAMES[:1] if name in names)])
    there = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    found = _adapter_files(there, use_safetensors)
    if len(found) != 1:
        raise FileNotFoundError(f"{str(source)!r} has no {WEIGHT_NAME!r} (there is {some(there) or 'nothing'}); a file of "
                                "another name is read with weight_name=…")
    return folder / found[0]


def _adapter_files(names: list[str], use_safetensors: bool | None) -> list[str]:
    """Of a folder's files, the adapter's, if there is no doubt; else all that could be."""
    for usual in (WEIGHT_NAME, PEFT_NAMES[1], *(["pytorch_lora_weights.bin"] if use_safetensors is False else [])):
        if usual in names:
            return [usual]
    return [name for name in names if name.endswith(".safetensors") and "/" not in name]


def adapter_factors(weight: Any, layers: Mapping[str, Any]) -> dict[str, float]:
    """How much each layer of an adapter counts; see `set_adapters`."""
    if weight is None:
        return dict.fromkeys(layers, 1.0)
    if not isinstance(weight, Mapping):
        return dict.fromkeys(layers, float(weight))
    factors = dict.fromkeys(layers, 1.0)
    for part, value in weight.items():
        check_choice("a part of the UNet in adapter_weights", part, ("down", "mid", "up"))
        if not isinstance(value, Mapping):
            _set(factors, f"{part}_block", value)
            continue
        for block, inner in value.items():
            number = str(block).removeprefix("block_")
            place = f"{part}_blocks.{number}."
            if not number.isdigit() or not any(layer.startswith(place) for layer in layers):
                raise ValueError(f"adapter_weights has {block!r} of {part!r}, where the adapter has nothing; blocks are "
                                 f"called {listing(_blocks(part, layers)) or 'nothing'}")
            if not isinstance(inner, Sequence):
                _set(factors, place, inner)
                continue
            count = len({layer.split(".")[3] for layer in layers if layer.startswith(f"{place}attentions.")})
            if len(inner) != count:
                raise ValueError(f"adapter_weights has {len(inner)} numbers for the {count} transformers of {part}.{block}")
            for i, each in enumerate(inner):
                _set(factors, f"{place}attentions.{i}.", each)
    return factors


def _set(factors: dict[str, float], beginning: str, value: Any) -> None:
    for layer in factors:
        if layer.startswith(beginning):
            factors[layer] = float(value)


def _blocks(part: str, layers: Mapping[str, Any]) -> list[str]:
    return sorted({f"block_{layer.split('.')[1]}" for layer in layers if layer.startswith(f"{part}_blocks.")})
