"""What a run will need, found out by trying: pictures through the network, their activations counted, and one batch timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..words import some
from .batches import Batches, Draw
from .plan import planned
from .task import Batch, Place, Player, Task, by_draws, on_device, parameter_count

_STATES = {"adamw": 8, "adam": 8, "adamw8bit": 2, "sgd": 4, "adafactor": 0.1}  # bytes an optimiser keeps of a parameter


def estimate(task: Task, settings: Any) -> Iterator[tuple[str, str]]:
    """Checks the data of a task and tries it where it would run: names and values of what a user wants to know before a run.

    Memory is counted and not measured: weights, gradients, what the optimiser and an average keep, and the activations that
    autograd saves, as they are for one picture and for two. Working memory of single operations comes on top.
    """
    state = PartialState()
    plan, device = planned(task, settings, state.num_processes), state.device
    task.place(device)
    for player in task.players:
        player.network.to(device).train()
    batches = Batches(task.groups, settings.train_batch_size, settings.seed)
    yield "pictures", str(len(task.data))
    first = on_device(task.collate([by_draws(task.data)[draw] for draw in next(iter(batches))]), device)
    yield "a batch", ", ".join(f"{name} {list(value.shape)}" for name, value in first.items() if isinstance(value, Tensor))
    if "caption" in first:
        yield "captions", some([repr(caption) for caption in first["caption"]], 4)
    yield from task.facts()
    trained = [parameter for player in task.players for parameter in player.parameters()]
    yield "trained", f"{parameter_count(trained) / 1e6:.3f} million parameters"
    yield "steps", f"{plan.steps}, {plan.steps * plan.pictures_a_step / len(task.data):.1f} times through the pictures"
    yield "memory", _memory(task, settings)
    seconds = _seconds(task, settings, first, device)
    whole = _time(seconds * plan.steps * settings.gradient_accumulation_steps)
    yield "time", f"{seconds:.2f} s a batch here ({device}), so about {whole}"


def memory(task: Task, settings: Any) -> dict[str, int]:
    """Bytes, by what they are for."""
    trained = parameter_count(parameter for player in task.players for parameter in player.parameters())
    held = {id(p): p.numel() * p.element_size() for player in task.players for p in player.network.parameters()}
    kind = "adamw8bit" if settings.use_8bit_adam else settings.optimizer
    kept = trained * (4 + _STATES[kind] + (4 if settings.use_ema else 0))
    device = next(task.players[0].network.parameters()).device
    items = [by_draws(task.data)[Draw(0, ticket)] for ticket in range(2)]
    one, two = (activations(task, settings, on_device(task.collate(items[:count]), device)) for count in (1, 2))
    saved = one + (two - one) * (settings.train_batch_size - 1)  # some of it, such as weights in half precision, is there once
    return {"weights": sum(held.values()), "gradients, optimiser and average": round(kept), "activations": saved}


def _memory(task: Task, settings: Any) -> str:
    needed = memory(task, settings)
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in needed.items())
    less = ", and less with gradient_checkpointing" if settings.gradient_checkpointing else ""
    return f"{sum(needed.values()) / 2**30:.2f} GiB: {parts}{less}"


def activations(task: Task, settings: Any, batch: Batch) -> int:
    """Bytes that autograd saves for the way back, parameters left out, each memory counted once."""
    parameters = {p.untyped_storage().data_ptr() for player in task.players for p in player.network.parameters()}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # a memory that is freed may be another tensor's next

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        for number, player in enumerate(task.players):
            _loss(number, player, settings, batch)
    return sum(saved.values())


def _loss(number: int, player: Player, settings: Any, batch: Batch) -> Tensor:
    device = next(player.network.parameters()).device
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.mixed_precision)
    with torch.autocast(device.type, half, enabled=half is not None):
        return player.loss(batch, Place(settings.seed, player.first_step, 0, number, device=device))[0]


def _seconds(task: Task, settings: Any, batch: Batch, device: torch.device) -> float:
    """How long a batch takes forth and back, the second time."""
    for _ in range(2):
        start = time.perf_counter()
        for number, player in enumerate(task.players):
            _loss(number, player, settings, batch).backward()
            player.network.zero_grad(set_to_none=True)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        seconds = time.perf_counter() - start
    return seconds


def _time(seconds: float) -> str:
    units = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
    size, unit = next((size, unit) for size, unit in units if seconds > 1.5 * size or size == 1)
    return f"{seconds / size:.1f} {unit}"
