"""Tensors that take long to make, kept in files: found again if nothing that they depend on has changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import local_path, staged_file, to_json
from ..weights import read_tensors

_FORMAT = 1


class Shards:
    """Tensors of numbered items in safetensors files of `per_shard` items each.

    They are in a folder inside `folder` that is named after a hash of all that they depend on; its `cache.json` says what
    that was. Other folders beside it are caches of other settings, and may be deleted.

    Args:
        folder: made if need be.
        depends_on: everything that another result would follow from; of what JSON knows, tuples and dtypes.
        names: what each item's tensors are called.
        per_shard: items a file.
    """

    def __init__(
        self, folder: str | os.PathLike[str], depends_on: Mapping[str, Any], names: list[tuple[str, ...]], per_shard: int
    ) -> None:
        if per_shard < 1:
            raise ValueError(f"per_shard is {per_shard}, but must be at least 1")
        described = to_json({"format": _FORMAT, "per_shard": per_shard, **depends_on})
        self.folder = local_path(folder) / hashlib.sha256(described.encode()).hexdigest()[:32]
        self._names, self._per_shard, self._described = names, per_shard, described
        self._read: dict[int, dict[str, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_read": {}}  # a worker maps the files for itself

    def missing(self) -> list[int]:
        """The shards that are not there, or not whole."""
        count = -(-len(self._names) // self._per_shard)
        return [shard for shard in range(count) if not self._is_whole(shard)]

    def items(self, shard: int) -> range:
        """The numbers of the items in a shard."""
        return range(shard * self._per_shard, min((shard + 1) * self._per_shard, len(self._names)))

    def write(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard, whole or not at all.

        Raises:
            OSError: it cannot be written (the disk is full, say); names it.
        """
        about = self.folder / "cache.json"
        if not about.is_file():
            with staged_file(about) as scratch:
                scratch.write_text(self._described, encoding="utf-8")
        with staged_file(self._path(shard)) as scratch:
            try:
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch, metadata={"format": "pt"})
            except SafetensorError as error:
                raise OSError(f"cannot write {str(self._path(shard))!r} ({error})") from error

    def read(self, item: int, name: str) -> Tensor:
        """A copy of one tensor of an item. Files are memory-mapped, and stay so."""
        shard = item // self._per_shard
        if shard not in self._read:
            self._read[shard] = read_tensors([self._path(shard)])
        return self._read[shard][name].clone()

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.safetensors"

    def _is_whole(self, shard: int) -> bool:
        try:
            with safe_open(self._path(shard), framework="pt") as content:
                return set(content.keys()) == {name for item in self.items(shard) for name in self._names[item]}
        except (OSError, SafetensorError):
            return False


def digest_of(model: nn.Module) -> str:
    """A hash of a model's weights: their names, dtypes, shapes and values."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        state.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return state.hexdigest()


def digest_of_values(values: Iterator[Any]) -> str:
    """A hash of what JSON knows, one after the other."""
    state = hashlib.sha256()
    for value in values:
        state.update(json.dumps(value).encode() + b"\n")
    return state.hexdigest()


def described_model(model: Any) -> dict[str, Any]:
    """What a model's results depend on: its class, config and weights."""
    config = {name: value for name, value in dict(getattr(model, "config", None) or {}).items() if not name.startswith("_")}
    return {"class": type(model).__name__, "config": config, "weights": digest_of(model)}
