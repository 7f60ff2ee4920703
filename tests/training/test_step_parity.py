"""One step of a trainer is the step that one would write by hand with the oracle's model and scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

import calotype
from calotype.training.objectives import Objective
from calotype.training.task import Player, Task

from .running import trainer

pytest.importorskip("accelerate")

COMMON = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
MODELS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {**COMMON, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                    "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    "UNet2DConditionModel": {**COMMON, "in_channels": 3, "out_channels": 3, "cross_attention_dim": 16,
                             "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}}
OPTIMISED = {"learning_rate": 1e-3, "lr_scheduler": "constant", "lr_warmup_steps": 0, "max_grad_norm": 1e9, "use_ema": False,
             "gradient_accumulation_steps": 1}


class One(Task):
    """A given network; keeps what it was trained on."""

    def __init__(self, network: Any, objective: Objective):
        self.network, self.objective = network, objective
        self.players = [Player("network", network, self.loss)]
        self.data, self.groups = [], 4

    def loss(self, batch, place):
        self.noised = self.objective.noised(batch["clean"], place.generator)
        output = self.players[0].module(self.noised.sample, self.noised.timesteps, **batch["condition"]).sample
        return self.objective.loss(output, self.noised).mean(), {}


def batch_for(name: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    condition = {"encoder_hidden_states": torch.randn(4, 7, 16, generator=generator)} if "Condition" in name else {}
    return {"clean": torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1, "condition": condition}


def our_step(tmp_path, name: str, weights: Any, scheduler: Any, **settings: Any) -> tuple[One, dict[str, torch.Tensor], Any]:
    network = getattr(calotype, name)(**MODELS[name])
    network.load_state_dict(weights)
    task = One(network, Objective(scheduler, snr_gamma=settings.pop("snr_gamma", None)))
    told = trainer(tmp_path, lambda _: task, **OPTIMISED, **settings).step(0, [batch_for(name)])
    return task, {key: parameter.grad.clone() for key, parameter in network.named_parameters()}, told


@pytest.mark.parametrize(("name", "prediction", "gamma"), [
    ("UNet2DModel", "epsilon", None), ("UNet2DConditionModel", "epsilon", None), ("UNet2DConditionModel", "v_prediction", 1.0)])
def test_a_step_equals_the_oracles(tmp_path, diffusers, name, prediction, gamma):
    torch.manual_seed(0)
    theirs = getattr(diffusers, name)(**MODELS[name]).train()
    config = {"prediction_type": prediction, "beta_schedule": "scaled_linear"}
    begun = {key: value.clone() for key, value in theirs.state_dict().items()}
    task, gradients, told = our_step(tmp_path, name, begun, calotype.DDPMScheduler(**config), snr_gamma=gamma)

    reference, batch, noised = diffusers.DDPMScheduler(**config), batch_for(name), task.noised
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    shown = reference.add_noise(batch["clean"], noised.noise, noised.timesteps)
    target = noised.noise if prediction == "epsilon" else reference.get_velocity(batch["clean"], noised.noise, noised.timesteps)
    output = theirs(shown, noised.timesteps, **batch["condition"]).sample
    each = functional.mse_loss(output, target, reduction="none").mean((1, 2, 3))
    if gamma:
        kept = reference.alphas_cumprod[noised.timesteps]
        snr = kept / (1 - kept)
        assert snr.min() < gamma < snr.max()
        each = each * snr.clamp(max=gamma) / (snr + 1)
    each.mean().backward()
    optimizer.step()

    assert float(told["loss"]) == pytest.approx(each.mean().item(), rel=1e-5)
    largest = max(float(parameter.grad.abs().max()) for parameter in theirs.parameters())
    trained = dict(task.network.named_parameters())
    for key, parameter in theirs.named_parameters():
        assert (gradients[key] - parameter.grad).abs().max() <= 1e-5 * largest, key
        # The first step of Adam is the gradient's sign, so where that is lost in rounding nothing can be said.
        clear = parameter.grad.abs() > 1e-3 * largest
        torch.testing.assert_close(trained[key][clear], parameter[clear], rtol=1e-6, atol=2e-7)
    assert any(not torch.equal(trained[key], begun[key]) for key in begun)


@pytest.mark.parametrize("name", MODELS)
def test_checkpointed_gradients_are_the_same(tmp_path, name):
    torch.manual_seed(0)
    begun = getattr(calotype, name)(**MODELS[name]).state_dict()
    _, plain, _ = our_step(tmp_path / "a", name, begun, calotype.DDPMScheduler())
    task, again, _ = our_step(tmp_path / "b", name, begun, calotype.DDPMScheduler(), gradient_checkpointing=True)
    assert task.network.gradient_checkpointing
    assert all(torch.equal(plain[key], again[key]) for key in plain)


def test_a_long_gradient_is_shortened(tmp_path):
    torch.manual_seed(0)
    begun = calotype.UNet2DModel(**MODELS["UNet2DModel"]).state_dict()
    task, _, told = our_step(tmp_path, "UNet2DModel", begun, calotype.DDPMScheduler())
    short = One(calotype.UNet2DModel(**MODELS["UNet2DModel"]), task.objective)
    short.network.load_state_dict(begun)
    bound = float(told["gradient_norm"]) / 4
    again = trainer(tmp_path, lambda _: short, **{**OPTIMISED, "max_grad_norm": bound}).step(0, [batch_for("UNet2DModel")])
    assert float(again["gradient_norm"]) == pytest.approx(4 * bound)
    length = torch.cat([parameter.grad.flatten() for parameter in short.network.parameters()]).norm()
    assert float(length) == pytest.approx(bound, rel=1e-4)
