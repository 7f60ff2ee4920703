"""A function's kernels on a GPU, captured once and launched together: what a `Tape` is for the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import fused
from .offload import device_of


class CudaGraph:
    """`function()`, captured: the GPU repeats its kernels without being told each.

    Raises:
        RuntimeError: something in it cannot be captured (PyTorch says what), or there is no memory for it.
    """

    def __init__(self, function: Callable[[], Tensor]):
        self.graph = torch.cuda.CUDAGraph()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            function()  # libraries choose and allocate at a first call, which must not be captured
        torch.cuda.current_stream().wait_stream(beside)
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.result = function()

    def replay(self) -> Tensor:
        """What `function()` would return now."""
        self.graph.replay()
        return self.result.clone()


def prepared(model: nn.Module, sample: Tensor) -> Tensor:
    """`sample`, laid out as convolutions on a GPU are quickest with: channels last.

    So are the model's weights from now on (the same parameters, with the same numbers in another order), and the fused
    kernels that it may use have been tried: a capture can do neither.
    """
    fused.check(sample.device, sample.dtype)
    if device_of(model) is not None:  # offloaded: its weights are copies of others, which stay as they are
        return sample
    if any(parameter.ndim == 4 and not parameter.is_contiguous(memory_format=torch.channels_last)
           for parameter in model.parameters()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return sample.contiguous(memory_format=torch.channels_last) if sample.ndim == 4 else sample
