"""What follows from a run's settings before anything of it is done, and everything that can be refused by then: a run that cannot
be is refused before pictures are encoded for an hour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..files import check_folder
from .batches import Batches
from .checkpoints import check_checkpoint
from .learning_rates import Factor, learning_rate
from .optimizers import check_optimizer
from .progress import check_tracker
from .resuming import checkpoint_to_go_on_from
from .task import Task


@dataclass(frozen=True)
class Plan:
    """Attributes:
    steps: how many there are. pictures_a_step: of all processes. learning_rate: the highest. rate: its factor in each step.
    optimizer: what it is called.
    """

    steps: int
    pictures_a_step: int
    learning_rate: float
    rate: Factor
    optimizer: str


def planned(task: Task, settings: Any, processes: int = 1) -> Plan:
    """The plan of a run of a task, after everything about it is checked that can be checked.

    Raises:
        ValueError, TypeError: settings that cannot be, or that a run in `output_dir` had otherwise. ImportError: a package is
            missing. OSError: there is no such file, or `output_dir` cannot be written to.
    """
    accumulated = settings.gradient_accumulation_steps
    batches = Batches(task.groups, settings.train_batch_size, settings.seed, processes=processes)
    # Every picture as often as asked or more: what is left of an epoch's batches begins a step that the next epoch fills up.
    steps = settings.max_train_steps or -(-batches.steps_for(settings.num_train_epochs) // accumulated)
    pictures = settings.train_batch_size * accumulated * processes
    highest = settings.learning_rate * (pictures if settings.scale_lr else 1)
    rate = learning_rate(settings.lr_scheduler, num_warmup_steps=settings.lr_warmup_steps, num_training_steps=steps,
                         num_cycles=settings.lr_num_cycles, power=settings.lr_power, initial_rate=highest)
    optimizer = "adamw8bit" if settings.use_8bit_adam else settings.optimizer
    check_optimizer(optimizer)
    for player in task.players:
        if not player.parameters():
            raise ValueError(f"nothing of {player.name!r} is trained: none of its parameters requires a gradient")
    check_tracker(settings.report_to)
    task.check()
    checkpoint = checkpoint_to_go_on_from(settings, steps, processes)
    if checkpoint is not None:
        check_checkpoint(checkpoint, {player.name: player.network for player in task.players})
    check_folder(settings.output_dir, "output_dir")
    return Plan(steps, pictures, highest, rate, optimizer)
