"""When layers in training may use functions that know their own gradients (`winograd_training`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .torch_private import transformed_or_traced


def trains_plainly(layer: nn.Module, x: Tensor) -> bool:
    """Whether `layer` is called in training, on the CPU in float32, for gradients of the common kind.

    In evaluation mode, in half precision, under autocast, compilers, tracers, `torch.func`, forward-mode differentiation or with
    parameters that are more than tensors (shards, say), PyTorch's own functions do it.
    """
    return (
        layer.training and torch.is_grad_enabled() and type(x) is Tensor and x.device.type == "cpu" and x.dtype is torch.float32
        and all(type(weight) in (Tensor, nn.Parameter) and weight.dtype is torch.float32 and weight.device.type == "cpu"
                for weight in layer._parameters.values() if weight is not None)
        and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling() and not transformed_or_traced()
    )
