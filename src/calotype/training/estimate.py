"""What a run will need, found out by trying: one picture through the network, its activations counted, and one batch timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..words import some
from .batches import Batches, Draw
from .task import Batch, Place, Task, parameter_count

_STATES = {"adamw": 8, "adam": 8, "adamw8bit": 2, "sgd": 4, "adafactor": 0.1}  # bytes an optimiser keeps of a parameter


def estimate(task: Task, settings: Any) -> Iterator[tuple[str, str]]:
    """Checks the data of a task and tries it: names and values of what a user wants to know before a run.

    Memory is counted and not measured: weights, gradients, what the optimiser and an average keep, and the activations that
    autograd saves, as they are for one picture, times the batch. Working memory of single operations comes on top.
    """
    batches = Batches(task.groups, settings.train_batch_size, settings.seed)
    steps_an_epoch = max(1, batches.steps_per_epoch // settings.gradient_accumulation_steps)
    steps = settings.max_train_steps or settings.num_train_epochs * steps_an_epoch
    yield "pictures", str(len(task.data))
    drawn = [task.data[draw] for draw in next(iter(batches))]
    first = task.collate(drawn)
    yield "a batch", ", ".join(f"{name} {list(value.shape)}" for name, value in first.items() if isinstance(value, Tensor))
    if "caption" in first:
        yield "captions", some([repr(caption) for caption in first["caption"]], 4)
    yield from task.facts()
    trained = [parameter for player in task.players for parameter in player.parameters()]
    yield "trained", f"{parameter_count(trained) / 1e6:.3f} million parameters"
    yield "steps", f"{steps}, {steps / steps_an_epoch:.1f} times through the pictures"
    yield "memory", _memory(task, settings, trained)
    seconds = _seconds(task, first)
    yield "time", f"{seconds:.2f} s a batch here, so about {_hours(seconds * steps * settings.gradient_accumulation_steps)}"


def _memory(task: Task, settings: Any, trained: list[torch.nn.Parameter]) -> str:
    held = {id(p): p.numel() * p.element_size() for player in task.players for p in player.network.parameters()}
    kinds = "adamw8bit" if settings.use_8bit_adam else settings.optimizer
    kept = parameter_count(trained) * (4 + _STATES[kinds] + (4 if settings.use_ema else 0))
    one = task.collate([task.data[Draw(0, 0)]])
    activations = _activations(task, one) * settings.train_batch_size
    total = sum(held.values()) + kept + activations
    return (f"{total / 2**30:.2f} GiB: weights {sum(held.values()) / 2**30:.2f}, gradients, optimiser and average "
            f"{kept / 2**30:.2f}, activations {activations / 2**30:.2f}")


def _activations(task: Task, batch: Batch) -> int:
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
            player.network.train()
            player.loss(batch, Place(0, _all_play(task), 0, number))
    return sum(saved.values())


def _all_play(task: Task) -> int:
    """A step in which all players are trained."""
    return max(player.first_step for player in task.players)


def _seconds(task: Task, batch: Batch) -> float:
    """How long a batch takes forth and back, the second time."""
    for _ in range(2):
        start = time.perf_counter()
        for number, player in enumerate(task.players):
            loss, _ = player.loss(batch, Place(0, _all_play(task), 0, number))
            loss.backward()
            player.network.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - start
    return seconds


def _hours(seconds: float) -> str:
    units = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
    size, unit = next((size, unit) for size, unit in units if seconds > 1.5 * size or size == 1)
    return f"{seconds / size:.1f} {unit}"
