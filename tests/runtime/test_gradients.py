"""Convolutions with gradients by Winograd's way against PyTorch's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calotype import UNet2DModel
from calotype.models.layers import Conv2d
from calotype.runtime import winograd_training


def distance(found: Tensor, exact: Tensor) -> float:
    return float(((found - exact).norm() / exact.norm()).detach())


def doubled(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


@pytest.fixture
def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def convolution(drawn: torch.Generator, bias: bool = True) -> tuple[Conv2d, Tensor]:
    layer = Conv2d(64, 72, 3, padding=1, bias=bias)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=drawn)
    return layer.train(), torch.randn(5, 64, 8, 14, generator=drawn).requires_grad_()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("at_once", [1, 4 * 8 * 14 * 72 * 2, 2**21])  # samples alone, in parts, the last smaller, all at once
def test_gradients_of_convolutions(drawn: torch.Generator, layout: torch.memory_format, at_once: int):
    layer, x = convolution(drawn)
    layer.to(memory_format=layout)
    with mock.patch.object(winograd_training, "_VALUES_AT_ONCE", at_once):
        output = layer(x.to(memory_format=layout))
        assert "_Convolution" in type(output.grad_fn).__name__
        direction = torch.randn(output.shape, generator=drawn)
        found = torch.autograd.grad(output, [x, layer.weight, layer.bias], direction)
    given = doubled([x, layer.weight, layer.bias])
    exact = torch.autograd.grad(F.conv2d(*given, padding=1), given, direction.double())
    assert all(distance(own, other) < 1e-6 for own, other in zip(found, exact, strict=True))
    assert torch.equal(output, F.conv2d(x.to(memory_format=layout), layer.weight, layer.bias, padding=1))


def test_only_gradients_that_are_wanted(drawn: torch.Generator):
    layer, x = convolution(drawn, bias=False)
    layer.requires_grad_(False)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None
    layer.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None


Call = Callable[[Conv2d, Tensor], Tensor]


def other_cases() -> dict[str, Call]:
    def autocast(layer: Conv2d, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    def tangents(layer: Conv2d, x: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: layer(x), (x,), (x,))[1]

    return {
        "evaluation": lambda layer, x: layer.eval()(x), "odd sizes": lambda layer, x: layer(x[..., 1:]),
        "double precision": lambda layer, x: layer.double()(x.double()), "small pictures": lambda layer, x: layer(x[:, :, :2]),
        "one gradient for each": lambda layer, x: torch.func.vmap(lambda one: layer(one[None])[0])(x),
        "autocast": autocast, "forward mode": tangents,
    }


@pytest.mark.parametrize("name", other_cases())
def test_steps_aside(name: str, drawn: torch.Generator):
    layer, x = convolution(drawn)
    with mock.patch.object(winograd_training._Convolution, "apply", side_effect=AssertionError("was used")):
        other_cases()[name](layer, x)


def test_gradients_of_gradients(drawn: torch.Generator):
    layer, x = convolution(drawn)

    def penalty(x: Tensor, weight: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        (slope,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), weight)[0]

    x = x.detach().requires_grad_()
    found = penalty(x, layer.weight, lambda x: F.silu(layer(x)))
    plain = penalty(x, layer.weight, lambda x: F.silu(F.conv2d(x, layer.weight, layer.bias, padding=1)))
    assert distance(found, plain) < 1e-5


def test_gradients_of_a_network(drawn: torch.Generator):
    torch.manual_seed(0)
    network = UNet2DModel(sample_size=16, block_out_channels=(64, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                          up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1).train()
    network.to(memory_format=torch.channels_last)
    x, t = torch.randn(4, 3, 16, 16, generator=drawn), torch.tensor([1, 50, 400, 999])

    def gradients(network: nn.Module, x: Tensor) -> Tensor:
        network.zero_grad()
        network(x, t).sample.square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    exact, found = gradients(copy.deepcopy(network).double(), x.double()), gradients(network, x)
    assert torch.equal(found, gradients(network, x))
    with mock.patch.object(winograd_training, "convolve", return_value=None):
        plain = gradients(network, x)
    assert not torch.equal(found, plain)
    assert distance(found, plain) < 1e-5
    assert distance(found, exact) < max(3e-6, 2 * distance(plain, exact))
