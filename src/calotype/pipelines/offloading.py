"""What a pipeline can do with less memory on the accelerator than its models have weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from ..models.base import Model
from ..runtime import offload
from ..words import check_choice

_Self = TypeVar("_Self", bound="Offloading")


class Offloading:
    """What pipelines inherit to keep weights on the CPU until they are used."""

    def _models(self) -> list[nn.Module]:
        raise NotImplementedError

    def offload(self: _Self, mode: str | None, device: torch.device | str | None = None) -> _Self:
        """Keep weights on the CPU until they are used. Pictures stay the same.

        For one generation at a time, not for threads. As long as it is so, models can be neither moved nor changed; saving
        is no change, and a deep copy of a model is a common model. Pipelines that share models share this too.

        Args:
            mode: `"model"` has one model on the device at a time: a generation moves each once, and takes hardly longer.
                `"layers"` has one block of a model, and the next, which comes while the first works: least memory, and
                much slower, since every step moves all weights. `None` (or `"none"`) undoes it, and leaves all on the CPU.
            device: where the work is done; by default the accelerator.

        Returns:
            The pipeline itself.

        Raises:
            ValueError: another mode, or no such device.
        """
        check_choice("mode", mode, (*offload.MODES, "none", None))
        off = mode is None or mode == "none"
        where = None if off else _present(device)
        offload.restore(self._models())
        if where is not None and mode is not None:
            ahead = mode == "layers" and where.type == "cuda"
            offload.offload(
                self._models(), mode, offload.CudaMover(where) if ahead else offload.Mover(where),
                undivided=[model for model in self._models() if not isinstance(model, Model)])
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """`offload("model")`, to the accelerator of this number or to this device."""
        self.offload("model", _numbered(gpu_id, device))

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """`offload("layers")`, to the accelerator of this number or to this device."""
        self.offload("layers", _numbered(gpu_id, device))


def _present(device: torch.device | str | None) -> torch.device:
    """The device with its number; a `ValueError` if there is none."""
    if device is None:
        device = torch.accelerator.current_accelerator(check_available=True)
        if device is None:
            raise ValueError("there is no accelerator here to offload from: say which device is to do the work, as device=…")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device is {str(device)!r}, which there is not here ({str(error).splitlines()[0]})") from error


def _numbered(gpu_id: int | None, device: torch.device | str | None) -> torch.device | str | None:
    if gpu_id is None:
        return device
    kind = torch.device(device) if device is not None else torch.accelerator.current_accelerator() or torch.device("cuda")
    if kind.index not in (None, gpu_id):
        raise ValueError(f"gpu_id is {gpu_id} and device is {str(device)!r}: give one of them, or the same number in both")
    return torch.device(kind.type, gpu_id)
