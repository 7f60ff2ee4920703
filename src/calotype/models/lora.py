"""Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): layers stay as they are, and a product of two thin matrices that is
added to what they give is trained in their place.

    y = W x + b + (alpha / rank) · B A x        A [rank, in], B [out, rank]

Here layers are adapted for training. For making pictures, adapters are added to the weights: see `merging.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.torch_private import remove_hooks
from ..words import listing, some

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of attention in UNets and transformers. Those of text encoders are `q_proj`, `k_proj`, `v_proj`, `out_proj`."""


@dataclass(frozen=True)
class _Adapter:
    scale: float
    dropout: float


@dataclass
class _Adaptations:
    """What `add_lora` has done to a model: the adapters' configs in PEFT's words, by name, and the parameters it has frozen."""

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)


class LoraState(dict[str, Tensor]):
    """An adapter's tensors, by PEFT's names (`….to_q.lora_A.weight`).

    Attributes:
        config: what the tensors do not say (alpha above all), in PEFT's words.
    """

    def __init__(self, tensors: dict[str, Tensor], config: dict[str, Any]):
        super().__init__(tensors)
        self.config = config


def add_lora(
    model: nn.Module, *, rank: int = 4, alpha: float | None = None, targets: Sequence[str] | str = TARGETS, dropout: float = 0.0,
    name: str = "default", generator: torch.Generator | None = None,
) -> list[nn.Parameter]:
    """Let linear layers and convolutions of a model be adapted, and nothing else of it be trained.

    The model gives what it gave: A is drawn as `nn.Linear` draws its weights, and B is zero. Adapters with other names add up.
    They are in float32, also where the model is in half precision. Adapted layers run by the plain path.

    Args:
        model: any module.
        rank: of the product, from 1 on.
        alpha: the product counts `alpha / rank`; `rank` by default, so once.
        targets: the layers' names, or the last parts of them (`"to_q"`, `"attn2.to_k"`); or one regular expression that
            matches a whole name, as PEFT's `target_modules`.
        dropout: of what enters A, 0 to 1.
        name: the adapter's.
        generator: draws A, on the CPU.

    Returns:
        The parameters to be trained: A and B, layer by layer.

    Raises:
        ValueError: no layer has such a name (says what names there are), a layer cannot be adapted, or there is an adapter of
            that name.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank is {rank!r}, but must be a whole number from 1 on")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}, but must be at least 0 and below 1")
    if not name or "." in name:
        raise ValueError(f"name is {name!r}, but must be a word without dots")
    done: _Adaptations = vars(model).get("_lora") or _Adaptations()
    if name in done.configs:
        raise ValueError(f"there is an adapter {name!r} already (there are {listing(done.configs)}): give another name")
    chosen = _chosen(model, targets)
    frozen = [key for key, parameter in model.named_parameters() if parameter.requires_grad and not _is_lora(key)]
    adapter = _Adapter((rank if alpha is None else alpha) / rank, dropout)
    trained = [parameter for layer in chosen.values() for parameter in _adapt(layer, rank, adapter, name, generator)]
    for key in frozen:
        model.get_parameter(key).requires_grad_(False)
    done.configs[name] = {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank if alpha is None else alpha, "lora_dropout": dropout, "bias": "none",
        "target_modules": targets if isinstance(targets, str) else list(targets), "rank_pattern": {}, "alpha_pattern": {},
        "use_rslora": False, "use_dora": False, "task_type": None,
    }
    done.frozen += frozen
    vars(model)["_lora"] = done
    return trained


def lora_parameters(model: nn.Module, name: str | None = None) -> list[nn.Parameter]:
    """The parameters of all adapters, or of one."""
    return [parameter for key, parameter in model.named_parameters()
            if _is_lora(key) and (name is None or f".{name}." in key.partition(".lora_")[2])]


def lora_state_dict(model: nn.Module, name: str = "default") -> LoraState:
    """An adapter's tensors and config, as `save_lora_weights` of a pipeline and `write_peft` take them.

    Raises:
        ValueError: there is no such adapter; says which there are.
    """
    done = adaptations(model)
    if name not in done:
        raise ValueError(f"there is no adapter {name!r} (there is {listing(done) or 'none'})")
    tensors = {}
    layers: Any = model.named_modules()
    for key, layer in layers:
        if name in vars(layer).get("_adapters", ()):
            tensors[f"{key}.lora_A.weight"] = layer.lora_A[name].weight.detach()
            tensors[f"{key}.lora_B.weight"] = layer.lora_B[name].weight.detach()
    return LoraState(tensors, dict(done[name]))


def remove_lora(model: nn.Module) -> None:
    """Make the model what it was before `add_lora`: its weights, and which of them are trained."""
    for layer in list(model.modules()):
        if vars(layer).pop("_adapters", None):
            del layer.lora_A, layer.lora_B
            remove_hooks(layer, "_forward_hooks", lambda hook: hook is _add)
    done: _Adaptations = vars(model).pop("_lora", None) or _Adaptations()
    for key in done.frozen:
        model.get_parameter(key).requires_grad_(True)


def adaptations(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The configs of a model's adapters under training, by name; empty where there are none."""
    done = vars(model).get("_lora")
    return done.configs if isinstance(done, _Adaptations) else {}


