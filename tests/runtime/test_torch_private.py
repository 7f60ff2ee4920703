"""A release of PyTorch that no longer has a private name: everything still works, by another way or by the plain one."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import calotype
from calotype.runtime import packed, torch_private
from calotype.training import EMAModel

SOURCE = Path(calotype.__file__).parent


def unet() -> Any:
    torch.manual_seed(0)
    return calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()


def picture(network: Any) -> Any:
    pipe = calotype.DDPMPipeline(network, calotype.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe(num_inference_steps=9, generator=torch.Generator().manual_seed(0), output_type="np").images


NAMES: dict[str, tuple[Any, str]] = {
    "hooks of all modules": (nn.modules.module, "_has_any_global_hook"),
    "dispatch modes": (torch._C, "_len_torch_dispatch_stack"),
    "function modes": (torch._C, "_len_torch_function_stack"),
    "kernels by key": (torch._C, "_dispatch_has_kernel_for_dispatch_key"),
    "keys": (torch._C, "DispatchKey"),
    "several copies": (torch, "_foreach_copy_"),
    "versions": (torch.autograd.graph, "increment_version"),
}


@pytest.mark.parametrize("name", NAMES)
def test_pictures_without_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = picture(unet())
    space, attribute = NAMES[name]
    if hasattr(space, attribute):
        if name == "keys":
            monkeypatch.setattr(torch_private.torch, "_C", _Without(torch._C, attribute))
        else:
            monkeypatch.delattr(space, attribute)
    torch_private._missing.cache_clear()
    assert abs(picture(unet()) - expected).max() < 1e-4


class _Without:
    """A module without one of its names, for those who look there through it."""

    def __init__(self, module: Any, name: str):
        self._module, self._name = module, name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._module, name)


def test_hooks_are_seen_where_their_dictionaries_have_other_names() -> None:
    layer = nn.Linear(1, 1)
    assert not any(torch_private.hooks_of(layer))
    del vars(layer)["_forward_hooks"]
    assert any(torch_private.hooks_of(layer))


def test_averages_and_gradients_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> tuple[list[torch.Tensor], torch.Tensor]:
        torch.manual_seed(0)
        layer = calotype.models.layers.Conv2d(64, 64, 3, padding=1).train()
        average = EMAModel(layer.parameters(), decay=0.5, foreach=True)
        layer(torch.ones(1, 64, 4, 4)).sum().backward()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 1
        average.step(layer.parameters())
        assert layer.weight.grad is not None
        return average.shadow_params, layer.weight.grad

    averages, gradient = trained()
    monkeypatch.delattr(torch, "_foreach_lerp_")
    monkeypatch.delattr(torch.autograd.forward_ad, "_current_level")
    other, without = trained()
    assert all(map(torch.allclose, averages, other)) and torch.allclose(gradient, without, atol=1e-3)


def test_composite_operations_by_either_way() -> None:
    class Operator:
        def decompose(self, *given: Any) -> str:
            return "decomposed"

    assert torch_private.run_composite(Operator(), None) == "decomposed"
    operator = Operator()
    operator._op_dk = lambda key, *given: key  # type: ignore[attr-defined]
    assert torch_private.run_composite(operator, "by key") == "by key"


def test_convolutions_without_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: Any) -> Any:
        raise AttributeError("no such operator")

    network, expected = unet(), picture(copy.deepcopy(unet()))
    monkeypatch.setattr(packed, "onednn_layout", missing)
    packed._works.cache_clear()
    try:
        assert abs(picture(network) - expected).max() < 1e-4
        assert packed.prepared_bytes(network) == 0
    finally:
        packed._works.cache_clear()


def test_they_stand_in_one_module() -> None:
    """Names of PyTorch and of Accelerate that begin with an underscore."""
    private = re.compile(r"torch\._(?!_version__|dynamo\.config)\w+|\bnn\.modules\.module\._\w+|forward_ad\._\w+|mkldnn\._\w+"
                         r"|\._shared_state|\._reset_state|_foreach_\w+|\._version\b|\._forward(?:_pre)?_hooks")
    found = {path.name: found for path in SOURCE.rglob("*.py")
             if path.name != "torch_private.py" and (found := private.findall(path.read_text()))}
    assert found == {}


