"""Averages of parameters: the oracle's numbers, its files both ways, and what must hold whatever the numbers are."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from calotype import UNet2DModel
from calotype.training.ema import EMAModel

SETTINGS: list[dict[str, Any]] = [
    {}, {"decay": 0.5}, {"decay": 0.3, "min_decay": 0.6}, {"min_decay": 0.4, "update_after_step": 7},
    {"use_ema_warmup": True}, {"use_ema_warmup": True, "inv_gamma": 3.0, "power": 0.75, "update_after_step": 2}, {"decay": 0},
]


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2)).to(dtype)
    made[1].bias.requires_grad_(False)
    return made


def train(made: nn.Module, step: int) -> None:
    noise = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in made.parameters():  # frozen ones too: someone may set them
            parameter += torch.randn(parameter.shape, generator=noise).to(parameter.dtype)


def small(kind: Any) -> Any:
    torch.manual_seed(1)
    return kind(sample_size=8, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",), layers_per_block=1, add_attention=False)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_fifty_steps_as_the_oracle(diffusers: ModuleType, setting: dict[str, Any]) -> None:
    made = network()
    theirs = diffusers.training_utils.EMAModel(made.parameters(), **setting)
    ours = [EMAModel(made.parameters(), **setting, foreach=foreach) for foreach in (True, False)]
    for step in range(50):
        train(made, step)
        theirs.step(made.parameters())
        for averages in ours:
            averages.step(made.parameters())
            assert averages.cur_decay_value == theirs.cur_decay_value
    for place, expected in enumerate(theirs.shadow_params):
        torch.testing.assert_close(ours[0].shadow_params[place], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(ours[0].shadow_params[place], ours[1].shadow_params[place])
    assert [ours[0].get_decay(step) for step in range(-2, 60)] == [theirs.get_decay(step) for step in range(-2, 60)]
    state = theirs.state_dict()
    assert ours[0].state_dict().keys() == state.keys()
    assert all(ours[0].state_dict()[name] == state[name] for name in state if name != "shadow_params")


def test_a_frozen_parameter_is_copied() -> None:
    made = network()
    averages = EMAModel(made.parameters(), min_decay=0.9)
    for step in range(5):
        train(made, step)
        averages.step(made.parameters())
    same = [torch.equal(average, parameter) for average, parameter in zip(averages.shadow_params, made.parameters(), strict=True)]
    assert same == [not parameter.requires_grad for parameter in made.parameters()]


@pytest.mark.parametrize("foreach", [True, False])
def test_averages_of_half_precision_in_single(diffusers: ModuleType, foreach: bool) -> None:
    made = network(torch.float16)
    theirs = diffusers.training_utils.EMAModel(made.parameters(), use_ema_warmup=True)
    ours = EMAModel(made.parameters(), use_ema_warmup=True, foreach=foreach)
    assert ours.shadow_params[0].dtype == torch.float16
    for averages in (ours, theirs):
        averages.to(dtype=torch.float32)
    for step in range(9):
        train(made, step)
        ours.step(made.parameters())
        theirs.step(made.parameters())
    for average, expected in zip(ours.shadow_params, theirs.shadow_params, strict=True):
        assert average.dtype == torch.float32
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-6)
    ours.copy_to(made.parameters())
    assert torch.equal(next(made.parameters()), ours.shadow_params[0].half())


def test_the_averages_of_equal_parameters_are_those() -> None:
    made = network()
    averages = EMAModel(made.parameters(), decay=0.7)
    for _ in range(20):
        averages.step(made.parameters())
    assert all(torch.equal(a, p) for a, p in zip(averages.shadow_params, made.parameters(), strict=True))


def test_store_and_restore() -> None:
    made = network()
    averages = EMAModel(made.parameters())
    train(made, 0)
    before = [parameter.detach().clone() for parameter in made.parameters()]
    averages.store(made.parameters())
    averages.copy_to(made.parameters())
    assert torch.equal(made[0].weight, averages.shadow_params[0]) and not torch.equal(made[0].weight, before[0])
    assert made[0].weight.requires_grad
    averages.restore(made.parameters())
    assert all(torch.equal(b, p) for b, p in zip(before, made.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="nothing to restore"):
        averages.restore(made.parameters())


def test_averaged_restores_after_an_error_and_leaves_what_was_stored() -> None:
    made = network()
    averages = EMAModel(made.parameters())
    averages.store(made.parameters())
    first = made[0].weight.detach().clone()
    train(made, 0)
    before = made[0].weight.detach().clone()
    with pytest.raises(KeyError), averages.averaged(made.parameters()):
        assert torch.equal(made[0].weight, averages.shadow_params[0])
        raise KeyError("sampling failed")
    assert torch.equal(made[0].weight, before)
    averages.restore(made.parameters())
    assert torch.equal(made[0].weight, first)


def test_a_state_goes_on_where_it_was(tmp_path: Path) -> None:
    made = network()
    averages = EMAModel(made.parameters(), decay=0.8, use_ema_warmup=True)
    for step in range(6):
        train(made, step)
        averages.step(made.parameters())
    torch.save(averages.state_dict(), tmp_path / "averages.pt")
    again = EMAModel(network().parameters())
    again.load_state_dict(torch.load(tmp_path / "averages.pt", weights_only=True))
    train(made, 6)
    for one in (averages, again):
        one.step(made.parameters())
    assert again.cur_decay_value == averages.cur_decay_value and again.optimization_step == 7
    assert all(torch.equal(a, b) for a, b in zip(again.shadow_params, averages.shadow_params, strict=True))
    state = averages.state_dict()
    again.load_state_dict(state)
    assert again.shadow_params[0].data_ptr() != averages.shadow_params[0].data_ptr()


def test_what_we_save_the_oracle_loads(diffusers: ModuleType, tmp_path: Path) -> None:
    model = small(UNet2DModel)
    ours = EMAModel(model.parameters(), power=0.75, use_ema_warmup=True, model_cls=UNet2DModel, model_config=model.config)
    for step in range(3):
        train(model, step)
        ours.step(model.parameters())
    random = torch.get_rng_state()
    ours.save_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), random)
    theirs = diffusers.training_utils.EMAModel.from_pretrained(tmp_path, diffusers.UNet2DModel)
    state, expected = theirs.state_dict(), ours.state_dict()
    averages, expected_averages = state.pop("shadow_params"), expected.pop("shadow_params")
    assert state == expected
    assert all(torch.equal(a, b) for a, b in zip(averages, expected_averages, strict=True))


def test_what_the_oracle_saves_we_load(
    diffusers: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs_model = small(diffusers.UNet2DModel)
    theirs = diffusers.training_utils.EMAModel(
        theirs_model.parameters(), min_decay=0.2, update_after_step=1, model_cls=diffusers.UNet2DModel,
        model_config=theirs_model.config)
    for step in range(4):
        train(theirs_model, step)
        theirs.step(theirs_model.parameters())
    theirs.save_pretrained(tmp_path / "theirs")
    with caplog.at_level(logging.WARNING):
        ours = EMAModel.from_pretrained(tmp_path / "theirs", UNet2DModel)
    assert not caplog.records
    state, expected = ours.state_dict(), theirs.state_dict()
    averages, expected_averages = state.pop("shadow_params"), expected.pop("shadow_params")
    assert state == expected
    assert all(torch.equal(a, b) for a, b in zip(averages, expected_averages, strict=True))
    ours.save_pretrained(tmp_path / "ours")
    texts = [json.loads((tmp_path / who / "config.json").read_text()) for who in ("ours", "theirs")]
    assert texts[0] == texts[1]


def bad_calls() -> Iterator[Any]:
    def case(words: str, call: Any, error: type[Exception] = ValueError) -> Any:
        return pytest.param(call, words, error, id=words)

    yield case("parameters, and this is a Sequential", lambda made, averages: EMAModel(made), TypeError)
    yield case("parameter 0 is a str", lambda made, averages: EMAModel(["x"]), TypeError)  # type: ignore[list-item]
    yield case("decay is 2, but must be a number between 0 and 1", lambda made, averages: EMAModel([], decay=2))
    yield case("inv_gamma is 0,", lambda made, averages: EMAModel([], inv_gamma=0))
    yield case("there are 6 averages, but 2 parameters", lambda made, averages: averages.step(list(made.parameters())[:2]))
    yield case("number 0 is of shape (5, 2), and its average (5, 3)",
               lambda made, averages: averages.step([torch.zeros(5, 2), *list(made.parameters())[1:]]))
    yield case("make", lambda made, averages: averages.save_pretrained("nowhere"))
    states: dict[str, dict[str, Any]] = {
        "no argument 'dekay'; did you mean 'decay'": {"dekay": 0.9},
        "decay is '0.9', but must be a number": {"decay": "0.9"},
        "use_ema_warmup is 1, but must be True or False": {"use_ema_warmup": 1},
        "optimization_step is 1.5, but must be a whole number": {"optimization_step": 1.5},
        "update_after_step is -1": {"update_after_step": -1},
        "shadow_params must be a list of tensors": {"shadow_params": [1]},
        "there are 6 averages, but 1 shadow_params": {"shadow_params": [torch.zeros(5, 3)]},
    }
    for words, state in states.items():
        yield case(words, lambda made, averages, state=state: averages.load_state_dict({"min_decay": 0.125} | state))


@pytest.mark.parametrize(("call", "words", "error"), bad_calls())
def test_bad_calls(call: Any, words: str, error: type[Exception]) -> None:
    made = network()
    averages = EMAModel(made.parameters())
    with pytest.raises(error) as raised:
        call(made, averages)
    assert words in str(raised.value)
    assert averages.min_decay == 0 and averages.optimization_step == 0  # nothing changed


def test_sharded_parameters(tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    plain, sharded = small(UNet2DModel), small(UNet2DModel)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        early = EMAModel(sharded.parameters())
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match="parameter 0 is sharded, unlike its average"):
            early.step(sharded.parameters())
        expected = EMAModel(plain.parameters())
        options = {"model_cls": UNet2DModel, "model_config": plain.config}
        averages = [EMAModel(sharded.parameters(), foreach=foreach, **options) for foreach in (True, False)]
        for step in range(3):
            for model in (plain, sharded):
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.mul_(1 + step)
            expected.step(plain.parameters())
            for one in averages:
                one.step(sharded.parameters())
        for one in averages:
            assert all(torch.equal(a.full_tensor(), b) for a, b in zip(one.shadow_params, expected.shadow_params, strict=True))
        again = EMAModel(sharded.parameters())
        again.load_state_dict(expected.state_dict())  # whole tensors are divided
        assert type(again.shadow_params[0]) is type(averages[0].shadow_params[0])
        before = next(sharded.parameters()).full_tensor().clone()
        with again.averaged(sharded.parameters()):
            assert torch.equal(next(sharded.parameters()).full_tensor(), expected.shadow_params[0])
        assert torch.equal(next(sharded.parameters()).full_tensor(), before)
        averages[0].save_pretrained(tmp_path / "saved")
        saved = EMAModel.from_pretrained(tmp_path / "saved", UNet2DModel)
        assert all(torch.equal(a, b) for a, b in zip(saved.shadow_params, expected.shadow_params, strict=True))
    finally:
        dist.destroy_process_group()
