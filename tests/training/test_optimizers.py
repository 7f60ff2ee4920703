"""Optimisers by name: those of PyTorch, whose fused kernels give the same numbers."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from calotype.training.optimizers import NAMES, make_optimizer, parameter_groups


def train(make: Any, device: str = "cpu", steps: int = 12) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(32, 2)).to(device)
    optimizer = make(list(model.parameters()))
    for _ in range(steps):
        model(torch.randn(4, 3, 4, 4).to(device)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize(("name", "plain"), [
    ("adamw", lambda p: torch.optim.AdamW(p, 0.01, (0.8, 0.95), 1e-6, 0.1, fused=False, foreach=False)),
    ("adam", lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.95), 1e-6, 0.1, fused=False, foreach=False)),
    ("sgd", lambda p: torch.optim.SGD(p, 0.01, 0.8, weight_decay=0.1, fused=False, foreach=False)),
    ("adafactor", lambda p: torch.optim.Adafactor(p, 0.01, weight_decay=0.1, foreach=False)),
])
def test_the_numbers_are_those_of_the_plain_optimiser(name: str, plain: Any) -> None:
    found = train(lambda p: make_optimizer(name, p, 0.01, (0.8, 0.95), 0.1, 1e-6))
    for parameter, expected in zip(found, train(plain), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6)


def test_the_defaults_are_those_of_diffusers_scripts() -> None:
    optimizer = make_optimizer("adamw", [torch.nn.Parameter(torch.zeros(1))], 1e-4)
    assert isinstance(optimizer, torch.optim.AdamW)
    expected = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.01, "eps": 1e-8, "fused": True}
    assert {name: optimizer.defaults[name] for name in expected} == expected


def test_where_there_is_no_fused_kernel_the_plain_one_works() -> None:
    whole = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = make_optimizer("adamw", [whole], 0.5, weight_decay=0)
    assert not optimizer.defaults["fused"]
    whole.grad = torch.ones_like(whole)
    optimizer.step()
    torch.testing.assert_close(whole.detach().real, torch.full((2,), -0.5))


def test_groups_keep_what_is_theirs() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 4))
    model[2].requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert [len(group["params"]) for group in groups] == [1, 3]
    optimizer = make_optimizer("adamw", groups, 1e-3, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    before = model[1].weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    weight = model[0].weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), weight * (1 - 1e-3 * 0.1))
    assert torch.equal(model[1].weight, before)
    assert len(parameter_groups(nn.LayerNorm(3), 0.1)) == 1


def test_eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    parameter = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        make_optimizer("adamw8bit", [parameter], 1e-4)
    package = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=torch.optim.AdamW))
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)  # type: ignore[arg-type]
    optimizer = make_optimizer("adamw8bit", [parameter], 1e-4, weight_decay=0.2)
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["weight_decay"] == 0.2


@pytest.mark.parametrize(("name", "options", "words"), [
    ("AdamWW", {}, "did you mean 'adamw'"),
    ("lion", {}, "but must be 'adamw'"),
    ("adamw", {"learning_rate": -1.0}, "learning rate"),
    ("adam", {"betas": (0.9, 1.5)}, "beta"),
])
def test_bad_calls(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as raised:
        make_optimizer(name, **{"parameters": [torch.nn.Parameter(torch.zeros(1))], "learning_rate": 0.1} | options)
    assert words in str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_optimise(name: str) -> None:
    for nothing in (iter(()), [{"params": []}]):
        with pytest.raises(ValueError, match="no parameters to optimise"):
            make_optimizer(name, nothing, 0.1)


def test_a_name_in_capitals_and_groups_of_generators() -> None:
    made = nn.Linear(2, 2)
    groups = [{"params": (p for p in [made.weight]), "lr": 0.5}, {"params": made.bias}]
    optimizer = make_optimizer("AdamW", groups, 0.1)
    found = [(group["lr"], len(group["params"]), group["fused"]) for group in optimizer.param_groups]
    assert found == [(0.5, 1, True), (0.1, 1, True)]
