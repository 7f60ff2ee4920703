"""Which files of a folder hold its weights: whole or in shards, of this variant or that, under all names found on the Hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from .files import read_json
from .words import nearest, some

_WHOLE_FIRST = ("model",)  # the name that Transformers gives to weights


def kinds_of(use_safetensors: bool | None = None) -> tuple[str, ...]:
    """In what weights may be, the preferred first: pickles only where they are asked for, by `use_safetensors=False`."""
    return ("bin", "safetensors") if use_safetensors is False else ("safetensors",)


def _stem_of(stem: str, kind: str) -> str:
    """Transformers gives its pickles a longer name than its safetensors."""
    return "pytorch_model" if (stem, kind) == ("model", "bin") else stem


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


def replaced(name: str, stem: str, variant: str | None = None) -> bool:
    """Whether a file of this name is what a save of that stem and variant takes the place of: its weights in any layout."""
    return is_weights(name, stem, variant) or is_weights(name, _stem_of(stem, "bin"), variant, "bin")


def variants(names: Iterable[str], stem: str, use_safetensors: bool | None = None) -> list[str]:
    """The variants of which a folder with files of these names has weights; `""` stands for the plain ones."""
    files = "|".join(rf"{re.escape(_stem_of(stem, kind))}(?:\.([^.]+?))?(?:-\d{{5}}-of-\d{{5}})?(?:\.([^.]+))?\.{kind}"
                     for kind in kinds_of(use_safetensors))
    found = [match for name in names if (match := re.fullmatch(files, name))]
    return sorted({next(filter(None, match.groups()), "") for match in found})


def choose_weights(names: Iterable[str], stem: str, variant: str | None, *kinds: str) -> list[str]:
    """Of the file names of one folder, those that hold its weights: the variant's if there are such, else the plain.

    Of a whole file and shards, which are of two saves, those are taken that the library takes whose format it is:
    Diffusers the shards, Transformers the whole file. Shards bring their index, which comes last.

    Args:
        kinds: `"safetensors"` (if none is given), `"bin"` or both, the preferred first.
    """
    names = set(names)
    for wanted in dict.fromkeys((variant, None)):
        for kind in kinds or kinds_of():
            own = _stem_of(stem, kind)
            whole = [name for name in (file_name(own, wanted, kind),) if name in names]
            index = [name for name in index_names(own, wanted, kind) if name in names][:1]
            shards = sorted(name for name in names.difference(whole) if is_weights(name, own, wanted, kind)
                            and name.endswith(kind)) if index else []
            if whole or shards:
                return whole if whole and (stem in _WHOLE_FIRST or not shards) else shards + index
    return []


def check_variant(
    names: Collection[str], stem: str, variant: str | None, where: str, use_safetensors: bool | None = None
) -> None:
    """That a folder has weights of `variant`.

    Raises:
        FileNotFoundError: it has none, though it has others; says which.
    """
    there = variants(names, stem, use_safetensors)
    if variant and there and variant not in there:
        held = [repr(name) if name else "the plain ones" for name in there]
        raise FileNotFoundError(f"{where!r} has no weights of the variant {variant!r}{nearest(variant, there)} "
                                f"(there are {some(held)})")


def weight_files(
    folder: Path, stem: str, variant: str | None = None, use_safetensors: bool | None = None
) -> list[Path]:
    """The files in `folder` that hold the weights.

    Raises:
        FileNotFoundError: there are none (says what is there), or a shard that the index names is missing.
        ValueError: the index is damaged, or names what is no shard in its own folder.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    chosen = choose_weights(names, stem, variant, *kinds_of(use_safetensors))
    if not chosen:
        pickled = sorted(name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth")))
        hint = (f"{', '.join(pickled)}, which is read only when asked for with `use_safetensors=False`"
                if pickled and use_safetensors is not False else ", ".join(sorted(names)) or "no files")
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
