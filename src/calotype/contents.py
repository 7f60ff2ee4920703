"""What a checkpoint on this machine holds, told from its JSON and the headers of its weights: nothing is loaded."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from .defaults import read_defaults
from .files import read_json
from .hub import BUNDLED, Source
from .registry import known
from .weight_files import choose_weights
from .words import listing, some

_INDICES = ("model_index.json", "config.json", "scheduler_config.json")


def locate(model: str, revision: str | None = None) -> tuple[str, Path]:
    """Where a checkpoint's files are: `"bundled"`, `"folder"` or `"Hub cache"`, and the folder. No network."""
    source = Source(model, revision=revision, local_files_only=True)
    if source.local:
        return "bundled" if model in BUNDLED else "folder", source.local
    for name in _INDICES:
        with suppress(FileNotFoundError):
            return "Hub cache", source.file(name).parent
    raise FileNotFoundError(f"no checkpoint {model!r}: not a bundled name or a folder here, nor in the cache of Hub files")


def files_of(folder: Path, variant: str | None = None) -> list[Path]:
    """The files in a component's folder that it is loaded from."""
    names = sorted(path.name for path in folder.glob("*") if path.is_file())
    weights = choose_weights(names, "diffusion_pytorch_model", variant) or choose_weights(names, "model", variant)
    return [folder / name for name in names
            if (name in weights or name == "config.json" if weights else name.endswith((".json", ".txt")))]


def components(root: Path) -> dict[str, tuple[str, Path]]:
    """Class and folder of every component of a checkpoint; a model or scheduler by itself is its own only one."""
    index = next((root / name for name in _INDICES if (root / name).is_file()), None)
    if index is None:
        held = some(sorted(path.name for path in root.glob("*"))) or "nothing"
        raise FileNotFoundError(f"{str(root)!r} is no checkpoint: it has no {listing(_INDICES)} (there is {held})")
    config = read_json(index)
    if index.name != _INDICES[0]:
        return {"": (str(config.get("_class_name") or (config.get("architectures") or ["?"])[0]), root)}
    named = {name: entry for name, entry in config.items() if isinstance(entry, list) and len(entry) == 2 and entry[1]}
    return {name: (str(entry[1]), root / name) for name, entry in sorted(named.items()) if Path(name).name == name}


def content_hash(root: Path, variant: str | None = None) -> str:
    """The content hash: sha256 over names and contents of the files that are loaded, wherever and whenever they are."""
    parts = components(root)
    files = [file for name, folder in parts.values() if known(name) for file in files_of(folder, variant)]
    total, piece = hashlib.sha256(), memoryview(bytearray(1 << 20))
    for path in sorted(files if "" in parts else [root / _INDICES[0], *files]):
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as content:
            while read := content.readinto(piece):
                digest.update(piece[:read])
        total.update(f"{path.relative_to(root).as_posix()}\0{digest.hexdigest()}\n".encode())
    return total.hexdigest()


def _read_header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors, without reading one."""
    try:
        with file.open("rb") as content:
            header = json.loads(content.read(min(int.from_bytes(content.read(8), "little"), 10**8)))
        return {name: (entry["dtype"], math.prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is damaged: it has no safetensors header ({error})") from None


def describe(model: str, revision: str | None, variant: str | None) -> dict[str, Any]:
    """All that `info` shows."""
    kind, root = locate(model, revision)
    parts, configs, rows = components(root), {}, []
    for name, (class_name, folder) in parts.items():
        files = files_of(folder, variant) if known(class_name) else []
        tensors = [entry for file in files if file.suffix == ".safetensors" for entry in _read_header(file).values()]
        configs[name] = next((read_json(file) for file in files if file.name in _INDICES), {})
        rows.append({"name": name, "class": class_name, "used": known(class_name), "parameters": sum(n for _, n in tensors),
                     "dtypes": sorted({dtype for dtype, _ in tensors}), "bytes": sum(file.stat().st_size for file in files),
                     "files": [file.relative_to(root).as_posix() for file in files]})
    net, vae = configs.get("unet") or configs.get("", {}), configs.get("vae", {})
    size, scale = net.get("sample_size"), 2 ** max(0, len(vae.get("block_out_channels", [])) - 1)
    settings = configs.get("scheduler", net if parts.get("", "?")[0].endswith("Scheduler") else {})
    return {
        "model": model, "where": kind, "folder": str(root), "components": rows,
        "class": parts[""][0] if "" in parts else str(read_json(root / _INDICES[0]).get("_class_name")),
        "picture_size": [scale * one for one in (size if isinstance(size, list) else [size] * 2)] if size else None,
        "scheduler": {key: value for key, value in settings.items() if value is not None and key != "_diffusers_version"},
        "defaults": read_defaults(root).facts(), "content_hash": content_hash(root, variant)}
