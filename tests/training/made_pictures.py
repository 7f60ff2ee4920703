"""What the tests of recipes train on: a few coloured shapes with captions, and a tiny pipeline; and how its loss is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from pipelines.conftest import make_tiny

from calotype.training.recipes import recipe
from calotype.training.task import Place
from calotype.training.trainer import Trained, Trainer

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 70, 220)}
SHAPES = ("square", "disc")
QUIET = {"num_validation_images": 0, "logging_steps": 1000, "checkpointing_steps": 1000}


def make_pictures(folder: Path, count: int = 24, size: tuple[int, int] = (16, 16)) -> Path:
    """Shapes in three colours, with `text`, `label`, `style` and `split` in their metadata: every fourth is of "test"."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(count):
        colour, shape = list(COLOURS)[i % 3], SHAPES[i // 3 % 2]
        picture = Image.new("RGB", size, "white")
        left, top = np.random.default_rng(i).integers(1, 5, 2).tolist()
        box = (left, top, left + size[0] // 2, top + size[1] // 2)
        draw = ImageDraw.Draw(picture)
        (draw.rectangle if shape == "square" else draw.ellipse)(box, fill=COLOURS[colour])
        picture.save(folder / f"{i:02}.png")
        rows.append({"file_name": f"{i:02}.png", "text": f"a {colour} {shape}", "label": shape, "style": "flat",
                     "split": "test" if i % 4 == 3 else "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def save_tiny(folder: Path, **unet: object) -> Path:
    """The tiny text-to-image pipeline in a folder: pictures of 16 pixels, latents of 8."""
    make_tiny(**unet).save_pretrained(folder)
    return folder


def settings_of(name: str, **given: Any) -> Any:
    """Settings of a recipe, without what takes time in tests."""
    return recipe(name).Settings.read(QUIET | given)


def task_of(name: str, **given: Any) -> Any:
    """A recipe's task by its settings."""
    return recipe(name)(settings_of(name, **given))


def held_out(task: Any, repeats: int = 8) -> float:
    """The loss on all pictures, as plainly read, at noise and timesteps that are always the same."""
    network = task.players[0].module
    mode, device = network.training, next(network.parameters()).device
    network.eval()
    total = 0.0
    with torch.no_grad():
        for number in range(repeats):
            batch = task.collate([task.data[index] for index in range(len(task.data))])
            loss, _ = task.loss(batch, Place(999, number, device=device))
            total += float(loss) / repeats
    network.train(mode)
    return total


def train(task: Any) -> tuple[float, Trained, float]:
    """Train a task to the end: its held-out loss before, what the run left, and the loss after."""
    trainer = Trainer(task, task.settings, say=lambda text: None)
    before = held_out(task)
    trained = trainer.run()
    with trainer.result():
        return before, trained, held_out(task)


def state_of(*models: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights."""
    return {f"{i}.{key}": value.clone() for i, model in enumerate(models) for key, value in model.state_dict().items()}


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def assert_same_picture(mine: Any, theirs: Any) -> None:
    """Values [..., 0 to 1] equal within rounding, of a picture that is not all of one value."""
    assert mine.shape == theirs.shape and mine.std() > 0.01
    assert np.abs(mine - theirs).max() <= 1e-4
