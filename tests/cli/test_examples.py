"""Every example in the documentation of the command line runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

import calotype
from calotype.models.lora import add_lora, lora_state_dict

from .calling import call

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


SMALL = ["--steps", "2", "--height", "64", "--width", "64"]  # the last one counts


def save_additions(folder: Path) -> None:
    """An adapter `style` and an embedding `toy` for the bundled checkpoint."""
    pipeline = calotype.DiffusionPipeline.from_pretrained("calotype/emoji")
    add_lora(pipeline.unet, rank=1)
    pipeline.save_lora_weights(folder / "style", unet_lora_layers=lora_state_dict(pipeline.unet))
    (folder / "toy").mkdir()
    word = torch.zeros(1, pipeline.text_encoder.config.hidden_size)
    save_file({"<toy>": word}, folder / "toy" / "learned_embeds.safetensors")


def test_every_example_in_the_documentation_runs(photo, depth_model, unconditional, monkeypatch):
    (photo.parent / "prompts.txt").write_text("# fruit\na red apple\n\na green pear\n")
    Image.effect_noise((44, 36), 90).save("depth.png")
    save_additions(photo.parent)
    here = {"stabilityai/stable-diffusion-2-depth": str(depth_model), "google/ddpm-cat-256": str(unconditional)}
    blocks = re.findall(r"^```(bash|console|python)\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for kind, block in blocks if kind != "python" for line in block.splitlines()]
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line.removeprefix("$ "))
        settings = dict(word.split("=", 1) for word in words[: words.index("calotype")])
        words = words[words.index("calotype") + 1 :]
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        if words[0] in ("generate", "edit", "inpaint", "depth", "sample"):
            words += SMALL[: 2 if words[0] == "sample" else None]
        call(*(here.get(word, word) for word in words))
    for kind, block in blocks:
        if kind == "python":
            exec(block, {})
