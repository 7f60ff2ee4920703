"""Several processes: copies that agree (DDP), and weights divided among them (FSDP)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from calotype import UNet2DModel
from calotype.training.checkpoints import load_checkpoint

from .processes import in_two_processes
from .running import Denoising, Rivals, SameNoise, left, smooth_pictures, trainer

pytest.importorskip("accelerate")
pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="forks"), pytest.mark.filterwarnings("ignore::UserWarning")]

ROUNDING = 2e-6
"""How far weights (below 1 in size) may be apart after four steps of gradient descent whose sums were taken in another order."""

STEADY = {"optimizer": "sgd", "learning_rate": 0.05, "lr_scheduler": "constant", "lr_warmup_steps": 0, "max_train_steps": 4,
          "ema_decay": 0.5, "train_batch_size": 4}


class Showing(SameNoise):
    """Samples with its network, as pipelines do, without the trainer's module."""

    def samples(self):
        assert not self.unet.training
        with torch.no_grad():
            self.seen = self.unet(torch.ones(1, 3, 8, 8), 5).sample
        return smooth_pictures(2)

    def save(self, folder):
        super().save(folder)
        save_file({"seen": self.seen.contiguous()}, folder / "seen.safetensors")


class NoLossInOne(Denoising):
    """In the second process a loss is not finite."""

    def loss(self, batch, place):
        loss, told = super().loss(batch, place)
        return loss * (float("nan") if place.process and place.step == 1 else 1), told


def weights_of(run, file: Path) -> None:
    weights = {f"{i}.{name}": parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
               for i, network in enumerate(run.networks()) for name, parameter in network.named_parameters()}
    save_file({name: parameter.detach().contiguous() for name, parameter in weights.items()}, file)


def all_runs(folder: Path) -> None:
    """Everything that two processes do in these tests; what they leave is looked at by one."""
    def done(name: str, task=Denoising, **settings) -> None:
        run = trainer(folder / name, task, **{"checkpoints_total_limit": None, **settings})
        run.run()
        rank = run.accelerator.process_index
        weights_of(run, folder / f"{name}.{rank}.safetensors")

    for form in ("ddp", "shard"):
        shard = form == "shard"
        done(form, Showing, **STEADY, shard=shard, num_validation_images=2, validation_steps=2)
        done(f"{form} whole", max_train_steps=4, shard=shard)
        middle = str(folder / f"{form} whole" / "checkpoint-2")
        done(f"{form} again", max_train_steps=4, shard=shard, resume_from_checkpoint=middle)
        done(f"{form} rivals", Rivals, optimizer="sgd", lr_scheduler="constant", lr_warmup_steps=0, shard=shard)
        try:
            done(f"{form} none", NoLossInOne, shard=shard, logging_steps=1)
        except ArithmeticError as error:
            assert "the loss is nan at step 2" in str(error)
        else:
            raise AssertionError("no error")
    for form, other in (("ddp", "shard"), ("shard", "ddp")):
        done(f"{form} after {other}", SameNoise, **STEADY, shard=form == "shard",
             resume_from_checkpoint=str(folder / other / "checkpoint-2"), num_validation_images=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(all_runs, folder, log=folder)
    return folder


def distance(one: Path, other: Path) -> float:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_copies_agree(folder):
    names = {path.name.rsplit(".", 2)[0] for path in folder.glob("*.0.safetensors")}
    assert len(names) == 10
    for name in names:
        first, second = (folder / f"{name}.{rank}.safetensors" for rank in (0, 1))
        assert first.read_bytes() == second.read_bytes(), name


@pytest.mark.parametrize("form", ["ddp", "shard"])
def test_two_with_half_a_batch_are_one(tmp_path, folder, form):
    trainer(tmp_path, SameNoise, **{**STEADY, "train_batch_size": 8}).run()
    result = "diffusion_pytorch_model.safetensors"
    assert distance(tmp_path / result, folder / form / result) < ROUNDING
    for name in ("unet", "unet.optimizer", "unet.average"):
        file = Path("checkpoint-4") / f"{name}.safetensors"
        assert distance(tmp_path / file, folder / form / file) < ROUNDING * 10  # momentum is ten gradients
    alone = tmp_path / "half"
    trainer(alone, SameNoise, **STEADY).run()
    assert distance(alone / result, folder / form / result) > 100 * ROUNDING


def test_results_are_whole(folder):
    """The result of divided weights is the average, in a model of its own class, with which was sampled."""
    for form in ("ddp", "shard"):
        model = UNet2DModel.from_pretrained(folder / form)
        average = load_file(folder / form / "checkpoint-4" / "unet.average.safetensors")
        assert all(torch.equal(parameter, average[str(i)]) for i, parameter in enumerate(model.parameters()))
        with torch.no_grad():
            seen = model(torch.ones(1, 3, 8, 8), 5).sample
        torch.testing.assert_close(seen, load_file(folder / form / "seen.safetensors")["seen"], rtol=1e-4, atol=1e-5)
        assert [path.name for path in sorted((folder / form / "samples").iterdir())] == ["step-000002.png", "step-000004.png"]


def test_two_go_on_exactly(folder):
    for form, other in (("ddp", "shard"), ("shard", "ddp")):
        assert left(folder / f"{form} again") == left(folder / f"{form} whole")
        for name in ("unet", "unet.average"):
            gone, whole = (folder / run / "checkpoint-4" / f"{name}.safetensors" for run in (f"{form} after {other}", other))
            assert distance(gone, whole) < ROUNDING


def test_rivals_may_be_divided(folder):
    for part in ("generator", "critic"):
        file = Path("checkpoint-6") / f"{part}.safetensors"
        assert distance(folder / "ddp rivals" / file, folder / "shard rivals" / file) < ROUNDING


def test_nothing_is_saved_of_what_is_not_finite(folder):
    for form in ("ddp", "shard"):
        assert [path.name for path in (folder / f"{form} none").iterdir()] == ["settings.yaml"]


def test_one_process_reads_what_two_wrote(tmp_path, folder):
    run = trainer(tmp_path)
    for form in ("ddp", "shard"):
        path = folder / f"{form} whole" / "checkpoint-4"
        assert load_checkpoint(path, run._trained())["step"] == 4
        saved = load_file(path / "unet.safetensors")
        assert all(torch.equal(parameter, saved[name]) for name, parameter in run.task.unet.named_parameters())
    with pytest.raises(ValueError, match="processes was 2 and is 1"):
        trainer(tmp_path, resume_from_checkpoint=str(path)).run()


def test_one_process_divides_nothing(tmp_path):
    with pytest.raises(ValueError, match="shard divides weights among processes, and there is one; start several"):
        trainer(tmp_path, shard=True)
