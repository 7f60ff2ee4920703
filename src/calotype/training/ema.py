"""The exponential moving average of a model's parameters: smoother than the last step, and what is sampled from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ..runtime.torch_private import lerp_each
from ..words import check_keywords

_Self = TypeVar("_Self", bound="EMAModel")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_SHARE = "a number between 0 and 1", lambda value: _is_number(value) and 0 <= value <= 1
_COUNT = "a whole number that is not negative", _is_count


class EMAModel:
    """Averages of parameters, with the interface, numbers and files of Diffusers' class of this name.

    After step t of the optimiser each average s moves towards its parameter p: `s = d s + (1 - d) p`, d = `get_decay(t)`.
    Parameters that need no gradient are copied. Averages stay where they are made: of parameters on an accelerator they can
    be moved to the CPU (`to`), of sharded ones (FSDP2) each process averages its own shards. Averages in half precision
    hardly move at a decay near 1, since the steps are smaller than their spacing: `to(dtype=torch.float32)`.

    Args:
        parameters: of the model, `model.parameters()`; copied.
        decay: the greatest weight that what was has in a step, in [0, 1].
        min_decay: the least weight once averaging has begun, in [0, 1].
        update_after_step: until this step averages are copies.
        use_ema_warmup: let the decay grow as `1 - (1 + t / inv_gamma) ** -power`; else as `(1 + t) / (10 + t)`. Models
            trained for a million steps and more suit `power=2/3` (0.999 at 31,600 steps), others 3/4 (at 10,000).
        inv_gamma: as above, greater than 0.
        power: as above.
        foreach: all parameters in one multi-tensor operation (the same numbers, up to three times as fast), not one by one.
        model_cls: what `save_pretrained` makes a model with.
        model_config: the config of that model.

    Raises:
        TypeError: `parameters` is a module, or holds what is no tensor.
        ValueError: an option is out of its range.
    """

    _options: ClassVar[dict[str, tuple[str, Callable[[Any], bool]]]] = {
        "decay": _SHARE, "min_decay": _SHARE, "optimization_step": _COUNT, "update_after_step": _COUNT,
        "use_ema_warmup": ("True or False", lambda value: isinstance(value, bool)),
        "inv_gamma": ("a number greater than 0", lambda value: _is_number(value) and value > 0),
        "power": ("a number", _is_number),
    }
    """What `state_dict` and a config file hold beside the averages: what each must be, in words and as a test."""

    def __init__(
        self, parameters: Iterable[Tensor], decay: float = 0.9999, min_decay: float = 0.0, update_after_step: int = 0,
        use_ema_warmup: bool = False, inv_gamma: float = 1.0, power: float = 2 / 3, foreach: bool = True,
        model_cls: Any = None, model_config: Mapping[str, Any] | None = None,
    ) -> None:
        EMAModel._check({"decay": decay, "min_decay": min_decay, "update_after_step": update_after_step,
                         "use_ema_warmup": use_ema_warmup, "inv_gamma": inv_gamma, "power": power})
        self.decay, self.min_decay, self.update_after_step = decay, min_decay, update_after_step
        self.use_ema_warmup, self.inv_gamma, self.power = use_ema_warmup, inv_gamma, power
        self.foreach, self.model_cls, self.model_config = foreach, model_cls, model_config
        self.optimization_step = 0
        self.cur_decay_value: float | None = None
        self.shadow_params: list[Tensor] = [parameter.detach().clone() for parameter in _listed(parameters)]
        self.temp_stored_params: list[Tensor] | None = None

    # -- averaging --------------------------------------------------------------------------------------------------

    def get_decay(self, optimization_step: int) -> float:
        """The weight of what was in this step, counted from 1; in the first it is 0."""
        t = optimization_step - self.update_after_step - 1
        if t <= 0:
            return 0.0
        growing = 1 - (1 + t / self.inv_gamma) ** -self.power if self.use_ema_warmup else (1 + t) / (10 + t)
        return max(min(growing, self.decay), self.min_decay)

    @torch.no_grad()
    def step(self, parameters: Iterable[Tensor]) -> None:
        """Average what the optimiser has just made of the parameters.

        Raises:
            ValueError: they are not those that the averages are of; `optimization_step` then stays what it was.
        """
        pairs = self._pairs(parameters)
        decay = self.get_decay(self.optimization_step + 1)
        moved: list[tuple[Tensor, Tensor]] = []
        for average, parameter in pairs:
            if not parameter.requires_grad:
                _local(average).copy_(_local(parameter))
            elif self.foreach and average.device == parameter.device and average.dtype == parameter.dtype:
                moved.append((_local(average), _local(parameter)))
            else:  # one at a time, so that there is never a second copy of them all
                _local(average).lerp_(_local(parameter).to(average.device, average.dtype), 1 - decay)
        if moved:
            averages, current = zip(*moved, strict=True)
            lerp_each(averages, current, 1 - decay)
        self.optimization_step += 1
        self.cur_decay_value = decay

    # -- using the averages -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        """Put the averages into `parameters`, in the place and type that these have."""
        for average, parameter in self._pairs(parameters):
            _local(parameter).copy_(_local(average))

    @torch.no_grad()
    def store(self, parameters: Iterable[Tensor]) -> None:
        """Keep a copy of `parameters` on the CPU, for `restore`."""
        self.temp_stored_params = [_local(parameter).to("cpu", copy=True) for _, parameter in self._pairs(parameters)]

    @torch.no_grad()
    def restore(self, parameters: Iterable[Tensor]) -> None:
        """Put back what `store` kept, once.

        Raises:
            RuntimeError: nothing is stored.
        """
        if self.temp_stored_params is None:
            raise RuntimeError("there is nothing to restore: `store` was not called, or `restore` was called already")
        for (_, parameter), stored in zip(self._pairs(parameters), self.temp_stored_params, strict=True):
            _local(parameter).copy_(stored)
        self.temp_stored_params = None

    @contextmanager
    def averaged(self, parameters: Iterable[Tensor]) -> Iterator[None]:
        """Within the block `parameters` are the averages, and afterwards what they were; after an error too."""
        listed, stored = _listed(parameters), self.temp_stored_params
        self.store(listed)
        try:
            self.copy_to(listed)
            yield
        finally:
            self.restore(listed)
            self.temp_stored_params = stored

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> None:
        """Move the averages; those in floating point also to another type."""
        self.shadow_params = [
            average.to(device, dtype if average.is_floating_point() else None, non_blocking=non_blocking)
            for average in self.shadow_params]

    def pin_memory(self) -> None:
        """Put the averages, which must be on the CPU, into page-locked memory: to and from an accelerator is faster."""
        self.shadow_params = [average.pin_memory() for average in self.shadow_params]

    # -- loading and saving -----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The options, how many steps were averaged, and the averages themselves (not copies) as `shadow_params`."""
        return {**{name: getattr(self, name) for name in self._options}, "shadow_params": self.shadow_params}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. What it does not hold stays; averages keep their place here and their type there.

        Raises:
            ValueError: an entry is unknown, of a wrong type or out of its range, or averages are too many, too few or of
                another shape; nothing is changed then.
        """
        given = dict(state_dict)
        averages = given.pop("shadow_params", None)
        self._check(given)
        if averages is not None:
            if not isinstance(averages, (list, tuple)) or not all(isinstance(average, Tensor) for average in averages):
                raise ValueError("shadow_params must be a list of tensors")
            pairs = _matched(self.shadow_params, averages, "shadow_params")
            self.shadow_params = [_placed_like(loaded, own) for own, loaded in pairs]
        for name, value in given.items():
            setattr(self, name, value)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write the folder of a model whose weights are the averages, with the options of the average in its config file.

        With sharded parameters every process must call this; the first one writes.

        Raises:
            ValueError: `model_cls` or `model_config` was not given.
        """
        if self.model_cls is None or self.model_config is None:
            raise ValueError("save_pretrained makes a model: give EMAModel(…, model_cls=type(model), model_config=model.config)")
        sharded = any(_is_sharded(average) for average in self.shadow_params)
        whole = [average.full_tensor() if _is_sharded(average) else average  # type: ignore[attr-defined]
                 for average in self.shadow_params]
        if sharded and torch.distributed.get_rank() != 0:
            return
        with torch.random.fork_rng(devices=[]):  # the model is filled at random first; the run's numbers stay as they are
            model = self.model_cls.from_config(self.model_config)
        model.register_to_config(**{name: getattr(self, name) for name in self._options})
        with torch.no_grad():
            for average, parameter in _matched(whole, [*model.parameters()], "parameters of model_cls"):
                parameter.copy_(average)
        model.save_pretrained(path)

    @classmethod
    def from_pretrained(cls: type[_Self], path: str | os.PathLike[str], model_cls: Any, foreach: bool = True) -> _Self:
        """Read what `save_pretrained` wrote.

        Args:
            path: the folder (or what else `model_cls.from_pretrained` takes).
            model_cls: the class of the model.
            foreach: as for `EMAModel`.
        """
        config = model_cls.load_config(path)
        model = model_cls.from_pretrained(path)
        averages = cls(model.parameters(), model_cls=model_cls, model_config=model.config, foreach=foreach)
        averages.load_state_dict({name: config[name] for name in cls._options if name in config})
        return averages

    # -- checks -----------------------------------------------------------------------------------------------------

    @classmethod
    def _check(cls, options: Mapping[str, Any]) -> None:
        try:
            check_keywords("the state of an average", options, cls._options)
        except TypeError as error:
            raise ValueError(str(error)) from None
        for name, value in options.items():
            words, is_right = cls._options[name]
            if not is_right(value):
                raise ValueError(f"{name} is {value!r}, but must be {words}")

    def _pairs(self, parameters: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
        pairs = _matched(self.shadow_params, _listed(parameters), "parameters")
        for place, (average, parameter) in enumerate(pairs):
            if _is_sharded(average) != _is_sharded(parameter):
                raise ValueError(f"parameter {place} is {'' if _is_sharded(parameter) else 'not '}sharded, unlike its average: "
                                 "make the EMAModel after the model is sharded, and with its parameters")
        return pairs


def _listed(parameters: Iterable[Tensor]) -> list[Tensor]:
    if isinstance(parameters, torch.nn.Module):
        raise TypeError(f"averages are of parameters, and this is a {type(parameters).__name__}: give model.parameters()")
    listed = list(parameters)
    for place, parameter in enumerate(listed):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameter {place} is a {type(parameter).__name__}, and must be a tensor")
    return listed


def _matched(averages: Sequence[Tensor], given: Sequence[Tensor], what: str) -> list[tuple[Tensor, Tensor]]:
    if len(averages) != len(given):
        raise ValueError(f"there are {len(averages)} averages, but {len(given)} {what}")
    for place, (average, other) in enumerate(zip(averages, given, strict=True)):
        if average.shape != other.shape:
            raise ValueError(f"{what}: number {place} is of shape {tuple(other.shape)}, and its average {tuple(average.shape)}")
    return list(zip(averages, given, strict=True))


def _is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, told without importing all that belongs to those."""
    return hasattr(tensor, "to_local")


def _local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that may be sharded (a DTensor); without gradients it is the same memory."""
    return tensor.to_local() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def _placed_like(loaded: Tensor, own: Tensor) -> Tensor:
    """A copy of a loaded average where this process has its own: on that device, sharded in that way."""
    if _is_sharded(own) and not _is_sharded(loaded):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(loaded.detach().to(own.device), own.device_mesh, own.placements)  # type: ignore[attr-defined]
    return loaded.detach().to(own.device, copy=True)
