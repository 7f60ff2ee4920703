"""Runs that were killed or stopped, or are to be longer: they go on exactly."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch

from calotype import UNet2DModel
from calotype.training import checkpoints
from calotype.training.task import Player

from .processes import FORKED
from .running import UNET, Denoising, Rivals, left, trainer

pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def hidden(folder) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


class Killed(Denoising):
    """Is killed in the fifth step."""

    def loss(self, batch, place):
        if (place.step, place.micro) == (4, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(batch, place)


class KilledWhenDone(Denoising):
    """Is killed while the result is written."""

    def save(self, folder):
        (folder / ".0.partial").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)


def _run_and_die(folder, task, file, whole_first):
    """What the child process does: the run, killed when it writes `file` of its second checkpoint."""
    torch.set_num_threads(1)  # as the run that goes on has: sums are rounded by how they are divided
    seen, save = [], checkpoints.save_file

    def save_file(tensors, path):
        seen.append(path)
        if file is not None and sum(path.name == file for path in seen) == 2:
            save(tensors, path)
            if not whole_first:
                path.write_bytes(path.read_bytes()[:100])
            os.kill(os.getpid(), signal.SIGKILL)
        save(tensors, path)

    checkpoints.save_file = save_file
    trainer(folder, task).run()


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize(("task", "file", "whole_first", "there"), [
    (Killed, None, True, ["checkpoint-2", "checkpoint-4"]),
    (Denoising, "unet.safetensors", False, ["checkpoint-2"]),
    (Denoising, "unet.average.safetensors", True, ["checkpoint-2"]),
    (KilledWhenDone, None, True, ["checkpoint-4", "checkpoint-6"]),
])
def test_a_killed_run_goes_on_exactly(tmp_path, whole, task, file, whole_first, there):
    process = FORKED.Process(target=_run_and_die, args=(tmp_path, task, file, whole_first))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == there
    assert bool(hidden(tmp_path)) == (task is not Killed)
    trainer(tmp_path).run()
    assert left(tmp_path) == left(whole)
    assert hidden(tmp_path) == []


def test_a_stopped_run_leaves_nothing_half_done(tmp_path, whole, monkeypatch):
    save = checkpoints.save_file
    monkeypatch.setattr(checkpoints, "save_file", lambda *_: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path).run()
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]
    monkeypatch.setattr(checkpoints, "save_file", save)
    trainer(tmp_path).run()
    assert left(tmp_path) == left(whole)


def test_a_longer_run_goes_on(tmp_path, whole):
    trainer(tmp_path, lr_scheduler="constant", lr_warmup_steps=0, max_train_steps=2).run()
    on = trainer(tmp_path, lr_scheduler="constant", lr_warmup_steps=0, max_train_steps=4, logging_steps=1, checkpointing_steps=1)
    assert sorted(on.run().losses) == [3, 4]
    at_once = tmp_path / "at once"
    trainer(at_once, lr_scheduler="constant", lr_warmup_steps=0, max_train_steps=4).run()
    assert left(tmp_path) == left(at_once)
    assert left(tmp_path)["unet.safetensors"] != left(whole)["unet.safetensors"]
    again = trainer(tmp_path, lr_scheduler="constant", lr_warmup_steps=0, max_train_steps=4).run()  # nothing is left to do
    assert (again.steps, again.losses) == (4, {})
    with pytest.raises(ValueError, match="is of step 4, but the run is to end at step 3: let it be longer, or name an earlier"):
        trainer(tmp_path, lr_scheduler="constant", lr_warmup_steps=0, max_train_steps=3).run()
    trainer(tmp_path, lr_scheduler="constant", lr_warmup_steps=0, max_train_steps=3, resume_from_checkpoint="checkpoint-3").run()


def test_other_settings_are_named(tmp_path):
    trainer(tmp_path, max_train_steps=2).run()
    before = left(tmp_path)
    with pytest.raises(ValueError, match="learning_rate was 0.001 and is 0.01; use_ema was True and is False. Keep them"):
        trainer(tmp_path, learning_rate=0.01, use_ema=False).run()
    assert left(tmp_path) == before


def test_where_to_go_on_from(tmp_path):
    trainer(tmp_path).run()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    before = left(tmp_path)
    for named in (str(tmp_path / "checkpoint-4"), "checkpoint-4"):
        assert sorted(trainer(tmp_path, resume_from_checkpoint=named, logging_steps=1).run().losses) == [5, 6]
        assert left(tmp_path) == before
    with pytest.raises(FileNotFoundError, match="resume_from_checkpoint is 'checkpoint-5', which is no checkpoint's folder"):
        trainer(tmp_path, resume_from_checkpoint="checkpoint-5").run()
    trainer(tmp_path, resume_from_checkpoint="none", max_train_steps=2, learning_rate=1e-4).run()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]  # the others were another run's


def test_a_damaged_checkpoint_is_named(tmp_path):
    trainer(tmp_path, max_train_steps=2).run()
    for name in ("unet.optimizer.safetensors", "unet.safetensors", "unet.average.safetensors", "training.json"):
        file = tmp_path / "checkpoint-2" / name
        kept = file.read_bytes()
        file.write_bytes(kept[: len(kept) // 2])
        with pytest.raises(ValueError, match=f"checkpoint-2/{name}'"):
            trainer(tmp_path, max_train_steps=3).run()
        file.write_bytes(kept)
    other = Denoising.__init__

    class Larger(Denoising):
        def __init__(self, settings):
            other(self, settings)
            self.unet = UNet2DModel(**{**UNET, "layers_per_block": 2})
            self.players = [Player("unet", self.unet, self.loss)]

    with pytest.raises(ValueError, match="other tensors than the network that is trained"):
        trainer(tmp_path, Larger, max_train_steps=3).run()
    with pytest.raises(ValueError, match=r"is a checkpoint of \['unet'\], and not of \['critic', 'generator'\]"):
        trainer(tmp_path, Rivals, max_train_steps=3).run()
