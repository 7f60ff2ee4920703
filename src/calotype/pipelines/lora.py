"""LoRA adapters (Hu et al. 2021) in pipelines: loaded, mixed, scaled and taken out again. See `docs/lora.md`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..models import merging
from ..models.lora import LoraState, lora_state_dict
from ..models.lora_files import WEIGHT_NAME, read_adapter, read_file, write_adapter
from ..models.merging import Adapters, adapters_of, changed
from ..words import check_choice, check_keywords, nearest, some
from .lora_sources import adapter_factors, adapter_file

Weight = float | Mapping[str, Any]
_COMPONENTS = ("unet", "text_encoder")
_OPTIONS = ("weight_name", "use_safetensors", "subfolder", "revision", "token", "cache_dir", "local_files_only", "force_download",
            "low_cpu_mem_usage")


class LoraAdapters:
    """What pipelines inherit to use adapters.

    Adapters are added to the weights when they are loaded or chosen, so that a step costs what it always costs. They belong to
    the models: pipelines that share a model share its adapters. `save_pretrained` saves the weights with what is merged.
    """

    def load_lora_weights(
        self, pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None, hotswap: bool = False, **kwargs: Any,
    ) -> None:
        """Load an adapter, and use it: it alone, until `set_adapters` says otherwise.

        Args:
            pretrained_model_name_or_path_or_dict: a file, a folder or Hub repository with `pytorch_lora_weights.safetensors`, an
                adapter of PEFT or a single `.safetensors`; or tensors by name, as such a file holds them. The names may be those
                of Diffusers (also older ones), of PEFT, or of kohya's scripts and AUTOMATIC1111's web UI.
            adapter_name: what to call it; `default_0`, `default_1`, … by default.
            hotswap: put it in the place of the adapter of that name, which counts as much as it did.
            weight_name: the file's name in the folder or repository.
            use_safetensors: `False` allows pickled files, as does naming one; PyTorch's weights-only reader reads them.
            **kwargs: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

        Raises:
            FileNotFoundError: no such file; says what there is.
            ValueError: the file is damaged, or holds what fits no layer; the name is taken; the adapters are fused; or a model is
                offloaded. Nothing is changed then.
        """
        check_keywords("load_lora_weights", kwargs, _OPTIONS)
        given = pretrained_model_name_or_path_or_dict
        if isinstance(given, Mapping):
            tensors: Mapping[str, Tensor] = given
            configs: Mapping[str, Mapping[str, Any]] = {"": given.config} if isinstance(given, LoraState) else {}
            where = "what was given"
        else:
            path = adapter_file(given, **kwargs)
            tensors, configs = read_file(path)
            where = repr(str(path))
        models = self._adaptable_models()
        adapter = read_adapter(tensors, configs, models, where)
        taken = self._adapter_names()
        if adapter_name is None:
            adapter_name = next(name for i in range(len(taken), 2 * len(taken) + 1) if (name := f"default_{i}") not in taken)
        if hotswap != (adapter_name in taken):
            raise ValueError(
                f"there is no adapter {adapter_name!r} to be replaced (there is {some(taken) or 'none'})" if hotswap
                else f"there is an adapter {adapter_name!r} already: give another adapter_name, or hotswap=True")
        with changed(models.values()) as every:
            for component, adapters in zip(models, every, strict=True):
                factors = adapters.active.get(adapter_name)
                adapters.held.pop(adapter_name, None)
                layers = adapter.get(component, {})
                if layers:
                    adapters.held[adapter_name] = layers
                if not hotswap:
                    adapters.active = {adapter_name: dict.fromkeys(layers, 1.0)} if layers else {}
                elif factors is not None:
                    adapters.active[adapter_name] = {layer: factors.get(layer, 1.0) for layer in layers}

    def unload_lora_weights(self) -> None:
        """Forget all adapters: the weights are what they were before, bit for bit; those that were fused stay as they are.

        Weights that were changed in the meantime keep the change, and those that were put in by `load_state_dict` stay.

        Raises:
            ValueError: a model is offloaded.
        """
        for model in self._adaptable_models().values():
            merging.unload(model)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: Weight | Sequence[Weight | None] | None = None
    ) -> None:
        """Use these adapters, and no others.

        Args:
            adapter_names: one or several.
            adapter_weights: how much each counts, or all of them; once by default. By component, `{"unet": 0.5, "text_encoder":
                1.0}`; and of a UNet by part, `{"unet": {"down": 0.8, "mid": 1.0, "up": {"block_1": [0.3, 0.6]}}}`, where a list
                has one number for each transformer of the block. What is not named counts once.

        Raises:
            ValueError: no such adapter, another number of weights, a part that there is not, the adapters are fused, or a model
                is offloaded. Nothing is changed then.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check_names(names)
        weights = list(adapter_weights) if isinstance(adapter_weights, Sequence) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise ValueError(f"there are {len(names)} adapters and {len(weights)} weights: give one, or one for each")
        with self._changed() as every:
            for weight in weights:
                if isinstance(weight, Mapping):
                    for component in weight:
                        check_choice("a component of adapter_weights", component, _COMPONENTS)
            for component, adapters in every.items():
                adapters.active = {
                    name: adapter_factors(weight.get(component) if isinstance(weight, Mapping) else weight, adapters.held[name])
                    for name, weight in zip(names, weights, strict=True) if name in adapters.held}

    def get_active_adapters(self) -> list[str]:
        """The adapters in use, also while they are disabled."""
        return list(dict.fromkeys(name for adapters in self._adapters().values() for name in adapters.active))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """All adapters, by component."""
        return {component: list(adapters.held) for component, adapters in self._adapters().items()}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Forget some adapters.

        Raises:
            ValueError: no such adapter, the adapters are fused, or a model is offloaded. Nothing is changed then.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check_names(names)
        with self._changed() as every:
            for adapters in every.values():
                for name in names:
                    adapters.held.pop(name, None)
                    adapters.active.pop(name, None)

    def enable_lora(self) -> None:
        """Undo `disable_lora`."""
        self._enable(True)

    def disable_lora(self) -> None:
        """Use no adapter until `enable_lora`: the weights are what they were before, bit for bit."""
        self._enable(False)

    def fuse_lora(
        self, components: Sequence[str] = _COMPONENTS, lora_scale: float = 1.0, safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Let adapters become part of the weights.

        They count as much as `set_adapters` said, times `lora_scale`, and neither that nor the `scale` of a call changes them any
        more. `unfuse_lora` takes them out again; after `unload_lora_weights` they are in the weights for good, to be saved with
        `save_pretrained`.

        Args:
            components: of which models. safe_fusing: refuse if weights would not be finite.
            adapter_names: which adapters; by default those in use.

        Raises:
            ValueError: no such component or adapter, they are fused already, weights would not be finite, or a model is
                offloaded.
        """
        self._check_names(adapter_names or ())
        models, done = self._components(components), []
        try:
            for model in models:
                merging.fuse(model, lora_scale, adapter_names, safe_fusing)
                done.append(model)
        except BaseException:
            for model in done:
                merging.unfuse(model)
            raise

    def unfuse_lora(self, components: Sequence[str] = _COMPONENTS) -> None:
        """Undo `fuse_lora`: adapters are in use as they were before."""
        for model in self._components(components):
            merging.unfuse(model)

    def set_lora_device(self, adapter_names: list[str], device: Any) -> None:
        """Nothing to do: adapters are merged into the weights, wherever those are."""

    @classmethod
    def save_lora_weights(
        cls, save_directory: str | os.PathLike[str], unet_lora_layers: Mapping[str, Tensor] | nn.Module | None = None,
        text_encoder_lora_layers: Mapping[str, Tensor] | nn.Module | None = None, is_main_process: bool = True,
        weight_name: str | None = None, save_function: Any = None, safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write an adapter as Diffusers does, so that both load it.

        Args:
            save_directory: made if need be. weight_name: by default `pytorch_lora_weights.safetensors`.
            unet_lora_layers, text_encoder_lora_layers: what `lora_state_dict` gives of each; or the model with its one adapter.
            is_main_process: where it is not, nothing is written.
            unet_lora_adapter_metadata, text_encoder_lora_adapter_metadata: what else is to be known of each, in PEFT's words
                (`lora_alpha`, …); `lora_state_dict` brings that.

        Raises:
            ValueError: there is nothing to save, or `safe_serialization` is not true, since pickles are not written.
        """
        if not safe_serialization or save_function is not None:
            raise ValueError("adapters are saved as safetensors only; leave safe_serialization and save_function as they are")
        said = {"unet": unet_lora_adapter_metadata, "text_encoder": text_encoder_lora_adapter_metadata}
        states = {component: _state(layers, said[component])
                  for component, layers in (("unet", unet_lora_layers), ("text_encoder", text_encoder_lora_layers)) if layers}
        if not states:
            raise ValueError("there is nothing to save: give unet_lora_layers or text_encoder_lora_layers")
        if is_main_process:
            write_adapter(save_directory, states, weight_name or WEIGHT_NAME)

    # -- the parts -------------------------------------------------------------------------------------------------------

    def _adaptable_models(self) -> dict[str, nn.Module]:
        found = {name: getattr(self, name, None) for name in _COMPONENTS}
        return {name: model for name, model in found.items() if isinstance(model, nn.Module)}

    def _adapters(self) -> dict[str, Adapters]:
        found = {component: adapters_of(model) for component, model in self._adaptable_models().items()}
        return {component: adapters for component, adapters in found.items() if adapters is not None}

    def _adapter_names(self) -> list[str]:
        return list(dict.fromkeys(name for adapters in self._adapters().values() for name in adapters.held))

    def _check_names(self, names: Sequence[str]) -> None:
        there = self._adapter_names()
        for name in names:
            if name not in there:
                raise ValueError(f"there is no adapter {name!r}{nearest(name, there)} (there is {some(there) or 'none'})")

    def _components(self, components: Sequence[str]) -> list[nn.Module]:
        for component in components:
            check_choice("a component", component, _COMPONENTS)
        return [model for component, model in self._adaptable_models().items() if component in components]

    def _enable(self, enabled: bool) -> None:
        with self._changed() as every:
            for adapters in every.values():
                adapters.enabled = enabled

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Adapters]]:
        """The adapters of the models that have some, to be changed."""
        models = {name: model for name, model in self._adaptable_models().items() if adapters_of(model) is not None}
        with changed(models.values()) as every:
            yield dict(zip(models, every, strict=True))


def _state(layers: Mapping[str, Tensor] | nn.Module, said: Mapping[str, Any] | None) -> LoraState:
    if isinstance(layers, nn.Module):
        layers = lora_state_dict(layers)
    own = layers.config if isinstance(layers, LoraState) else {}
    return LoraState(dict(layers), dict(own if said is None else said))
