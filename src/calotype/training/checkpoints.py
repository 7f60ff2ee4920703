"""Checkpoints of a run: data alone (safetensors and JSON), written whole or not at all, the last few kept.

Networks and optimisers are saved by the parameters' names and gathered from all processes, so a checkpoint does not depend on
how many processes wrote it, nor on how weights were divided among them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from ..files import read_json, write_json

_NAME = re.compile(r"checkpoint-(\d+)")
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, the earliest first."""
    found = {int(match[1]): path for path in (folder.iterdir() if folder.is_dir() else ())
             if (match := _NAME.fullmatch(path.name)) and (path / "training.json").is_file()}
    return [found[step] for step in sorted(found)]


def save_checkpoint(
    folder: Path, step: int, trained: Mapping[str, tuple[Any, Any, Any]], facts: Mapping[str, Any], writes: bool = True,
    limit: int | None = None,
) -> Path:
    """Write `checkpoint-STEP` in `folder`, then remove those before the last `limit`, and those of later steps: a run that
    was begun anew, or from an earlier checkpoint, has not come to them.

    All processes of a run must call it, since weights are gathered from them; the one that `writes` writes.

    Args:
        trained: by name: the network, its optimiser, and the average of its weights or `None`.
        facts: what else must be known to go on, as JSON has it.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    told: dict[str, Any] = dict(facts) | {"step": step, "players": {}}
    for name, (network, optimizer, average) in trained.items():
        both: Any = get_state_dict(network, optimizer, options=_WHOLE)  # empty in all processes but the first
        tensors[name] = both[0]
        moments, rest = _flattened(both[1].get("state", {}))
        tensors[f"{name}.optimizer"] = moments
        told["players"][name] = {"optimizer": rest}
        if average is not None:
            counted = average.state_dict()
            tensors[f"{name}.average"] = {str(i): _whole(one) for i, one in enumerate(counted.pop("shadow_params"))}
            told["players"][name]["average"] = {key: value for key, value in counted.items() if not _is_tensors(value)}
    target = folder / f"checkpoint-{step}"
    if writes:
        _write(target, tensors, told)
        there = checkpoints(folder)
        place = there.index(target)
        for other in [*there[place + 1 :], *(there[: max(place + 1 - limit, 0)] if limit else ())]:
            shutil.rmtree(other)
    return target


def load_checkpoint(path: Path, trained: Mapping[str, tuple[Any, Any, Any]]) -> dict[str, Any]:
    """Put a checkpoint's weights, optimiser states and averages in place.

    Returns:
        The facts it was saved with, and its `step`.

    Raises:
        ValueError: it is of other networks, or damaged; names the file.
    """
    told = check_checkpoint(path, {name: network for name, (network, _, _) in trained.items()})
    for name, (network, optimizer, average) in trained.items():
        about = told["players"][name]
        state = _unflattened(_read(path / f"{name}.optimizer.safetensors"), about["optimizer"])
        weights = _read(path / f"{name}.safetensors")
        # Groups are made by the settings, and rates by the step's number: only the state is a checkpoint's.
        names = {id(parameter): key for key, parameter in network.named_parameters()}
        groups = [{**group, "params": [names[id(one)] for one in group["params"]]} for group in optimizer.param_groups]
        both: dict[str, Any] = {"model_state_dict": weights, "optim_state_dict": {"state": state, "param_groups": groups}}
        set_state_dict(network, optimizer, **both, options=_WHOLE)
        _lay_out(optimizer)
        if average is not None:
            shadows = _read(path / f"{name}.average.safetensors")
            _put_averages(average, [shadows[str(i)] for i in range(len(shadows))], about["average"])
    return told


def check_checkpoint(path: Path, networks: Mapping[str, Any]) -> dict[str, Any]:
    """That a checkpoint is of these networks: by its JSON, and by the heads of its files.

    Returns:
        What its JSON says.

    Raises:
        ValueError: it is of other networks, or damaged; names the file.
    """
    told = read_json(path / "training.json")
    if told.get("players", {}).keys() != networks.keys():
        raise ValueError(f"{str(path)!r} is a checkpoint of {sorted(told.get('players', {}))}, and not of {sorted(networks)}")
    for name, network in networks.items():
        if _shapes_in(path / f"{name}.safetensors") != {key: list(tensor.shape) for key, tensor in _trained(network).items()}:
            raise ValueError(f"{str(path / name)!r} has other tensors than the network that is trained: it is of another run")
    return told


def _shapes_in(file: Path) -> dict[str, list[int]]:
    try:
        with safe_open(file, "pt") as content:
            return {key: content.get_slice(key).get_shape() for key in content.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{str(file)!r} cannot be read as part of a checkpoint ({error})") from None


def _trained(network: Any) -> dict[str, Tensor]:
    """What a checkpoint holds of a network: its buffers, and the parameters that are trained."""
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in network.state_dict().items() if name not in frozen}


def _put_averages(average: Any, shadows: Sequence[Tensor], counted: Mapping[str, Any]) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    current = average.state_dict()
    placed = [distribute_tensor(new, old.device_mesh, old.placements) if isinstance(old, DTensor) else _laid_out_as(old, new)
              for new, old in zip(shadows, current["shadow_params"], strict=True)]
    average.load_state_dict({**current, **counted, "shadow_params": placed})


def _lay_out(optimizer: Any) -> None:
    """Give an optimiser's state the memory layout of its parameters.

    Fused kernels of PyTorch walk through both as they lie in memory: of a convolution in channels-last layout, they would mix
    weights with the moments of others.
    """
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                entries[key] = _laid_out_as(parameter, value)


def _laid_out_as(other: Tensor, tensor: Tensor) -> Tensor:
    """A copy where `other` is, and laid out in memory as that is."""
    return torch.empty_like(other, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be divided among processes, on the CPU."""
    return getattr(tensor, "full_tensor", lambda: tensor)().detach().cpu()


def _is_tensors(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(isinstance(one, Tensor) for one in value)


def _flattened(state: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """An optimiser's state as named tensors, and what in it is none."""
    tensors = {f"{parameter}/{key}": _whole(value) for parameter, entries in state.items()
               for key, value in entries.items() if isinstance(value, Tensor)}
    rest = {parameter: {key: value for key, value in entries.items() if not isinstance(value, Tensor)}
            for parameter, entries in state.items()}
    return tensors, rest


def _unflattened(tensors: Mapping[str, Tensor], rest: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    state = {parameter: dict(entries) for parameter, entries in rest.items()}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        state[parameter][key] = tensor
    return state


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except Exception as error:
        raise ValueError(f"{str(file)!r} cannot be read as part of a checkpoint ({error})") from None


def _write(target: Path, tensors: Mapping[str, dict[str, Tensor]], told: Mapping[str, Any]) -> None:
    """All files into a folder beside, which then gets its name: a checkpoint that has its name is whole."""
    scratch = target.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        scratch.mkdir(parents=True)
        for name, named in tensors.items():
            save_file({key: tensor.contiguous() for key, tensor in named.items()}, scratch / f"{name}.safetensors")
        write_json(scratch / "training.json", json.loads(json.dumps(told, default=str)))
        if target.exists():  # of a run that was begun anew
            shutil.rmtree(target)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
