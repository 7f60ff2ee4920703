"""Weights in and out: safetensors, memory-mapped, in one file or in shards, with every key accounted for."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor, nn

from .files import local_path, staged_folder, write_json
from .weight_files import file_name, index_names, replaced
from .words import some

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def read_tensors(
    files: Iterable[Path], keep: Callable[[str], bool] = lambda name: True, mapped: bool = True
) -> dict[str, Tensor]:
    """The tensors of `files` that `keep` wants, by name. They are memory-mapped, read when first touched, if not told otherwise.

    The mapping is private: changing a tensor in place copies the pages touched and never changes the file. A file
    replaced by a rename, as `write_tensors` does, lives on for whoever has it mapped. Nothing in a file is run:
    safetensors are data, and pickles (`.bin`) go through PyTorch's weights-only reader.

    Raises:
        ValueError: a file is damaged; names the file and, where one can be told, the tensor.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = _read_safetensors(file, mapped) if file.suffix == ".safetensors" else _read_pickle(file, mapped)
        if twice := sorted(found.keys() & tensors.keys()):
            raise ValueError(f"{str(file)!r} holds {some(twice)}, and so does another file of these weights")
        tensors |= {name: tensor for name, tensor in found.items() if keep(name)}
    return tensors


def _read_safetensors(file: Path, mapped: bool) -> dict[str, Tensor]:
    try:
        if not mapped:
            return load(file.read_bytes())
        with safe_open(file, framework="pt") as content:
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(file)!r} is damaged{_place_of_damage(file)} ({error})") from None


def _place_of_damage(file: Path) -> str:
    """The first tensor whose bytes do not begin where the last one's end, or are not all there; else nothing."""
    size, end = file.stat().st_size, 0
    with file.open("rb") as content, suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(min(length, size)))
        spans = [(*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__"]
        for start, stop, name in sorted(spans):
            if start != end or 8 + length + stop > size:
                return f" at tensor {name!r}"
            end = stop
    return ""  # it is the header that is damaged


def _read_pickle(file: Path, mapped: bool) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(file))
    except Exception as error:  # there is no telling what a damaged or hostile pickle leads to
        raise ValueError(f"{str(file)!r} is damaged or holds more than tensors ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{str(file)!r} holds something else than tensors by name")
    return content


def assign_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], where: str, dtype: torch.dtype | None = None,
    optional: Callable[[str], bool] = lambda name: False,
) -> list[str]:
    """Put `tensors` in the place of `model`'s parameters and buffers; return the names that it does not have.

    Args:
        model: usually built on the meta device, so that nothing was initialised in vain; nor is anything copied then.
        tensors: by the model's own names. Of a parameter with several names, one is enough; it stays one.
        where: the name of the file or folder, for errors.
        dtype: floating-point tensors become this; `None` keeps each tensor's own.
        optional: the names that may be missing (they keep what they are).

    Raises:
        ValueError: tensors are missing or have the wrong shape; names them all.
    """
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    given = {slot: tensors[name] for name, slot in own.items() if name in tensors}  # tensors are hashed by identity
    unexpected = sorted(tensors.keys() - own.keys())
    missing = [name for name, slot in own.items() if slot not in given and not optional(name)]
    wrong = [f"{name} is {list(tensors[name].shape)} and should be {list(own[name].shape)}"
             for name in own if name in tensors and tensors[name].shape != own[name].shape]
    if missing or wrong:
        faults = {"missing": missing, "wrong shape": wrong, "there, but not asked for": unexpected}
        raise ValueError("\n  ".join([f"the weights in {where!r} do not fit {type(model).__name__}:"] + [
            f"{fault}: {some(names)}" for fault, names in faults.items() if names]))
    for slot, tensor in given.items():
        given[slot] = tensor = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        if isinstance(slot, nn.Parameter):
            given[slot] = nn.Parameter(tensor, requires_grad=slot.requires_grad and tensor.is_floating_point())
    for name, slot in own.items():
        if slot in given:
            module, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(module), attribute, given[slot])
    return unexpected


def parse_size(size: int | str) -> int:
    """A number of bytes from `5_000_000`, `"500MB"` or `"10GiB"`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?b)?\s*", str(size), re.IGNORECASE | re.ASCII)
    parsed = int(float(match[1]) * _UNITS[(match[2] or "").upper()]) if match else 0
    if parsed < 1:
        raise ValueError(f"a size of {size!r} is not understood; give bytes, or text such as '500MB' or '10GiB'")
    return parsed


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, stem: str, variant: str | None = None,
                  max_shard_size: int | str = "10GB") -> list[Path]:
    """Write `tensors` as safetensors, in one file or, past `max_shard_size`, in shards with an index.

    The folder gets all of the files or, after an error, none; weights of this stem and variant that an earlier save
    left there in another division are removed. Every name is in the files, also of tensors that share memory.

    Raises:
        OSError: a file could not be written (the disk is full, say); names it.
        ValueError: a tensor is on the meta device and has no data; `max_shard_size` is not understood.
    """
    room = parse_size(max_shard_size)
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{name!r} has no data: it is on the meta device, and nothing was loaded into it")
        room -= tensor.nbytes
        if room < 0 and shards[-1]:
            shards.append({})
            room = parse_size(max_shard_size) - tensor.nbytes
        shards[-1][name] = tensor
    folder, head, count = local_path(folder), file_name(stem, variant, ""), len(shards)
    parts = [f"-{i + 1:05d}-of-{count:05d}" for i in range(count)] if count > 1 else [""]
    names = [f"{head}{part}.safetensors" for part in parts]
    with staged_folder(folder, stale=lambda name: replaced(name, stem, variant)) as scratch:
        for name, shard in zip(names, shards, strict=True):
            try:
                save_file(_apart(shard), scratch / name, metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(f"cannot write {str(folder / name)!r} ({error})") from error
        if count > 1:
            total = sum(tensor.nbytes for tensor in tensors.values())
            placed = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
            write_json(scratch / index_names(stem, variant)[0], {"metadata": {"total_size": total}, "weight_map": placed})
    return [folder / name for name in names]


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` contiguous, copied where an earlier one shares their memory, which safetensors does not allow."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return apart
