"""Adapters added to the weights that they are for, so that they cost nothing while pictures are made.

    W' = W + Σ scale · B A

The sum is taken in float32 and rounded once to the weights' type. The weights from before are remembered, and put back as they
were, bit for bit, unless somebody has changed them since: see `merged_layer.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..runtime.offload import check_stays
from ..runtime.torch_private import raise_version
from .merged_layer import MergedLayer, Pair, Parts

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
        without: the layers that other weights were put into, until adapters are chosen again.
    """

    def __init__(self) -> None:
        self.held: dict[str, Layers] = {}
        self.active: dict[str, Mapping[str, float]] = {}
        self.enabled, self.scale, self.fused, self.changes = True, 1.0, False, 0
        self.without: frozenset[str] = frozenset()
        self._merged: dict[str, MergedLayer] = {}

    def merge(self, model: nn.Module, scale: float | None = None, chosen: bool = True) -> None:
        """Make the model's weights what they should be.

        Args:
            scale: from now on. chosen: whether somebody chose adapters, which are for layers with new weights too.
        """
        check_stays(model)
        scale = self.scale if scale is None else scale
        names = dict.fromkeys(layer for adapter in self.held.values() for layer in adapter)
        layers: dict[str, Any] = {layer: model.get_submodule(layer) for layer in {**self._merged, **names}}
        found: dict[str, MergedLayer | None] = {}
        for layer, module in layers.items():
            with _as_it_was_made(module.weight):
                before = self._merged.get(layer)
                found[layer] = None if before is None else before.found(module.weight)
        replaced = {layer for layer in self._merged if found[layer] is None}
        without = frozenset() if chosen else (self.without | replaced)
        made: dict[str, tuple[MergedLayer, Tensor] | None] = {}
        for layer, module in layers.items():
            parts = () if layer in without else self._parts(layer, scale)
            state = found[layer]
            if parts == (() if state is None else state.parts):
                continue
            with _as_it_was_made(module.weight):
                made[layer] = (state or MergedLayer(module.weight.detach().cpu())).with_parts(parts, module.weight)
        for layer in replaced | made.keys():
            if (before := self._merged.pop(layer, None)) is not None:
                before.forget()
        for layer, (state, data) in made.items():  # type: ignore[misc]
            weight = layers[layer].weight
            weight.data = data
            raise_version(weight)
            if state.parts:
                self._merged[layer] = state
                state.watch(layers[layer])
        self.scale, self.without, self.changes = scale, without, self.changes + 1

    def forget(self) -> None:
        """Let the weights stay what they are."""
        for layer in self._merged.values():
            layer.forget()
        self._merged = {}

    def _parts(self, layer: str, scale: float) -> Parts:
        return tuple((self.held[name][layer], factors[layer] * scale) for name, factors in self.active.items()
                     if self.enabled and layer in self.held[name] and factors[layer] * scale)


@contextmanager
def _as_it_was_made(weight: Tensor) -> Iterator[None]:
    """A block for computing weights: what was made in inference mode stays in it, and what was not stays out of it."""
    with torch.inference_mode(weight.is_inference()), torch.no_grad():
        yield


_gate = threading.Condition()
_users: WeakKeyDictionary[nn.Module, list[int]] = WeakKeyDictionary()  # the threads whose calls are under way


_changing = 0  # how many threads wait until they may change adapters


@contextmanager
def _while_nobody_else_generates(models: Iterable[nn.Module]) -> Iterator[None]:
    """A block that has models to itself: it waits until calls of other threads have ended, and later ones wait for it.

    Raises:
        ValueError: it would have to wait inside a call of its own thread, for which others may wait in turn.
    """
    global _changing
    thread, models = threading.get_ident(), list(models)
    with _gate:
        while any(user != thread for model in models for user in _users.get(model, ())):
            if any(thread in users for users in _users.values()):
                raise ValueError("adapters cannot be changed in a callback while another thread generates with the same model")
            _changing += 1
            try:
                _gate.wait()
            finally:
                _changing -= 1
        try:
            yield
        finally:
            _gate.notify_all()


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
    with _while_nobody_else_generates(models):
        for model in models:
            check_stays(model)
        found = [adapters_of(model) or Adapters() for model in models]
        if any(each.fused for each in found):
            raise ValueError("the adapters are fused with the weights: call unfuse_lora() first, which takes them out, or "
                             "unload_lora_weights(), which leaves them in for good")
        before = [(dict(each.held), dict(each.active), each.enabled, each.fused, each.without) for each in found]
        try:
            yield found
            for model, each in zip(models, found, strict=True):
                each.merge(model)
        except BaseException:
            for model, each, state in zip(models, found, before, strict=True):
                each.held, each.active, each.enabled, each.fused, each.without = state
                if adapters_of(model) is not None or each.changes:
                    each.merge(model, chosen=False)
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
    with _while_nobody_else_generates([model]):
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
    with _while_nobody_else_generates([model]):
        adapters = adapters_of(model)
        if adapters is not None and adapters.fused:
            adapters.merge(model)
            adapters.fused = False


def unload(model: nn.Module) -> None:
    """Forget all adapters. The weights are what they would be without them; or stay as they are, if they are fused.

    Raises:
        ValueError: the model is offloaded.
    """
    with _while_nobody_else_generates([model]):
        adapters = adapters_of(model)
        if adapters is not None and adapters.fused:
            adapters.forget()
        elif adapters is not None:
            adapters.held, adapters.active = {}, {}
            adapters.merge(model)
        vars(model).pop("_adapters_merged", None)


@contextmanager
def at_scale(models: Iterable[object], scale: float) -> Iterator[None]:
    """A block in which all adapters of `models` count `scale`.

    Blocks at one scale run side by side; one at another scale waits until they have ended, and so does whoever changes adapters.

    Raises:
        ValueError: it would wait for its own thread; or, at another scale than 1, a model is offloaded.
    """
    networks, thread = [model for model in models if isinstance(model, nn.Module)], threading.get_ident()
    with _gate:
        inside = any(thread in users for users in _users.values())
        while True:
            mine = [(model, adapters) for model in networks
                    if (adapters := adapters_of(model)) is not None and not adapters.fused]
            blocked = any(_users.get(model) and adapters.scale != scale for model, adapters in mine)
            if blocked and any(thread in _users.get(model, ()) for model, _ in mine):
                raise ValueError(f"a call at a LoRA scale of {scale} cannot be made inside one at another scale: "
                                 "use set_adapters(names, adapter_weights) before both")
            if not blocked and (inside or not _changing):
                break
            _gate.wait()
        for model, adapters in mine:
            if adapters.scale != scale:
                adapters.merge(model, scale, chosen=False)
        for model in networks:
            _users.setdefault(model, []).append(thread)
    try:
        yield
    finally:
        with _gate:
            for model in networks:
                _users[model].remove(thread)
                adapters = adapters_of(model)
                if not _users[model] and adapters is not None and adapters.scale != 1 and not adapters.fused:
                    adapters.merge(model, 1.0, chosen=False)
            _gate.notify_all()
