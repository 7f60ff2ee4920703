"""What is said of a run while it goes on: a bar with loss and speed, and trackers (TensorBoard, Weights & Biases)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..console import is_terminal, progress_bar, say
from ..files import staged_file
from ..images.grids import contact_sheet

SECONDS_A_LINE = 30.0
"""How often a line is written, at most."""


class Progress:
    """Of steps `first` to `steps`, of `pictures` each. Losses are read once in `logging_steps`, since to read is to wait.

    Where there is no terminal to show a bar, a line is written now and then.
    """

    def __init__(self, steps: int, first: int, pictures: int, settings: Any, accelerator: Accelerator):
        self._steps, self._first, self._pictures = steps, first, pictures
        self._settings, self._accelerator = settings, accelerator
        self._waiting: dict[int, dict[str, Tensor]] = {}
        self._trackers: list[Any] = []

    def __enter__(self) -> Progress:
        shown = is_terminal()
        self._in_lines = self._accelerator.is_main_process and not shown
        self._bar = progress_bar(total=self._steps, initial=self._first, unit="step", dynamic_ncols=True,
                         disable=not (self._accelerator.is_main_process and shown))
        if self._settings.report_to != "none":
            self._trackers = start_trackers(self._accelerator, self._settings)
        self._since = self._written = time.perf_counter()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()
        if self._trackers:
            self._accelerator.end_training()

    def after(self, step: int, logged: dict[str, Tensor], read_now: bool) -> dict[int, float]:
        """Take note of a step; the losses that were read, by the number of steps done. All processes must call it.

        Raises:
            ArithmeticError: a loss or a gradient is not finite.
        """
        self._waiting[step + 1] = logged
        self._bar.update()
        if not read_now and (step + 1) % self._settings.logging_steps:
            return {}
        read = self._read()
        mean = float(np.mean([values["loss"] for values in read.values()]))
        now = time.perf_counter()
        speed = len(read) * self._pictures / max(now - self._since, 1e-9)
        self._since = now
        words = f"loss {mean:.4f}, {speed:.1f} pictures/s"
        self._bar.set_postfix_str(words)
        if self._in_lines and (now - self._written >= SECONDS_A_LINE or step + 1 == self._steps):
            self._written = now
            say(f"step {step + 1} of {self._steps}: {words}")
        if self._trackers:
            self._accelerator.log({**read[step + 1], "loss": mean, "pictures_per_second": speed}, step=step + 1)
        return {at: values["loss"] for at, values in read.items()}

    def _read(self) -> dict[int, dict[str, float]]:
        """What is waiting, as means over the processes, so that all of them see the same."""
        names = [(at, name) for at, values in self._waiting.items() for name in values]
        values = torch.stack([self._waiting[at][name].to(self._accelerator.device).float() for at, name in names])
        read: dict[int, dict[str, float]] = {at: {} for at in self._waiting}
        self._waiting = {}
        for (at, name), value in zip(names, self._accelerator.reduce(values, "mean").tolist(), strict=True):
            read[at][name] = value
            # A gradient that is not finite is part of the weights by now; but not where it is scaled, when the step is left out.
            if not np.isfinite(value) and name.endswith("loss" if self._accelerator.scaler else ("loss", "gradient_norm")):
                raise ArithmeticError(f"the {name.replace('_', ' ')} is {value} at step {at}: a lower learning rate, or bf16 in "
                                      "place of fp16, may help; go on from an earlier checkpoint")
        return read

    def pause(self, seconds: float) -> None:
        """Leave out of the speed what was no training."""
        self._since += seconds

    def show(self, step: int, pictures: list[Any], path: Path) -> None:
        """Save sample pictures as one, and hand them to the trackers."""
        sheet = contact_sheet(pictures)
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as scratch:
            sheet.save(scratch)
        for tracker in self._trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": np.asarray(sheet)[None]}, step=step, **layout)


def check_tracker(kind: str) -> None:
    """Raise an `ImportError` that names the package, unless the tracker that `report_to` names is installed."""
    from accelerate.utils import is_tensorboard_available, is_wandb_available

    if not {"none": lambda: True, "tensorboard": is_tensorboard_available, "wandb": is_wandb_available}[kind]():
        raise ImportError(f"report_to is {kind!r}, and that is not installed: `pip install {kind}`, or report_to 'none'")


def start_trackers(accelerator: Accelerator, settings: Any) -> list[Any]:
    """Accelerate's trackers of the kind `report_to` names. What they write goes into the run's folder.

    Raises:
        ImportError: its package is not installed; names it.
    """
    kind = settings.report_to
    check_tracker(kind)
    from accelerate.tracking import filter_trackers

    accelerator.project_configuration.set_directories(str(settings.output_dir))
    accelerator.project_configuration.logging_dir = str(settings.output_dir / "logs")
    accelerator.log_with = filter_trackers(kind, accelerator.logging_dir)
    told = {name: value for name, value in settings.model_dump(mode="json").items()
            if isinstance(value, (int, float, str, bool))}
    logs = settings.output_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)  # else Weights & Biases takes a folder of its own choice
    accelerator.init_trackers("calotype", told, init_kwargs={"wandb": {"dir": str(logs)}})
    return list(accelerator.trackers)
