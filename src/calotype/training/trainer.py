"""The loop: a task's networks, optimised on Accelerate's processes, with checkpoints from which a run goes on exactly.

All that is random in step s follows from (seed, s, process), and the learning rate from s, so a checkpoint is the weights, the
optimisers' state and the averages, and the number s.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..made import RUN
from ..runtime.torch_private import forget_other_precision
from .batches import Batches
from .checkpoints import load_checkpoint, save_checkpoint
from .distributed import check_processes, for_inference, free_gathered, unsynchronised, whole, wrapped
from .ema import EMAModel
from .optimizers import make_optimizer
from .plan import planned
from .progress import Progress
from .resuming import checkpoint_to_go_on_from, settings_of_run
from .seeds import seed_for
from .task import Batch, Place, Player, Task, by_draws, on_device

_DROPOUT = 0x64726F70  # the last number of its place


@dataclass
class Trained:
    """What a run leaves: how many steps were done, the losses as they were logged, by step, and the folder of the result."""

    steps: int
    folder: Path
    losses: dict[int, float] = field(default_factory=dict)


class Trainer:
    """Trains a task.

    Args:
        task: what is trained.
        settings: a `Run` and `Optimisation` (see `settings.py`).
        say: told, in the main process, what a user may want to know.

    Raises:
        ValueError, TypeError, ImportError, OSError: what cannot be, such as other settings than a run in `output_dir` had that is
            to go on. All of it is raised before the task starts.
    """

    def __init__(self, task: Task, settings: Any, say: Callable[[str], None] = print):
        self.task, self.settings = task, settings
        self.accelerator = _accelerator(settings.mixed_precision)
        self.main = self.accelerator.is_main_process
        self.say = say if self.main else lambda text: None
        check_processes(self.accelerator, settings.shard)
        plan = planned(task, settings, self.accelerator.num_processes)  # which refuses what cannot be, before the work
        self.steps, self.pictures_a_step = plan.steps, plan.pictures_a_step
        self.learning_rate, self.rate, self._optimizer = plan.learning_rate, plan.rate, plan.optimizer
        self.batches_a_step = settings.gradient_accumulation_steps
        self.batches = self._batches(0)
        if self.main and not (settings.output_dir / RUN).is_file():
            settings.write(settings.output_dir / RUN)  # by which the folder, and all that is made in it, is known as a run's
        device = self.accelerator.device
        task.place(device)
        with self.accelerator.main_process_first():  # which fills caches that the others find
            task.start(self.say)
        self.optimizers: dict[str, Any] = {}
        self.averages: dict[str, EMAModel | None] = {}
        for player in task.players:
            self._prepare(player, device)

    # -- setting up ------------------------------------------------------------------------------------------------------

    def _batches(self, first: int) -> Batches:
        return Batches(self.task.groups, self.settings.train_batch_size, self.settings.seed, first=first,
                       process=self.accelerator.process_index, processes=self.accelerator.num_processes)

    def _prepare(self, player: Player, device: torch.device) -> None:
        settings, network = self.settings, player.network
        network.to(device)
        if settings.channels_last and not settings.shard:  # weights that are divided are so in their usual layout
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if settings.gradient_checkpointing:
            for part in network.modules():
                getattr(part, "enable_gradient_checkpointing", lambda: None)()
        network.train()
        player.module = wrapped(self.accelerator, network, settings.shard)
        optimizer = make_optimizer(
            self._optimizer, player.parameters(), self.learning_rate * player.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2), weight_decay=settings.adam_weight_decay,
            epsilon=settings.adam_epsilon)
        self.optimizers[player.name] = self.accelerator.prepare_optimizer(optimizer)
        self.averages[player.name] = EMAModel(
            player.parameters(), decay=settings.ema_decay, use_ema_warmup=True, power=settings.ema_power,
        ) if settings.use_ema and player.averaged else None

    def _trained(self) -> dict[str, tuple[Any, Any, Any]]:
        return {player.name: (player.network, self.optimizers[player.name].optimizer, self.averages[player.name])
                for player in self.task.players}

    # -- going on --------------------------------------------------------------------------------------------------------

    def _resume(self) -> int:
        """Put the last checkpoint in place, if there is one that is wanted; the step from which to go on."""
        path = checkpoint_to_go_on_from(self.settings, self.steps, self.accelerator.num_processes)
        if path is None:
            return 0
        told = load_checkpoint(path, self._trained())
        if self.accelerator.scaler is not None and told["scaler"]:
            self.accelerator.scaler.load_state_dict(told["scaler"])
        self.say(f"going on from {path}")
        return int(told["step"])

    def _facts(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        settings = settings_of_run(self.settings, self.accelerator.num_processes)
        return {"settings": settings, "scaler": scaler.state_dict() if scaler is not None else None}

    # -- the run ---------------------------------------------------------------------------------------------------------

    def run(self) -> Trained:
        """Train to the end, from the last checkpoint on, and save the result in `output_dir`.

        Raises:
            ArithmeticError: the loss is not finite.
        """
        settings, folder = self.settings, self.settings.output_dir
        if self.main:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*.partial"):  # by a run that was killed while it saved
                shutil.rmtree(left, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        first = self._resume()
        if self.main:
            settings.write(folder / RUN)
        trained = Trained(self.steps, folder)
        device = self.accelerator.device
        with (torch.random.fork_rng([device] if device.type == "cuda" else []),  # the caller's random numbers stay as they were
              _tf32(settings.allow_tf32),
              Progress(self.steps, first, self.pictures_a_step, settings, self.accelerator) as progress):
            loader = self._loader(first)
            for step in range(first, self.steps):
                logged = self.step(step, [next(loader) for _ in range(self.batches_a_step)])
                last = step + 1 == self.steps
                saves = last or (step + 1) % settings.checkpointing_steps == 0
                trained.losses |= progress.after(step, logged, saves)  # which sees to it that what is saved is finite
                if saves:
                    save_checkpoint(folder, step + 1, self._trained(), self._facts(), self.main, settings.checkpoints_total_limit)
                if settings.num_validation_images and (last or (step + 1) % settings.validation_steps == 0):
                    self._sample(step + 1, progress)
        self._save(folder)
        return trained

    def _loader(self, first: int) -> Iterator[Batch]:
        """The batches from step `first` on, without end."""
        workers = self.settings.dataloader_num_workers
        return iter(DataLoader(
            by_draws(self.task.data), batch_sampler=self._batches(first * self.batches_a_step), collate_fn=self.task.collate,
            num_workers=workers, persistent_workers=workers > 0, pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator()))

    def step(self, step: int, batches: list[Batch]) -> dict[str, Tensor]:
        """One optimisation step of every player on the same batches; returns what is worth logging, on the run's device."""
        logged: dict[str, Tensor] = {}
        batches = [on_device(batch, self.accelerator.device) for batch in batches]
        for number, player in enumerate(self.task.players):
            optimizer, losses = self.optimizers[player.name], []
            if step < player.first_step:
                continue
            if step == player.first_step:  # a checkpoint before it made the state that it then wrote
                optimizer.optimizer.state.clear()
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * player.learning_rate * self.rate(step)
            optimizer.zero_grad(set_to_none=True)
            for micro, batch in enumerate(batches):
                place = Place(self.settings.seed, step, micro, number, self.accelerator.process_index, self.accelerator.device)
                # Dropout draws from PyTorch's own generator: other numbers than the noise has, which it must not depend on.
                torch.manual_seed(seed_for(*place.numbers, _DROPOUT))
                alone: AbstractContextManager[Any] = nullcontext()
                if micro + 1 < len(batches):
                    alone = unsynchronised(self.accelerator, player.module)
                with alone:
                    with self.accelerator.autocast():
                        loss, told = player.loss(batch, place)
                    self.accelerator.backward(loss / len(batches))
                losses.append(loss.detach())
            self.accelerator.unscale_gradients(optimizer)  # of this player alone
            norm = nn.utils.clip_grad_norm_(player.parameters(), self.settings.max_grad_norm)
            optimizer.step()
            average = self.averages[player.name]
            if average is not None and not optimizer.step_was_skipped:
                average.step(player.parameters())
            prefix = "" if number == 0 else f"{player.name}_"
            logged |= {f"{prefix}loss": torch.stack(losses).mean(), f"{prefix}gradient_norm": whole(norm)}
            logged |= {f"{prefix}{name}": value.detach() for name, value in told.items()}
        for player in self.task.players:
            free_gathered(player.module)
        return logged

    # -- results ---------------------------------------------------------------------------------------------------------

    def _averaged(self) -> Iterator[AbstractContextManager[Any]]:
        for player in self.task.players:
            average = self.averages[player.name]
            if average is not None:
                yield average.averaged(player.parameters())

    def result(self) -> AbstractContextManager[Any]:
        """A context in which the networks are what a user gets: whole, averaged, for inference."""
        return for_inference(self.networks(), list(self._averaged()))

    def _sample(self, step: int, progress: Progress) -> None:
        start = time.perf_counter()
        with self.result():
            pictures = self.task.samples() if self.main else []
        if pictures:
            progress.show(step, pictures, self.settings.output_dir / "samples" / f"step-{step:06}.png")
        progress.pause(time.perf_counter() - start)
        self.accelerator.wait_for_everyone()

    def _save(self, folder: Path) -> None:
        with self.result():
            if self.main:
                self.task.save(folder)
                self.say(f"saved {folder}")
        self.accelerator.wait_for_everyone()

    def networks(self) -> list[nn.Module]:
        """The networks that are trained."""
        return [player.network for player in self.task.players]


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """A context in which matrix products in float32 may be computed in TensorFloat-32, if it is allowed."""
    before = torch.get_float32_matmul_precision()
    if allowed:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _accelerator(mixed_precision: str) -> Accelerator:
    """Accelerate's, of which a process has one state: a run before this one may have had another precision."""
    forget_other_precision(mixed_precision)
    # Without an accelerator Accelerate must be told, or it takes the processes of a launcher for runs of their own.
    accelerator = Accelerator(mixed_precision=mixed_precision, cpu=not torch.accelerator.is_available())
    accelerator.gradient_accumulation_steps = 1  # whatever a launcher says: the settings do, and the loss is divided here
    return accelerator
