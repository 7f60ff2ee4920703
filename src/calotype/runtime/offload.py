"""Less memory on the accelerator: weights rest on the CPU, and are on the device while something works with them.

They come and go in units, a whole model or a block of one. A unit that is away has hooks on its modules: the first that is
called lets it in, and out goes what does not enclose it. Blocks follow each other always in the same way, so that the next
can be on its way while one works. Weights at rest stay as they are, and a unit that leaves is pointed back to them: this
costs nothing.

For one generation at a time, and without gradients.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .torch_private import remove_hooks

_log = logging.getLogger(__name__)

MODES = ("model", "layers")
"""One model on the device at a time; or one block, and the next."""

Arrival = Callable[[], list[Tensor]]
"""Called once, waits until weights that are on their way may be used or forgotten, and gives them."""


class Mover:
    """How weights get to a device: at once."""

    def __init__(self, device: torch.device):
        self.device = device

    def rest(self, weight: Tensor) -> Tensor:
        """What stays on the CPU of a weight."""
        return weight.cpu()

    def fetch(self, resting: list[Tensor]) -> Arrival:
        """Copies on the device of weights at rest."""
        weights = [weight.to(self.device) for weight in resting]
        return lambda: weights

    def end(self, resting: Tensor) -> Tensor:
        """What a weight is when offloading has ended."""
        return resting


class CudaMover(Mover):
    """Copies from page-locked memory on a stream of their own, beside the computation.

    Memory of the device is taken from, and given back to, the stream that computes. So a copy begins only when that stream
    has done with what the memory held before, and that stream waits for the copy before it uses the weights or lets them go.
    """

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.copies = torch.cuda.Stream(device)
        self.pins = True

    def rest(self, weight: Tensor) -> Tensor:
        if self.pins:
            try:
                return weight.cpu().pin_memory()
            except RuntimeError as error:
                self.pins = False
                _log.warning("no more memory can be page-locked (%s): blocks will come more slowly", str(error).split("\n")[0])
        return weight.cpu()

    def fetch(self, resting: list[Tensor]) -> Arrival:
        weights = [torch.empty_like(weight, device=self.device) for weight in resting]
        self.copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.copies):
            for weight, source in zip(weights, resting, strict=True):
                weight.copy_(source, non_blocking=True)
        copied = self.copies.record_event()

        def arrived() -> list[Tensor]:
            torch.cuda.current_stream(self.device).wait_event(copied)
            return weights

        return arrived

    def end(self, resting: Tensor) -> Tensor:
        return resting.clone() if resting.is_pinned() else resting  # others may need to lock memory


class Unit:
    """Weights that come and go together; as a hook, what lets them in.

    Attributes:
        lineage: the units whose modules enclose it, and itself.
        modules, weights: which call for it; their parameters and buffers. resting: the weights on the CPU.
        hooks: as long as it is away.
    """

    def __init__(self, stage: Stage, enclosing: tuple[Unit, ...] = ()):
        self.stage, self.lineage = stage, (*enclosing, self)
        self.modules: list[nn.Module] = []
        self.weights: list[Tensor] = []
        self.resting: list[Tensor] = []
        self.hooks: list[RemovableHandle] = []

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        self.stage.enter(self)

    def come(self, arrival: Arrival) -> None:
        self._point_to(arrival())
        self.ignore()

    def leave(self) -> None:
        self._point_to(self.resting)
        for module in self.modules:
            vars(module).pop("_recordings", None)  # they would hold on to the weights
        self.hooks = [module.register_forward_pre_hook(self) for module in self.modules] if self.weights else []

    def ignore(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def _point_to(self, tensors: list[Tensor]) -> None:
        for weight, tensor in zip(self.weights, tensors, strict=True):
            weight.data = tensor

    def __reduce__(self) -> Any:
        return _no_unit, ()  # a copy of a model is not offloaded


def _no_unit() -> Callable[..., None]:
    return _nothing


def _nothing(module: nn.Module, inputs: Any) -> None:
    """What a copied hook does: it goes, so that nothing is left of it."""
    for part in module.modules():
        remove_hooks(part, "_forward_pre_hooks", lambda hook: hook is _nothing)


class Stage:
    """What is on the device: the unit that was entered last, those that enclose it, and the one that will be next.

    Attributes:
        ahead: whether the next is fetched ahead. following: which unit came after which, the last time.
    """

    def __init__(self, mover: Mover, mode: str):
        self.mover, self.mode, self.ahead = mover, mode, mode == "layers"
        self.units: list[Unit] = []
        self.present: list[Unit] = []
        self.coming: tuple[Unit, Arrival] | None = None
        self.following: dict[Unit, Unit] = {}

    def enter(self, unit: Unit) -> None:
        last = self.present[-1] if self.present else None
        for other in self.present:
            if other not in unit.lineage:
                other.leave()
        self.present = [other for other in self.present if other in unit.lineage]
        unit.come(self._arrival(unit))
        self.present.append(unit)
        if self.ahead:
            if last is not None:
                self.following[last] = unit
            following = self.following.get(unit)
            if following is not None and following not in self.present:
                with suppress(torch.OutOfMemoryError):  # then it comes when it is its turn, and this one has left
                    self.coming = following, self.mover.fetch(following.resting)

    def _arrival(self, unit: Unit) -> Arrival:
        if self.coming is not None and self.coming[0] is not unit:
            self.forget()
        (_, arrival), self.coming = self.coming or (unit, None), None
        return arrival or self.mover.fetch(unit.resting)

    def forget(self) -> None:
        """Drop what is on its way."""
        if self.coming is not None:
            self.coming[1]()
            self.coming = None

    def close(self) -> None:
        """Leave all models on the CPU, as if nothing had been."""
        self.forget()
        for unit in self.units:
            unit.resting = [self.mover.end(weight) for weight in unit.resting]
            unit._point_to(unit.resting)
            unit.ignore()
            for module in unit.modules:
                del module._unit


def offload(
    models: Iterable[nn.Module], mode: str, mover: Mover, undivided: Collection[nn.Module] = ()
) -> None:
    """Let the weights of `models` rest on the CPU until they are used.

    Blocks are what stands in a `ModuleList`. What is in none of them, or in several, is on the device all the time; so is a
    model of no modules, whose use does not show.

    Args:
        models: none of them offloaded. mode: one of `MODES`.
        mover: takes weights to the device.
        undivided: those of `models` whose blocks cannot be relied on to be called as modules.
    """
    stage = Stage(mover, mode)
    always = Unit(stage)

    def collect(module: nn.Module, unit: Unit, by_block: bool) -> None:
        if not unit.modules:
            stage.units.append(unit)
        unit.modules.append(module)
        unit.weights += [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for child in module.children():
            block = by_block and isinstance(module, nn.ModuleList)
            collect(child, Unit(stage, unit.lineage) if block else unit, by_block)

    for model in dict.fromkeys(models):
        by_block = mode == "layers" and model not in undivided
        alone = next(model.children(), None) is None
        collect(model, always if by_block or alone else Unit(stage), by_block)
    uses = Counter(id(weight) for unit in stage.units for weight in unit.weights)
    shared = {id(weight): weight for unit in stage.units for weight in unit.weights if uses[id(weight)] > 1}
    for unit in stage.units:
        unit.weights = [weight for weight in unit.weights if id(weight) not in shared]
    always.weights += shared.values()
    if not always.modules:
        stage.units.append(always)
    for unit in stage.units:
        unit.resting = [mover.rest(weight.data) for weight in unit.weights]
        for module in unit.modules:
            module._unit = unit  # type: ignore[assignment]
        if unit is not always:
            unit.leave()
    always.come(mover.fetch(always.resting))


def restore(models: Iterable[nn.Module]) -> None:
    """Undo `offload` for these models, and those that were offloaded with them: their weights are on the CPU."""
    for model in models:
        if (unit := _unit_of(model)) is not None:
            unit.stage.close()


def device_of(module: nn.Module) -> torch.device | None:
    """Where an offloaded module works; `None` if it is not offloaded."""
    unit = _unit_of(module)
    return None if unit is None else unit.stage.mover.device


def in_parts(model: nn.Module) -> bool:
    """Whether parts of a model come and go by themselves."""
    unit = _unit_of(model)
    return unit is not None and unit.stage.mode == "layers"


def let_in(module: nn.Module) -> None:
    """For code that reads a module's weights without calling it: have them on the device, if they are offloaded."""
    unit = _unit_of(module)
    if unit is not None and unit.hooks:
        unit.stage.enter(unit)


def check_stays(module: nn.Module) -> None:
    """Raise a `ValueError` if `module` is offloaded, and so must be neither moved nor changed."""
    if (unit := _unit_of(module)) is not None:
        raise ValueError(f"the {type(module).__name__} is offloaded ({unit.stage.mode!r}, to {unit.stage.mover.device}) and can "
                         "be neither moved nor changed: call offload(None) on its pipeline first")


def _unit_of(module: nn.Module) -> Unit | None:
    unit = module.__dict__.get("_unit")
    return unit if isinstance(unit, Unit) else None
