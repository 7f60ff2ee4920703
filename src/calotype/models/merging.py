"""Adapters added to the weights that they are for, so that they cost nothing while pictures are made.

    W' = W + Σ scale · B A

The sum is taken in float32 and rounded once to the weights' type. The weights from before are remembered, and put back as they
were, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..runtime.offload import check_stays


@dataclass(frozen=True)
class Pair:
    """What an adapter has for one layer: `down` [rank, in, …], `up` [out, rank, …]; their product counts `scale`."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def added(self, weight: Tensor, factor: float) -> Tensor:
        """`factor · scale · up · down`, in the shape, the type and on the device of `weight`."""
        up, down = (matrix.to(weight.device, weight.dtype).flatten(1) for matrix in (self.up, self.down))
        return torch.mm(up * (factor * self.scale), down).view_as(weight)


Layers = Mapping[str, Pair]
"""An adapter: what it has for each layer that it changes, by the layer's name."""


class Adapters:
    """The adapters of one model.

    Attributes:
        held: all of them by name. active: those in use, and how much each counts in each layer.
        enabled: whether any is in use.
        scale: how much all of them count just now.
        fused: whether what is merged stays as it is.
        changes: how often the weights were changed.
    """

    def __init__(self) -> None:
        self.held: dict[str, Layers] = {}
        self.active: dict[str, Mapping[str, float]] = {}
        self.enabled, self.scale, self.fused, self.changes = True, 1.0, False, 0
        self._originals: dict[str, Tensor] = {}

    def merge(self, model: nn.Module, scale: float | None = None) -> None:
        """Make the model's weights what they should be; `scale`: from now on."""
        check_stays(model)
        scale = self.scale if scale is None else scale
        names = dict.fromkeys(layer for adapter in self.held.values() for layer in adapter)
        weights: dict[str, nn.Parameter] = {
            layer: model.get_submodule(layer).weight for layer in {**self._originals, **names}}  # type: ignore[misc]
        originals = {layer: self._originals.get(layer, weight.detach().cpu()) for layer, weight in weights.items()}
        merged = {}
        for layer, weight in weights.items():
            with torch.inference_mode(weight.is_inference()), torch.no_grad():  # what it is made in, it stays in
                merged[layer] = self._merged(layer, originals[layer], weight, scale)
        for layer, weight in weights.items():
            weight.data = merged[layer]
            if not weight.is_inference():
                torch.autograd.graph.increment_version(weight)  # recordings and prepared layouts look at it
        self._originals = {layer: originals[layer] for layer in names}
        self.scale, self.changes = scale, self.changes + 1

    def _merged(self, layer: str, original: Tensor, weight: Tensor, scale: float) -> Tensor:
        parts = [(self.held[name][layer], factors[layer] * scale) for name, factors in self.active.items()
                 if self.enabled and layer in self.held[name] and factors[layer] * scale]
        if not parts:
            return original.to(weight.device, weight.dtype)
        total = original.to(weight.device, torch.promote_types(weight.dtype, torch.float32), copy=True)
        for pair, factor in parts:
            total += pair.added(total, factor)
        return total.to(weight.dtype)


_gate = threading.Condition()
_users: WeakKeyDictionary[nn.Module, list[int]] = WeakKeyDictionary()  # the threads whose calls are under way


def adapters_of(model: nn.Module) -> Adapters | None:
    """The adapters merged into a model, if it has any."""
    return vars(model).get("_adapters_merged")


def changes(model: nn.Module) -> int:
    """How often adapters have changed a model's weights: what was made of them before is of no use any more."""
    found = adapters_of(model)
    return 0 if found is None else found.changes


