"""Draw the contact sheet of docs/tasks.md: `python examples/task_sheet.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from calotype import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
)

SHEET = Path(__file__).resolve().parent.parent / "docs" / "images" / "tasks.jpg"
SIZE, GAP, STEPS, GUIDANCE = 128, 6, 25, 4
CHANGED = [("a red apple, noto style", "a green apple, noto style", 1), ("a cat face, noto style", "a dog face, noto style", 3),
           ("a yellow star in flat style", "a red heart in flat style", 0),
           ("a rocket in flat style", "a guitar in flat style", 0)]
STRENGTHS = (0.3, 0.5, 0.65, 0.8, 0.9)
PAINTED = [("a yellow star in flat style", 0), ("a red apple, noto style", 1)]
PAINTS = ("a face", "an angry face", "a grinning face", "a crying face", "a yellow flower")


def seeded(seed: int) -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(seed), "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}


def main() -> None:
    text = StableDiffusionPipeline.from_pretrained("calotype/emoji")
    text.scheduler = DPMSolverMultistepScheduler.from_config(text.scheduler.config, use_karras_sigmas=True)
    change, fill = AutoPipelineForImage2Image.from_pipe(text), AutoPipelineForInpainting.from_pipe(text)
    rows = []
    for prompt, other, seed in CHANGED:
        picture = text(prompt, **seeded(seed)).images[0]
        rows.append([picture, *(change(other, image=picture, strength=s, **seeded(1)).images[0] for s in STRENGTHS)])
    mask = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(mask).ellipse((34, 34, 94, 94), fill=255)
    for prompt, seed in PAINTED:
        picture = text(prompt, **seeded(seed)).images[0]
        shown = picture.copy()
        shown.paste("white", mask=mask)
        made = [fill(paint, image=picture, mask_image=mask, **seeded(4)).images[0] for paint in PAINTS]
        rows.append([shown, *(fill.image_processor.apply_overlay(mask, picture, one) for one in made)])
    sheet = Image.new("RGB", (6 * (SIZE + GAP) - GAP, len(rows) * (SIZE + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (SIZE + GAP), y * (SIZE + GAP)))
    sheet.save(SHEET, quality=88, optimize=True)


if __name__ == "__main__":
    main()
