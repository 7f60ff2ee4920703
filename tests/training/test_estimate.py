"""What `--dry-run` says, of networks about which it is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calotype.training.estimate import activations, estimate, memory
from calotype.training.task import Player, Task

from .running import FULL, Denoising, Rivals, Told

pytest.importorskip("accelerate")


class Stack(Task):
    """Linear layers from 8 numbers to 4."""

    def __init__(self, *between: nn.Module, frozen: bool = False):
        self.network = nn.Sequential(nn.Linear(8, 16), *between, nn.Linear(16, 4))
        self.network[0].requires_grad_(not frozen)
        self.data = [{"x": torch.full((8,), float(i)), "caption": f"number {i}"} for i in range(6)]
        self.groups = 6
        self.players = [Player("stack", self.network, self.loss)]

    def loss(self, batch, place):
        return self.players[0].module(batch["x"]).square().mean(), {}

    def facts(self):
        yield "network", "a stack"


def told(**settings) -> Told:
    return Told(output_dir="nowhere", **{**FULL, "train_batch_size": 2, **settings})


def counted(task: Task, count: int = 1, **settings) -> int:
    return activations(task, told(**settings), task.collate([task.data[i] for i in range(count)]))


def test_activations_are_counted():
    """A layer saves its input, a square too, and an activation function: x 8, 16, 4 numbers of four bytes."""
    assert counted(Stack()) == 4 * (8 + 16 + 4)
    assert counted(Stack(), 3) == 3 * counted(Stack())
    assert counted(Stack(nn.SiLU())) == 4 * (8 + 16 + 16 + 4)
    assert counted(Stack(nn.Sequential(nn.SiLU(), nn.Linear(16, 16), nn.SiLU()))) == 4 * (8 + 4 * 16 + 4)
    assert counted(Stack(nn.Flatten())) == counted(Stack())  # the same memory is counted once


def test_what_is_not_trained_saves_nothing():
    assert counted(Stack(frozen=True)) == 4 * (16 + 4)


def test_what_is_said():
    said = dict(estimate(Stack(), told(gradient_accumulation_steps=1)))
    assert list(said) == ["pictures", "a batch", "captions", "network", "trained", "steps", "memory", "time"]
    assert said["pictures"] == "6" and said["a batch"] == "x [2, 8]" and said["captions"].startswith("'number ")
    assert said["steps"] == "6, 2.0 times through the pictures"
    assert said["time"].endswith("seconds")
    assert dict(estimate(Stack(), told(max_train_steps=None, num_train_epochs=4)))["steps"] == "6, 4.0 times through the pictures"


@pytest.mark.parametrize(("frozen", "count"), [(False, 8 * 16 + 16 + 16 * 4 + 4), (True, 16 * 4 + 4)])
def test_trained_parameters(frozen, count):
    assert dict(estimate(Stack(frozen=frozen), told()))["trained"] == f"{count / 1e6:.3f} million parameters"


def test_memory():
    count = 8 * 16 + 16 + 16 * 4 + 4
    needed = memory(Stack(), told())
    assert list(needed.values()) == [4 * count, 16 * count, 2 * counted(Stack())]
    other = memory(Stack(frozen=True), told(use_ema=False, optimizer="sgd", train_batch_size=10))
    assert list(other.values()) == [4 * count, 8 * (16 * 4 + 4), 10 * counted(Stack(frozen=True))]
    half, full = (memory(Stack(nn.Linear(16, 16)), told(mixed_precision=kind, train_batch_size=100))["activations"]
                  for kind in ("bf16", "no"))
    assert 0.5 < half / full < 0.75  # weights in half precision are there once


@pytest.mark.parametrize("task", [Denoising, Rivals])
def test_other_tasks_can_be_tried(task):
    said = dict(estimate(task(told()), told(gradient_checkpointing=True)))
    assert said["memory"].endswith("and less with gradient_checkpointing")