@contextmanager
def changed(models: Iterable[nn.Module]) -> Iterator[list[Adapters]]:
    """The adapters of `models`, to be changed; then their weights follow. After an error, nothing is changed.

    Raises:
        ValueError: a model is offloaded, or its adapters are fused.
    """
    models = list(models)
    with _gate:
        for model in models:
            check_stays(model)
        found = [adapters_of(model) or Adapters() for model in models]
        if any(each.fused for each in found):
            raise ValueError("the adapters are fused with the weights: call unfuse_lora() first, which takes them out, or "
                             "unload_lora_weights(), which leaves them in for good")
        before = [(dict(each.held), dict(each.active), each.enabled, each.fused) for each in found]
        try:
            yield found
            for model, each in zip(models, found, strict=True):
                each.merge(model)
        except BaseException:
            for model, each, state in zip(models, found, before, strict=True):
                each.held, each.active, each.enabled, each.fused = state
                if adapters_of(model) is not None or each.changes:
                    each.merge(model)
            raise
        for model, each in zip(models, found, strict=True):
            vars(model)["_adapters_merged"] = each
            if not each.held:
                del vars(model)["_adapters_merged"]


def fuse(model: nn.Module, scale: float = 1.0, names: Iterable[str] | None = None, check: bool = False) -> None:
    """Merge some adapters (by default the active ones), all of them `scale` times, and let that stay: see `Adapters.fused`.

    Raises:
        ValueError: they are fused already, or the model is offloaded; or `check`, and a weight would not be finite.
    """
    with _gate:
        adapters = adapters_of(model)
        if adapters is None:
            return
        if adapters.fused:
            raise ValueError("the adapters are fused already: call unfuse_lora() first")
        usual = adapters.active
        if names is not None:
            adapters.active = {name: usual.get(name) or dict.fromkeys(adapters.held[name], 1.0)
                               for name in names if name in adapters.held}
        try:
            adapters.merge(model, scale)
        finally:
            adapters.active, adapters.scale = usual, 1.0
        layers = {layer for adapter in adapters.held.values() for layer in adapter}
        weights: list[Any] = [model.get_submodule(layer).weight for layer in layers]
        if check and not all(bool(weight.isfinite().all()) for weight in weights):
            adapters.merge(model)
            raise ValueError(f"fused at {scale}, the adapters make weights of the {type(model).__name__} that are not finite")
        adapters.fused = True


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`: adapters are in use as they were."""
    with _gate:
        adapters = adapters_of(model)
        if adapters is not None and adapters.fused:
            adapters.merge(model)
            adapters.fused = False


def unload(model: nn.Module) -> None:
    """Forget all adapters. The weights are what they were before; or stay as they are, if they are fused.

    Raises:
        ValueError: the model is offloaded.
    """
    with _gate:
        adapters = adapters_of(model)
        if adapters is not None and not adapters.fused:
            adapters.held, adapters.active = {}, {}
            adapters.merge(model)
        vars(model).pop("_adapters_merged", None)


@contextmanager
def at_scale(models: Iterable[object], scale: float) -> Iterator[None]:
    """A block in which all adapters of `models` count `scale`.

    Blocks at one scale run side by side; one at another scale waits until they have ended.

    Raises:
        ValueError: it would wait for its own thread; or, at another scale than 1, a model is offloaded.
    """
    mine = [(model, adapters) for model in models if isinstance(model, nn.Module)
            if (adapters := adapters_of(model)) is not None and not adapters.fused]
    thread = threading.get_ident()
    with _gate:
        while any(_users.get(model) and adapters.scale != scale for model, adapters in mine):
            if any(thread in _users.get(model, ()) for model, _ in mine):
                raise ValueError(f"a call at a LoRA scale of {scale} cannot be made inside one at another scale: "
                                 "use set_adapters(names, adapter_weights) before both")
            _gate.wait()
        for model, adapters in mine:
            if adapters.scale != scale:
                adapters.merge(model, scale)
        for model, _ in mine:
            _users.setdefault(model, []).append(thread)
    try:
        yield
    finally:
        with _gate:
            for model, adapters in mine:
                _users[model].remove(thread)
                if not _users[model] and adapters.scale != 1 and not adapters.fused:
                    adapters.merge(model, 1.0)
            _gate.notify_all()