def adaptable(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The layers of a model that adapters may be for, by name."""
    for key, layer in model.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and not _is_lora(f"{key}."):
            yield key, layer


def _is_lora(key: str) -> bool:
    return ".lora_A." in f".{key}" or ".lora_B." in f".{key}"


def _chosen(model: nn.Module, targets: Sequence[str] | str) -> dict[str, nn.Linear | nn.Conv2d]:
    layers = dict(adaptable(model))
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise ValueError(f"targets is {targets!r}, no regular expression ({error}); for names, give a list") from None
        chosen = {key: layer for key, layer in layers.items() if pattern.fullmatch(key)}
    else:
        chosen = {key: layer for key, layer in layers.items() if any(f".{key}".endswith(f".{target}") for target in targets)}
    if not chosen:
        last = sorted({re.sub(r".*\.(?=\D)", "", key) for key in layers})
        raise ValueError(f"no linear layer or convolution of {type(model).__name__} is called {targets!r}; "
                         f"their names end in {some(last, 40) or 'nothing: there are none'}")
    if grouped := [key for key, layer in chosen.items() if isinstance(layer, nn.Conv2d) and layer.groups != 1]:
        raise ValueError(f"convolutions in groups cannot be adapted, and these are: {some(grouped)}")
    return chosen


def _adapt(
    layer: Any, rank: int, adapter: _Adapter, name: str, generator: torch.Generator | None
) -> list[nn.Parameter]:
    made: Any = {"bias": False, "device": "meta"}
    if isinstance(layer, nn.Conv2d):
        how: Any = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        down: nn.Linear | nn.Conv2d = nn.Conv2d(layer.in_channels, rank, **how, **made)
        up: nn.Linear | nn.Conv2d = nn.Conv2d(rank, layer.out_channels, 1, **made)
    else:
        down, up = nn.Linear(layer.in_features, rank, **made), nn.Linear(rank, layer.out_features, **made)
    first = torch.empty(down.weight.shape)
    nn.init.kaiming_uniform_(first, a=5**0.5, generator=generator)
    device, dtype = layer.weight.device, torch.promote_types(layer.weight.dtype, torch.float32)
    down.weight = nn.Parameter(first.to(device, dtype))
    up.weight = nn.Parameter(torch.zeros(up.weight.shape, device=device, dtype=dtype))
    if "_adapters" not in vars(layer):
        layer.lora_A, layer.lora_B = nn.ModuleDict(), nn.ModuleDict()
        vars(layer)["_adapters"] = {}
        layer.register_forward_hook(_add)  # every fast path steps aside where somebody hooks in: see `runtime.structure`
    layer.lora_A[name], layer.lora_B[name] = down, up
    vars(layer)["_adapters"][name] = adapter
    return [down.weight, up.weight]


def _add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """As a forward hook of an adapted layer: what it gives, and what its adapters add."""
    for name, adapter in layer._adapters.items():
        x = F.dropout(inputs[0], adapter.dropout, layer.training)
        x = x if torch.is_autocast_enabled(x.device.type) else x.to(layer.lora_A[name].weight.dtype)
        output = output + (adapter.scale * layer.lora_B[name](layer.lora_A[name](x))).to(output.dtype)
    return output
