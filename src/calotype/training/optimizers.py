"""Optimisers by name."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..words import check_choice

NAMES = ("adamw", "adam", "sgd", "adafactor", "adamw8bit")


def make_optimizer(
    name: str, parameters: Iterable[torch.Tensor] | Iterable[dict[str, Any]], learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 1e-2, epsilon: float = 1e-8,
) -> Optimizer:
    """An optimiser for parameters or groups of them (`parameter_groups`).

    Args:
        name: one of these, in capitals or not:
            "adamw": Adam with decoupled weight decay (Loshchilov and Hutter 2019), fused where PyTorch has that for the
            parameters' device, the CPU included;
            "adam": Adam (Kingma and Ba 2015), where weight decay is part of the gradient; fused likewise;
            "sgd": gradient descent, the first of `betas` its momentum, weight decay part of the gradient; fused likewise;
            "adafactor": little memory (Shazeer and Stern 2018); takes no `betas` and no `epsilon`;
            "adamw8bit": AdamW whose state takes a quarter of the memory; needs the package bitsandbytes.
        parameters: tensors, or dictionaries with `params` and what is to differ for them.
        learning_rate: not negative.
        betas: the decay of the mean of gradients and of the mean of their squares, each in [0, 1).
        weight_decay: not negative.
        epsilon: not negative.

    Raises:
        ImportError: a package is missing; names it.
        ValueError: there is no such optimiser, no parameter to optimise, or a number is out of its range.
    """
    check_choice("the optimizer", name := name.lower(), NAMES)
    groups = _groups(parameters)
    common: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if name == "adafactor":
        return torch.optim.Adafactor(groups, **common)
    if name == "adamw8bit":
        return _bitsandbytes().optim.AdamW8bit(groups, **common, betas=betas, eps=epsilon)
    sharded = any(hasattr(parameter, "to_local") for group in groups for parameter in group["params"])
    common["fused"] = (_have_fused_kernels(groups) and not (name == "sgd" and sharded)) or None  # DTensor has no fused SGD
    if name == "sgd":
        return torch.optim.SGD(groups, **common, momentum=betas[0])
    return (torch.optim.AdamW if name == "adamw" else torch.optim.Adam)(groups, **common, betas=betas, eps=epsilon)


def check_optimizer(name: str) -> None:
    """Raise what `make_optimizer` would of a name alone: there is none of it, or a package is missing."""
    check_choice("the optimizer", name.lower(), NAMES)
    if name.lower() == "adamw8bit":
        _bitsandbytes()


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters of `module` in groups for an optimiser, so that biases and the scales of norms do not decay.

    Those are the parameters of fewer than two dimensions.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [{"params": [parameter for parameter in trainable if parameter.ndim >= 2], "weight_decay": weight_decay},
              {"params": [parameter for parameter in trainable if parameter.ndim < 2], "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _groups(parameters: Iterable[Any]) -> list[dict[str, Any]]:
    listed = list(parameters)
    groups = listed if listed and isinstance(listed[0], dict) else [{"params": listed}]
    groups = [{**group, "params": [group["params"]] if isinstance(group["params"], torch.Tensor) else list(group["params"])}
              for group in groups]
    if not any(group["params"] for group in groups):
        raise ValueError("there are no parameters to optimise")
    return groups


def _have_fused_kernels(groups: list[dict[str, Any]]) -> bool:
    """Whether one kernel can do a whole step: on the CPU it is four to seven times as fast as PyTorch's default.

    PyTorch itself asks only in the first step, when it is too late to choose.
    """
    return all(parameter.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
               and parameter.device.type in ("cpu", "cuda", "mps", "xpu") for group in groups for parameter in group["params"])


def _bitsandbytes() -> Any:
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ImportError(f"the optimizer 'adamw8bit' needs a package: pip install bitsandbytes ({error})") from None
