"""Networks among processes: copies that agree on gradients (DDP), or weights divided among them (FSDP, `fully_shard`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

_TAKEN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def check_processes(accelerator: Accelerator, shard: bool) -> None:
    """Raise what can be said of the processes before there is work for them.

    Raises:
        ValueError: Accelerate was configured to divide weights by means of its own; or there is nobody to divide them among.
    """
    import torch.distributed as dist

    if accelerator.distributed_type not in _TAKEN:
        raise ValueError(f"Accelerate is configured for {accelerator.distributed_type.value}; configure it for plain processes "
                         "(multi-GPU), and say `shard` to divide weights among them")
    if shard and not dist.is_initialized():
        raise ValueError("shard divides weights among processes, and there is one; start several with "
                         "`torchrun --nproc-per-node N -m calotype train …`")


def wrapped(accelerator: Accelerator, network: nn.Module, shard: bool) -> nn.Module:
    """The network as the loss calls it, in however many processes.

    Raises:
        ValueError: as `check_processes` does.
    """
    check_processes(accelerator, shard)
    if shard:
        return _sharded(accelerator, network)
    if accelerator.num_processes == 1:
        return network  # mixed precision is the trainer's affair, so there is nothing to wrap
    return accelerator.prepare_model(network)


def _sharded(accelerator: Accelerator, network: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # One group for the whole network: layers read each other's weights before they are called (all time projections are one
    # product), so a group a block would find some of them divided. What training keeps, optimiser and averages, is divided.
    module = Sharded(network)
    fully_shard(module, mesh=mesh)
    return module


class Sharded(nn.Module):
    """What gathers a network's weights when it is called, so that the network itself stays of its own class."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *given: Any, **named: Any) -> Any:
        """The network's output."""
        return self.network(*given, **named)


def unsynchronised(accelerator: Accelerator, module: nn.Module) -> AbstractContextManager[Any]:
    """A context in which gradients are accumulated by each process alone."""
    if hasattr(module, "set_requires_gradient_sync"):
        return _unsynchronised_shards(module)
    return accelerator.no_sync(module)


@contextmanager
def _unsynchronised_shards(module: Any) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def free_gathered(module: Any) -> None:
    """Forget weights that were gathered for a call that no gradient came back to."""
    if hasattr(module, "reshard"):
        module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be divided among processes; every process must ask."""
    return getattr(tensor, "full_tensor", lambda: tensor)().detach()


@contextmanager
def for_inference(networks: Sequence[nn.Module], replaced: Sequence[AbstractContextManager[Any]]) -> Iterator[None]:
    """A context in which networks evaluate, with whole weights, which `replaced` may have replaced by averages."""
    modes = [network.training for network in networks]
    try:
        with ExitStack() as stack:
            for one in replaced:
                stack.enter_context(one)
            for network in networks:
                network.eval()
                stack.enter_context(_gathered(network))
            yield
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)


@contextmanager
def _gathered(network: nn.Module) -> Iterator[None]:
    """Whole weights in place of divided ones: for `state_dict` too, before which FSDP divides what it has gathered itself."""
    divided = [(module, name, parameter) for module in network.modules() for name, parameter in module._parameters.items()
               if hasattr(parameter, "full_tensor")]
    for module, name, parameter in divided:
        module._parameters[name] = nn.Parameter(whole(parameter), requires_grad=False)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for module, name, parameter in divided:
            module._parameters[name] = parameter
