"""Small tasks that trainers are tried on, and what a run left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from calotype import DDPMScheduler, UNet2DModel
from calotype.files import read_json
from calotype.training.objectives import Noised, Objective
from calotype.training.pictures import Pictures
from calotype.training.seeds import generator_for
from calotype.training.settings import Optimisation, Run
from calotype.training.task import Player, Task
from calotype.training.trainer import Trainer

UNET: dict[str, Any] = {
    "sample_size": 8, "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "mid_block_type": None,
    "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}

FULL: dict[str, Any] = {
    "max_train_steps": 6, "checkpointing_steps": 2, "train_batch_size": 3, "gradient_accumulation_steps": 2, "seed": 3,
    "learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 1, "use_ema": True, "num_validation_images": 0}


class Told(Run, Optimisation):
    """What a task here is told."""


def smooth_pictures(count: int, size: int = 8) -> list[Image.Image]:
    """Pictures that differ, in which neighbours are alike."""
    corners = torch.randint(0, 256, (count, 2, 2, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [Image.fromarray(one.numpy()).resize((size, size), Image.Resampling.BICUBIC) for one in corners]


class Denoising(Task):
    """A UNet with dropout learns 20 pictures, some of them mirrored."""

    def __init__(self, settings: Any, dropout: float = 0.2):
        torch.manual_seed(settings.seed)
        self.unet = UNet2DModel(**UNET, dropout=dropout)
        self.objective = Objective(DDPMScheduler())
        self.data = Pictures.of(smooth_pictures(20), resolution=8, random_flip=True, seed=settings.seed)
        self.groups = self.data.groups
        self.players = [Player("unet", self.unet, self.loss)]

    def noised(self, batch, place):
        return self.objective.noised(batch["pixel_values"], place.generator)

    def loss(self, batch, place):
        noised = self.noised(batch, place)
        return self.objective.loss(self.players[0].module(noised.sample, noised.timesteps).sample, noised).mean(), {}

    def save(self, folder):
        self.unet.save_pretrained(folder)


class SameNoise(Denoising):
    """What is random about a picture depends on the picture alone, so that it does not matter how a step's are divided."""

    def __init__(self, settings: Any):
        super().__init__(settings, dropout=0.0)

    def noised(self, batch, place):
        ones = [self.objective.noised(one[None], generator_for(1, place.step, index))
                for one, index in zip(batch["pixel_values"], batch["index"], strict=True)]
        fields = ("sample", "timesteps", "noise", "target", "weights")
        return Noised(*(torch.cat([getattr(one, field) for one in ones]) for field in fields))


class Rows(list):
    """Items that are read by draws."""

    def __getitem__(self, draw):
        return super().__getitem__(draw[0])


class Rivals(Task):
    """A generator of numbers and its critic."""

    def __init__(self, settings: Any):
        torch.manual_seed(settings.seed)
        self.generator, self.critic = nn.Linear(4, 2), nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Dropout(0.1), nn.Linear(8, 1))
        self.players = [Player("generator", self.generator, self.fool),
                        Player("critic", self.critic, self.tell_apart, learning_rate=2.0, averaged=False)]
        self.data = Rows([{"x": torch.tensor([i / 10, 3.0])} for i in range(10)])
        self.groups = len(self.data)

    def made(self, batch, place):
        return self.players[0].module(torch.randn(len(batch["x"]), 4, generator=place.generator))

    def fool(self, batch, place):
        return nn.functional.softplus(-self.players[1].module(self.made(batch, place))).mean(), {}

    def tell_apart(self, batch, place):
        with torch.no_grad():
            made = self.made(batch, place)
        real, false = self.players[1].module(torch.cat([batch["x"], made])).chunk(2)
        return (nn.functional.softplus(-real) + nn.functional.softplus(false)).mean(), {"real": real.mean()}

    def save(self, folder):
        """Checkpoints are enough."""


def trainer(folder: Path, task: Any = Denoising, **settings: Any) -> Trainer:
    """A trainer of `task`, with everything that can be saved, unless told otherwise."""
    told = Told(output_dir=folder, **{**FULL, **settings})
    return Trainer(task(told), told, say=lambda text: None)


def left(folder: Path) -> dict[str, bytes]:
    """All tensors of the last checkpoint and of the result, as files, and how often was averaged."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    files = {path.name: path.read_bytes() for path in [*last.glob("*.safetensors"), *folder.glob("*.safetensors")]}
    told = read_json(last / "training.json")
    return files | {"counted": repr((last.name, told["step"], told["players"])).encode()}
