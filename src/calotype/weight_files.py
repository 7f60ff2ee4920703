"""Which files of a folder hold its weights: whole or in shards, of this variant or that, under all names found on the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from .files import read_json


def file_name(stem: str, variant: str | None = None, kind: str = "safetensors") -> str:
    """`diffusion_pytorch_model.fp16.safetensors` and the like."""
    return ".".join(part for part in (stem, variant, kind) if part)


def is_weights(name: str, stem: str, variant: str | None = None, kind: str = "safetensors") -> bool:
    """Whether a file of this name is the weights of that stem and variant, a shard of them or their index."""
    number, mark = r"-\d{5}-of-\d{5}", rf"\.{re.escape(variant)}" if variant else ""
    shard = rf"{re.escape(stem)}({mark}{number}|{number}{mark})\.{kind}"  # both orders are found on the Hub
    return name in (file_name(stem, variant, kind), *index_names(stem, variant, kind)) or bool(re.fullmatch(shard, name))


def index_names(stem: str, variant: str | None, kind: str = "safetensors") -> tuple[str, str]:
    """The names an index may have, both found on the Hub; the first is the one that Diffusers writes."""
    return file_name(f"{stem}.{kind}.index", variant, "json"), file_name(stem, variant, f"{kind}.index.json")


def choose_weights(names: Iterable[str], stem: str, variant: str | None, kind: str = "safetensors") -> list[str]:
    """Of the file names of one folder, those that hold its weights: the variant's if there are such, else the plain.

    A whole file is preferred to shards. Shards bring their index, which comes last. `kind`: `"safetensors"` or `"bin"`.
    """
    names = set(names)
    if (stem, kind) == ("model", "bin"):
        stem = "pytorch_model"  # Transformers gives its pickles a longer name than its safetensors
    for wanted in dict.fromkeys((variant, None)):
        if file_name(stem, wanted, kind) in names:
            return [file_name(stem, wanted, kind)]
        index = [name for name in index_names(stem, wanted, kind) if name in names][:1]
        shards = sorted(name for name in names if is_weights(name, stem, wanted, kind) and name.endswith(kind))
        if index and shards:
            return shards + index
    return []


def weight_files(folder: Path, stem: str, variant: str | None = None, use_safetensors: bool = True) -> list[Path]:
    """The files in `folder` that hold the weights.

    Raises:
        FileNotFoundError: there are none (says what is there), or a shard that the index names is missing.
        ValueError: the index is damaged, or names what is no shard in its own folder.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    chosen = choose_weights(names, stem, variant) or (
        [] if use_safetensors else choose_weights(names, stem, variant, "bin"))
    if not chosen:
        pickled = sorted(name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth")))
        hint = (f"{', '.join(pickled)}, which is read only when asked for with `use_safetensors=False`"
                if pickled and use_safetensors else ", ".join(sorted(names)) or "no files")
        raise FileNotFoundError(f"{str(folder)!r} has no {file_name(stem, variant)!r}; it has {hint}")
    if len(chosen) == 1:
        return [folder / chosen[0]]
    index = folder / chosen[-1]
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ValueError(f"{str(index)!r} is damaged: it has no 'weight_map' from tensors to files")
    shards = sorted({str(shard) for shard in placed.values()})
    for shard in shards:
        if Path(shard).name != shard or Path(shard).suffix != Path(chosen[0]).suffix:
            raise ValueError(f"{str(index)!r} names {shard!r}, which is not a shard in its own folder")
        if shard not in names:
            raise FileNotFoundError(f"{str(index)!r} names the shard {shard!r}, which is missing")
    return [folder / shard for shard in shards]
