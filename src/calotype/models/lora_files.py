"""The files of LoRA adapters, under all the names that tools have given their tensors.

Names are not taken apart: for every layer of the models at hand, all spellings are made, and the names in a file are looked up.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..files import local_path, read_json, staged_folder, write_json
from ..weights import read_tensors
from ..words import some
from .lora import LoraState, adaptable
from .merged_layer import Pair

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
PEFT_NAMES = "adapter_config.json", "adapter_model.safetensors"

_ROLES = {
    ".lora_A.weight": "down", ".lora_B.weight": "up",  # PEFT, Diffusers
    ".lora.down.weight": "down", ".lora.up.weight": "up",  # Diffusers
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",  # Diffusers, text encoders
    "_lora.down.weight": "down", "_lora.up.weight": "up",  # Diffusers' attention processors
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha",  # kohya's scripts, AUTOMATIC1111's web UI
}
_OTHERS = {
    ".lora_mid.weight": "a product of three (LoCon with a Tucker decomposition)", ".hada_": "LoHa", ".lokr_": "LoKr",
    ".oft_": "OFT", ".dora_scale": "DoRA", ".lora_magnitude_vector": "DoRA", ".lora_B.bias": "a LoRA with biases",
    ".diff": "whole differences of weights", ".ia3_": "IA³", ".lora_embedding_": "a LoRA of embeddings",
}
_PREFIXES = {"unet": ("lora_unet",), "text_encoder": ("lora_te", "lora_te1")}  # kohya's, by component
_QUERY_KEY_VALUE_OUT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out",
                        "to_q": "processor.to_q", "to_k": "processor.to_k", "to_v": "processor.to_v",
                        "to_out.0": "processor.to_out"}
"""How Diffusers' older files call the projections of attention."""

Configs = Mapping[str, Mapping[str, Any]]
"""What is said of an adapter in PEFT's words, by component; `""` for any."""


def read_adapter(
    tensors: Mapping[str, Tensor], configs: Configs, models: Mapping[str, nn.Module], where: str
) -> dict[str, dict[str, Pair]]:
    """What an adapter has for each layer of each component.

    Args:
        tensors: as in a file, in any format. configs: what the file says beside them.
        models: the components that it may be for, by the names that they have in a pipeline.
        where: what it was read from, for errors.

    Raises:
        ValueError: a tensor fits no layer, has the wrong shape, or lacks its other half, or the adapter is of another kind;
            names all that is wrong.
    """
    spellings = dict(_spellings(models))
    layers = {(component, layer): module for component, model in models.items() for layer, module in adaptable(model)}
    found: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    bare_names: dict[tuple[str, str], str] = {}
    unknown, faults = [], []
    for key, tensor in tensors.items():
        plain = re.sub(r"\.lora_([AB])\.[^.]+\.weight$", r".lora_\1.weight", key).replace("base_model.model.", "", 1)
        suffix = next((suffix for suffix in _ROLES if plain.endswith(suffix)), None)
        place = spellings.get(plain.removesuffix(suffix)) if suffix else None
        if suffix is None and (kind := next((kind for mark, kind in _OTHERS.items() if mark in plain), None)):
            raise ValueError(f"{where} holds {kind}, at {key!r}, and only LoRA is read: products of two matrices")
        if suffix is None or place is None:
            unknown.append(key)
        elif _ROLES[suffix] in found[place]:
            faults.append(f"there twice: {key}")
        else:
            found[place][_ROLES[suffix]] = tensor
            bare_names[place] = plain.removesuffix(suffix).removeprefix(f"{place[0]}.")
    if unknown:
        kinds = ", ".join(f"{name} ({type(model).__name__})" for name, model in models.items()) or "none"
        faults.insert(0, f"for no layer of the models here, {kinds}: {some(unknown)}")
    read: dict[str, dict[str, Pair]] = {}
    for (component, layer), parts in found.items():
        lacking = [role for role in ("down", "up") if role not in parts]
        wrong = f"without its {lacking[0]} matrix" if lacking else _wrong_shape(layers[component, layer], parts)
        if wrong:
            faults.append(f"{component}.{layer}: {wrong}")
            continue
        scale = _scale(parts, configs.get(component, configs.get("", {})), bare_names[component, layer])
        read.setdefault(component, {})[layer] = Pair(parts["down"].detach(), parts["up"].detach(), scale)
    if faults or not read:
        faults = faults[:24] or ["it holds no tensors"]
        raise ValueError("\n  ".join([f"{where} is no LoRA adapter for these models:", *faults]))
    return read


