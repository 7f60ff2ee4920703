"""What a trainer trains: networks with their losses, on batches of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .batches import Draw
from .seeds import generator_for

Batch = dict[str, Any]
Groups = int | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Place:
    """Where in a run a loss is computed; what is random there follows from it."""

    seed: int
    step: int
    micro: int = 0  # which of the batches that make one step together
    player: int = 0
    process: int = 0
    device: torch.device | str = "cpu"

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """What seeds are made of."""
        return self.seed, self.step, self.micro, self.player, self.process

    @cached_property
    def generator(self) -> torch.Generator:
        """The generator, on the run's device, of this place alone."""
        return generator_for(*self.numbers, device=self.device)


@dataclass
class Player:
    """One optimised network; a generator and its adversary are two.

    Attributes:
        name: of its files in checkpoints.
        module: what is called in the loss. The trainer replaces it by one that synchronises processes, so the loss must
            look it up when it is called, and must call it (and not a method of it) for what needs gradients.
        loss: a batch and its place in the run to the loss (a scalar), and what else is worth logging (scalars).
        learning_rate: relative to the run's.
        averaged: whether an average of its weights is worth keeping.
        first_step: the run's step in which it begins to be trained; until then it sits out, and its loss is not called.
    """

    name: str
    module: nn.Module
    loss: Callable[[Batch, Place], tuple[Tensor, dict[str, Tensor]]]
    learning_rate: float = 1.0
    averaged: bool = True
    first_step: int = 0

    def __post_init__(self) -> None:
        self.network = self.module  # as it was before a trainer wrapped it

    @property
    def judge(self) -> nn.Module:
        """What another player's loss calls if it wants gradients of the input alone, and takes them by `torch.autograd.grad`.

        Copies in several processes would wait in vain for gradients to agree on; but weights that are divided are gathered.
        """
        return self.module if hasattr(self.module, "reshard") else self.network

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]


class ByIndex(Dataset[Any]):
    """A data set that knows no draws, read by their indices: any sequence."""

    def __init__(self, items: Any):
        self.items = items

    def __getitem__(self, draw: Draw) -> Any:
        return self.items[draw.index]


def by_draws(data: Any) -> Any:
    """The data of a task, as it is asked by `Draw`."""
    return data if getattr(data, "takes_draws", False) else ByIndex(data)


class Task:
    """Base of what can be trained. A subclass sets `players` and `data`, and says what a result is."""

    players: list[Player]
    data: Any  # what batches are collated from: a Dataset or sequence; one with `takes_draws` is asked by `Draw`
    groups: Groups  # how many pictures, or which may be in one batch

    def place(self, device: torch.device) -> None:
        """Move what is not trained to where the run is. It stays in float32, since it is saved with the result."""

    def check(self) -> None:
        """Raise whatever can be found out before `start`: it comes first, and is quick."""

    def start(self, say: Callable[[str], None]) -> None:
        """What is to be done once before the first step, such as filling caches."""

    def collate(self, items: Sequence[Any]) -> Batch:
        """Items of the data as a batch: tensors stacked, everything else in lists."""
        return {name: torch.stack([item[name] for item in items]) if isinstance(value, Tensor) else [item[name] for item in items]
                for name, value in items[0].items()}

    def samples(self) -> list[Any]:
        """Pictures (PIL) that show how far the training is; few."""
        return []

    def save(self, folder: Path) -> None:
        """Write the result into `folder`."""
        raise NotImplementedError

    def facts(self) -> Iterable[tuple[str, str]]:
        """What `--dry-run` says of it: names and values."""
        return ()


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch whose tensors are on a device."""
    return {name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for name, value in batch.items()}


def parameter_count(parameters: Iterable[Tensor]) -> int:
    """How many numbers there are in them."""
    return sum(parameter.numel() for parameter in parameters)
