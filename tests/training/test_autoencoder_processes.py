"""An autoencoder and its adversary in two processes: copies that agree, and weights divided."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from calotype import AutoencoderKL
from calotype.training.recipes import recipe
from calotype.training.trainer import Trainer

from .processes import in_two_processes
from .running import smooth_pictures

pytest.importorskip("accelerate")
pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="forks"), pytest.mark.filterwarnings("ignore::UserWarning")]


def both_runs(folder: Path) -> None:
    for shard in (False, True):
        settings = recipe("autoencoder").Settings(
            train_data_dir=folder / "pictures", output_dir=folder / f"shard {shard}", shard=shard, max_train_steps=3,
            pretrained_model_name_or_path=str(folder / "vae"), train_batch_size=2, gradient_accumulation_steps=2,
            optimizer="sgd", learning_rate=0.01, perceptual_weight=0.1, adversarial_weight=0.5, adversarial_start=1,
            discriminator_channels=8, discriminator_layers=1, num_validation_images=1)
        Trainer(recipe("autoencoder")(settings), settings, lambda text: None).run()


def test_both_may_be_copied_or_divided(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i, picture in enumerate(smooth_pictures(6)):
        picture.save(tmp_path / "pictures" / f"{i}.png")
    AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=2, sample_size=8).save_pretrained(tmp_path / "vae")
    in_two_processes(both_runs, tmp_path, log=tmp_path)
    begun = AutoencoderKL.from_pretrained(tmp_path / "vae").state_dict()
    for part in ("autoencoder", "discriminator"):
        copied, divided = (load_file(tmp_path / f"shard {shard}" / "checkpoint-3" / f"{part}.safetensors")
                           for shard in (False, True))
        assert copied.keys() == divided.keys()
        assert max(float((copied[name] - divided[name]).abs().max()) for name in copied) < 1e-5
        if part == "autoencoder":
            assert max(float((copied[f"vae.{name}"] - begun[name]).abs().max()) for name in begun) > 1e-3