def _spellings(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, tuple[str, str]]]:
    """All that a file may call a layer, and where that is: component and layer."""
    for component, model in models.items():
        for layer, _ in adaptable(model):
            place = component, layer
            names = [layer]
            for new, old in _QUERY_KEY_VALUE_OUT.items():
                if layer.endswith(f".{new}"):
                    names.append(layer.removesuffix(new) + old)
            names += [name.removeprefix("text_model.") for name in names]
            for name in names:
                yield name, place
                yield f"{component}.{name}", place
            for prefix in _PREFIXES.get(component, ()):
                yield f"{prefix}_{layer.replace('.', '_')}", place


def _wrong_shape(layer: nn.Linear | nn.Conv2d, parts: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the matrices for a layer; a convolution of one pixel and a linear layer are the same."""
    down, up, weight = parts["down"], parts["up"], layer.weight
    rank, entering, *kernel = (*down.shape, 1, 1)[:4] if down.ndim in (2, 4) else (0, 0)
    shape = [*weight.shape, 1, 1][:4]
    fits = (up.ndim in (2, 4) and list(up.shape) == [shape[0], rank, 1, 1][:up.ndim] and rank > 0
            and [shape[0], entering, *kernel] == shape and down.is_floating_point() and up.is_floating_point())
    if not fits:
        return f"{list(down.shape)} and {list(up.shape)} do not multiply to {list(weight.shape)}"
    alpha = parts.get("alpha")
    return None if alpha is None or alpha.numel() == 1 else f"alpha is a tensor {list(alpha.shape)}, and one number is needed"


def _scale(parts: Mapping[str, Tensor], config: Mapping[str, Any], name: str) -> float:
    """alpha / rank; with neither a tensor nor a config that says it, 1."""
    rank = len(parts["down"])
    if "alpha" in parts:
        return float(parts["alpha"]) / rank
    alpha = _by_pattern(config.get("alpha_pattern") or {}, name, config.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)  # Kalajdzievski 2023 has the root


def _by_pattern(patterns: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches a layer's name, or the end of it after a dot, as PEFT reads them."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error as error:
            raise ValueError(f"alpha_pattern has {pattern!r}, which is no regular expression ({error})") from None
    return otherwise


# -- files ---------------------------------------------------------------------------------------------------------------


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """The tensors of an adapter's file, and its configs by component.

    The config is in the file's metadata (Diffusers), or in `adapter_config.json` beside it (PEFT).

    Raises:
        ValueError: the file is damaged, or the config of an adapter that is no LoRA.
    """
    tensors = read_tensors([path])
    configs: dict[str, dict[str, Any]] = {}
    if path.name == PEFT_NAMES[1] and (beside := path.with_name(PEFT_NAMES[0])).is_file():
        configs[""] = read_json(beside)
    elif path.suffix == ".safetensors":
        configs = _configs_of(path)
    for config in configs.values():
        if (kind := config.get("peft_type", "LORA")) != "LORA":
            raise ValueError(f"{str(path)!r} is an adapter of the kind {kind!r}, and only 'LORA' is read")
        if config.get("use_dora"):
            raise ValueError(f"{str(path)!r} is a DoRA, and only LoRA is read")
    return tensors, configs


def _configs_of(path: Path) -> dict[str, dict[str, Any]]:
    """What Diffusers wrote into a file's metadata: one JSON object, its keys beginning with the component."""
    try:
        with safe_open(path, framework="pt") as content:
            text = (content.metadata() or {}).get("lora_adapter_metadata")
        said = json.loads(text) if text else {}
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged: its lora_adapter_metadata is not JSON ({error})") from None
    if not isinstance(said, dict):
        raise ValueError(f"{str(path)!r} is damaged: its lora_adapter_metadata is a JSON {type(said).__name__}")
    configs: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in said.items():
        component, _, name = key.rpartition(".")
        configs[component][name] = value
    return dict(configs)


def write_adapter(folder: str | os.PathLike[str], states: Mapping[str, LoraState], name: str = WEIGHT_NAME) -> Path:
    """Write the adapters of several components into one file, as Diffusers does; their configs are its metadata."""
    tensors = {f"{component}.{key}": tensor.detach().cpu().contiguous()
               for component, state in states.items() for key, tensor in state.items()}
    said = {f"{component}.{key}": value for component, state in states.items() for key, value in state.config.items()}
    metadata = {"format": "pt", **({"lora_adapter_metadata": json.dumps(said, indent=2, sort_keys=True)} if said else {})}
    with staged_folder(folder) as scratch:
        save_file(tensors, scratch / name, metadata=metadata)
    return local_path(folder) / name


def write_peft(folder: str | os.PathLike[str], state: LoraState) -> None:
    """Write what `lora_state_dict` gives as a folder that PEFT reads: `PeftModel.from_pretrained(model, folder)`."""
    tensors = {f"base_model.model.{key}": tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    with staged_folder(folder) as scratch:
        save_file(tensors, scratch / PEFT_NAMES[1], metadata={"format": "pt"})
        write_json(scratch / PEFT_NAMES[0], {**state.config, "inference_mode": True})
