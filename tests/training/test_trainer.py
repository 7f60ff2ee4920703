"""Runs: that they learn, stop where numbers do, and what they leave behind."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from calotype.training import progress
from calotype.training.estimate import estimate
from calotype.training.task import Player, Task

from .running import Denoising, Rivals, SameNoise, left, smooth_pictures, trainer

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# -- what a step is --------------------------------------------------------------------------------------------------


def test_it_learns(tmp_path):
    learned = trainer(tmp_path, max_train_steps=60, learning_rate=1e-2, lr_scheduler="linear", train_batch_size=8, use_ema=False,
                      optimizer="adam", gradient_accumulation_steps=1, checkpointing_steps=60, adam_weight_decay=0).run()
    losses = list(learned.losses.values())
    assert sum(losses[-10:]) < sum(losses[:3]) / 3 * 10 / 3


def test_accumulated_batches_are_one(tmp_path):
    common = {"max_train_steps": 3, "use_ema": False, "optimizer": "sgd", "learning_rate": 0.1, "lr_scheduler": "constant",
              "lr_warmup_steps": 0}
    trainer(tmp_path / "apart", SameNoise, **common, train_batch_size=4, gradient_accumulation_steps=2).run()
    trainer(tmp_path / "as one", SameNoise, **common, train_batch_size=8, gradient_accumulation_steps=1).run()
    apart, one = (load_file(tmp_path / name / "diffusion_pytorch_model.safetensors") for name in ("apart", "as one"))
    assert max((apart[name] - one[name]).abs().max() for name in one) < 1e-6
    trainer(tmp_path / "other", SameNoise, **common, train_batch_size=4, gradient_accumulation_steps=1).run()
    other = load_file(tmp_path / "other" / "diffusion_pytorch_model.safetensors")
    assert max((other[name] - one[name]).abs().max() for name in one) > 1e-3


def test_half_precision_leaves_weights_as_they_are(tmp_path):
    seen = []

    class Watching(Denoising):
        def loss(self, batch, place):
            linear = self.unet.time_embedding.linear_1
            handle = linear.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
            loss = super().loss(batch, place)
            handle.remove()
            return loss

    trainer(tmp_path, Watching, max_train_steps=2, mixed_precision="bf16").run()
    assert set(seen) == {torch.bfloat16}
    for file in tmp_path.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}
    seen.clear()
    trainer(tmp_path / "full", Watching, max_train_steps=1).run()  # in the same process
    assert set(seen) == {torch.float32}


def test_the_result_is_the_average(tmp_path):
    run = trainer(tmp_path, ema_decay=0.5)
    run.run()
    names = [name for name, _ in run.task.unet.named_parameters()]
    average = load_file(tmp_path / "checkpoint-6" / "unet.average.safetensors")
    weights = load_file(tmp_path / "checkpoint-6" / "unet.safetensors")
    result = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    now = dict(run.task.unet.named_parameters())
    for i, name in enumerate(names):
        assert torch.equal(result[name], average[str(i)])
        assert torch.equal(now[name].detach(), weights[name])
    assert any(not torch.equal(result[name], weights[name]) for name in names)


def test_dropout_is_not_the_noise(tmp_path):
    drawn = []

    class Watching(Denoising):
        def loss(self, batch, place):
            drawn.append((torch.rand(100), torch.rand(100, generator=place.generator)))
            return super().loss(batch, place)

    trainer(tmp_path, Watching, max_train_steps=2).run()
    rows = torch.stack([row for pair in drawn for row in pair])
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.6


def test_nothing_but_the_numbers_changes_the_numbers(tmp_path, whole):
    """Logging, sampling, workers, how often is saved, and what was random before."""
    shown = smooth_pictures(2)

    class Showing(Denoising):
        def samples(self):
            assert not self.unet.training
            torch.rand(7)
            return shown

    torch.manual_seed(99)
    before = torch.get_rng_state()
    run = trainer(tmp_path, Showing, logging_steps=1, validation_steps=1, num_validation_images=2, checkpointing_steps=3,
                  dataloader_num_workers=1)
    prepared = torch.get_rng_state()
    run.run()
    assert torch.equal(torch.get_rng_state(), prepared)
    assert not torch.equal(before, prepared)  # the task of this test has a seed of its own
    assert left(tmp_path) == left(whole)
    assert len(list((tmp_path / "samples").iterdir())) == 6
    assert run.task.unet.training


def test_checkpointed_gradients_give_the_same_run(tmp_path, whole):
    run = trainer(tmp_path, gradient_checkpointing=True)
    run.run()
    assert run.task.unet.gradient_checkpointing
    assert left(tmp_path) == left(whole)


# -- numbers that are none -------------------------------------------------------------------------------------------


class Bursting(Denoising):
    """Has a loss, or only a gradient, that is not finite in step 4."""

    gradient_alone = False

    def loss(self, batch, place):
        loss, told = super().loss(batch, place)
        if place.step == 3:
            loss = loss + (0 * loss).sqrt() if self.gradient_alone else loss * float("nan")
        return loss, told


class BurstingBackwards(Bursting):
    gradient_alone = True


class RivalBursts(Rivals):
    def tell_apart(self, batch, place):
        loss, told = super().tell_apart(batch, place)
        return loss * (float("inf") if place.step == 3 else 1), told


@pytest.mark.parametrize(("task", "what"), [(Bursting, "the loss is nan"), (BurstingBackwards, "the gradient norm is nan"),
                                            (RivalBursts, "the critic loss is inf")])
def test_what_is_not_finite_is_not_saved(tmp_path, task, what):
    trainer(tmp_path, task, max_train_steps=2, lr_scheduler="constant", lr_warmup_steps=0).run()
    before = left(tmp_path)
    with pytest.raises(ArithmeticError, match=f"{what} at step 4"):
        trainer(tmp_path, task, lr_scheduler="constant", lr_warmup_steps=0).run()
    assert left(tmp_path) == before


# -- other tasks -----------------------------------------------------------------------------------------------------


def test_two_networks_are_trained(tmp_path):
    run = trainer(tmp_path / "whole", Rivals, logging_steps=2)
    begun = {name: tensor.clone() for part in run.networks() for name, tensor in part.state_dict().items()}
    rates, step = [], run.step

    def watched(*given):
        logged = step(*given)
        rates.append([run.optimizers[name].param_groups[0]["lr"] for name in ("generator", "critic")])
        assert set(logged) == {"loss", "gradient_norm", "critic_loss", "critic_gradient_norm", "critic_real"}
        return logged

    run.step = watched
    run.run()
    assert all(not torch.equal(tensor, begun[name]) for part in run.networks() for name, tensor in part.state_dict().items())
    assert [second / first for first, second in rates[1:]] == pytest.approx([2.0] * 5)
    assert {path.name for path in (tmp_path / "whole" / "checkpoint-6").iterdir()} == {
        "generator.safetensors", "generator.optimizer.safetensors", "generator.average.safetensors", "critic.safetensors",
        "critic.optimizer.safetensors", "training.json"}
    trainer(tmp_path / "stopped", Rivals, max_train_steps=4, lr_scheduler="constant", lr_warmup_steps=0).run()
    trainer(tmp_path / "stopped", Rivals, lr_scheduler="constant", lr_warmup_steps=0).run()
    trainer(tmp_path / "steady", Rivals, lr_scheduler="constant", lr_warmup_steps=0).run()
    assert left(tmp_path / "stopped") == left(tmp_path / "steady")


class Line(Task):
    """A task in a few lines, as anyone might write it: y = 3 x - 1."""

    def __init__(self, settings):
        self.line = nn.Linear(1, 1)
        self.data = [{"x": torch.tensor([i / 4])} for i in range(8)]
        self.groups = len(self.data)
        self.players = [Player("line", self.line, self.loss)]

    def loss(self, batch, place):
        return (self.players[0].module(batch["x"]) - 3 * batch["x"] + 1).square().mean(), {}

    def save(self, folder):
        (folder / "line.txt").write_text(f"{self.line.weight.item():.3f} {self.line.bias.item():.3f}")


def test_a_task_of_ones_own(tmp_path):
    trainer(tmp_path, Line, max_train_steps=80, learning_rate=0.3, optimizer="adam", adam_weight_decay=0,
            lr_scheduler="linear", use_ema=False, checkpointing_steps=80).run()
    assert [float(word) for word in (tmp_path / "line.txt").read_text().split()] == pytest.approx([3, -1], abs=0.1)


# -- epochs ----------------------------------------------------------------------------------------------------------


class Counting(Line):
    """Counts how often each number is seen."""

    def __init__(self, settings, groups=7):
        super().__init__(settings)
        self.seen, self.groups = Counter(), groups

    def loss(self, batch, place):
        self.seen.update((batch["x"] * 4).int().flatten().tolist())
        return super().loss(batch, place)


@pytest.mark.parametrize(("groups", "batch", "accumulated", "epochs", "steps"), [
    (7, 1, 4, 8, 14), (8, 4, 3, 5, 4), (5, 1, 2, 20, 50), (3, 8, 1, 4, 2), ([[0, 1, 2, 3, 4], [5], [6, 7]], 2, 3, 3, None)])
def test_every_picture_is_seen_as_often_as_asked(tmp_path, groups, batch, accumulated, epochs, steps):
    class Few(Counting):
        def __init__(self, settings):
            super().__init__(settings, groups)

    how = {"max_train_steps": None, "num_train_epochs": epochs, "train_batch_size": batch, "use_ema": False,
           "gradient_accumulation_steps": accumulated, "lr_scheduler": "linear", "lr_warmup_steps": 0,
           "checkpointing_steps": 1000}
    run = trainer(tmp_path, Few, **how)
    done = run.run()
    indices = range(groups) if isinstance(groups, int) else [index for group in groups for index in group]
    assert min(run.task.seen[index] for index in indices) >= epochs
    assert run.task.seen.total() == done.steps * batch * accumulated
    if steps is not None:
        assert done.steps == steps
        # One step less, and some picture is not seen so often.
        assert (done.steps - 1) * batch * accumulated < epochs * len(indices)
    assert run.rate(done.steps) == 0 < run.rate(done.steps - 1)  # the schedule ends where the run does
    assert sorted(trainer(tmp_path, Few, **how).run().losses) == []  # and a run that goes on knows it is over
    assert dict(estimate(Few(None), run.settings))["steps"].startswith(f"{done.steps}, ")


# -- what is said ----------------------------------------------------------------------------------------------------


def test_lines_where_there_is_no_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    trainer(tmp_path / "a", Rivals, logging_steps=2).run()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {step} of 6" for step in (2, 4, 6)]
    assert all("loss 0." in line and line.endswith("pictures/s") for line in lines)
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 1e9)
    trainer(tmp_path / "b", Rivals, logging_steps=2).run()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_tensorboard_is_told(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Showing(Rivals):
        def samples(self):
            return smooth_pictures(2)

    losses = trainer(tmp_path, Showing, report_to="tensorboard", logging_steps=2, num_validation_images=2,
                     validation_steps=4).run().losses
    files = list((tmp_path / "logs").rglob("events.*"))
    events = [EventAccumulator(str(file)).Reload() for file in files]
    scalars = next(one for one in events if "loss" in one.Tags()["scalars"])
    assert {"gradient_norm", "critic_loss", "pictures_per_second"} < set(scalars.Tags()["scalars"])
    assert [event.step for event in scalars.Scalars("loss")] == [2, 4, 6]
    assert scalars.Scalars("loss")[0].value == pytest.approx((losses[1] + losses[2]) / 2)
    assert [event.step for one in events for tag in one.Tags()["images"] for event in one.Images(tag)] == [4, 6]


def test_a_tracker_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: False)
    with pytest.raises(ImportError, match="report_to is 'wandb', and that is not installed: `pip install wandb`"):
        trainer(tmp_path, Rivals, report_to="wandb").run()


def test_a_scheduler_that_needs_the_rate(tmp_path):
    assert trainer(tmp_path, Rivals, lr_scheduler="polynomial", max_train_steps=1).run().steps == 1
