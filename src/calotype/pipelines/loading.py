"""What a pipeline's folder holds for it: which components its index names, and which files each of them is loaded from."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .. import defaults
from ..registry import find, known
from ..weight_files import check_variant, variants

INDEX = "model_index.json"
_log = logging.getLogger(__name__)


def read_components(
    index: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], file: Path
) -> dict[str, str | None]:
    """The class of each component that an index names and a pipeline's `__init__` takes; `None` is of one that is left out.

    Raises:
        ValueError: the index is damaged; names the file and the entry.
    """
    named: dict[str, str | None] = {}
    for name, said in index.items():
        if name not in parameters or name == "self":
            continue
        if isinstance(said, list) and len(said) == 2 and all(isinstance(part, str) or part is None for part in said):
            named[name] = said[1] or None
        elif parameters[name].default is inspect.Parameter.empty or isinstance(said, list):
            raise ValueError(f"{str(file)!r} is damaged: {name!r} is {said!r:.80}, but must be a library and a class")
    return named


def choose_files(
    names: list[str], wanted: Mapping[str, str], loading: Mapping[str, Any], where: str
) -> list[str]:
    """Of the files in a pipeline's folder, those that the wanted components, names with their classes, are loaded from.

    Raises:
        FileNotFoundError: a variant is asked for, and no component has weights of it.
    """
    chosen, models = [INDEX, *(name for name in names if name == defaults.FILE)], {}
    for part, class_name in wanted.items():
        inside = [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        if known(class_name) and issubclass(find(class_name), nn.Module):
            models[part] = (inside, find(class_name))
            inside = find(class_name).choose_files(inside, loading["variant"], loading["use_safetensors"])
        else:
            inside = [name for name in inside if name.endswith((".json", ".txt")) and "/" not in name]
        chosen += [f"{part}/{name}" for name in inside]
    variant, allowed = loading["variant"], loading["use_safetensors"]
    there = {part: variants(inside, model.weights_stem, allowed) for part, (inside, model) in models.items()}
    if variant and any(there.values()) and not any(variant in held for held in there.values()):
        for part, (inside, model) in models.items():
            check_variant(inside, model.weights_stem, variant, f"{where}/{part}", allowed)
    return chosen


def options_of(name: str, component: Any, folder: Path, loading: Mapping[str, Any]) -> dict[str, Any]:
    """With which keyword arguments the model `name` in `folder` is loaded."""
    dtype, variant = loading["torch_dtype"], loading["variant"]
    there = variants([file.name for file in folder.iterdir()], component.weights_stem, loading["use_safetensors"])
    if variant and variant not in there:
        _log.warning("%s has no weights of the variant %r: its plain ones are loaded", name, variant)
        variant = None
    options = {"torch_dtype": dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype,
               "variant": variant, "use_safetensors": loading["use_safetensors"]}
    return options | ({"disable_mmap": True} if loading["disable_mmap"] else {})
