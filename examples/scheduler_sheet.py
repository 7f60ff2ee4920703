"""Draw the contact sheet of docs/schedulers.md, one seed by many solvers: `python examples/scheduler_sheet.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from calotype import DiffusionPipeline, named_scheduler

FILE = Path(__file__).resolve().parent.parent / "docs" / "images" / "schedulers.jpg"
PROMPT, SEED, STEPS = "a guitar, noto style", 1, (5, 10, 20, 50)
BLOCKS = (
    ("ddim", "plms", "euler", "heun", "dpm2", "lms", "lms_karras", "deis"),
    ("dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2s", "unipc", "euler_a", "dpmpp_2m_sde", "dpmpp_sde", "ddpm"),
)
SIZE, LABEL, TOP, GAP = 128, 164, 34, 4


def main() -> None:
    pipeline = DiffusionPipeline.from_pretrained("calotype/emoji")
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config
    width = LABEL + len(STEPS) * (SIZE + GAP)
    sheet = Image.new("RGB", (len(BLOCKS) * width, TOP + len(BLOCKS[0]) * (SIZE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(19)
    for block, names in enumerate(BLOCKS):
        columns = [block * width + LABEL + column * (SIZE + GAP) for column in range(len(STEPS))]
        for left, steps in zip(columns, STEPS, strict=True):
            draw.text((left + SIZE / 2, TOP / 2), f"{steps} steps", "black", font, "mm")
        for row, name in enumerate(names):
            top = TOP + row * (SIZE + GAP)
            draw.text((columns[0] - 8, top + SIZE / 2), name, "black", font, "rm")
            pipeline.scheduler = named_scheduler(name, config)
            for left, steps in zip(columns, STEPS, strict=True):
                generator = torch.Generator().manual_seed(SEED)
                sheet.paste(pipeline(PROMPT, num_inference_steps=steps, generator=generator).images[0], (left, top))
    sheet.save(FILE, quality=88)


if __name__ == "__main__":
    main()
