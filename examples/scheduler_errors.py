"""Draw the curves of docs/schedulers.md, errors where the solution is known: `python examples/scheduler_errors.py`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from calotype import named_scheduler

FILE = Path(__file__).resolve().parent.parent / "docs" / "images" / "scheduler-errors.png"
CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
          "set_alpha_to_one": False, "clip_sample": False}
MEAN, SPREADS = 0.3, torch.tensor([0.25, 0.5, 1.0], dtype=torch.float64)  # three spreads: errors of one may cancel by chance
COUNTS = (5, 7, 10, 14, 20, 28, 40, 57, 80)
CURVES = {"ddim": "#888888", "euler": "#8c564b", "plms": "#e377c2", "dpmpp_2m": "#1f77b4", "dpmpp_2m_karras": "#17becf",
          "unipc_karras": "#2ca02c", "heun_karras": "#ff7f0e", "dpm2_karras": "#9467bd", "lms_karras": "#d62728"}


def error(name: str, steps: int) -> float:
    """How far (root mean square) a solver ends from the exact solution, if the data is Gaussian and the model knows it.

    Samples at a level are then N(alpha · MEAN, (alpha · SPREADS)² + sigma²), and along the ODE a sample stays as many standard
    deviations from the mean as it was; here one.
    """
    table = named_scheduler(name, CONFIG).table(steps)

    def level(row: int) -> tuple[Tensor, Tensor, float]:
        alpha, sigma = float(table.levels.alpha[row]), float(table.levels.sigma[row])
        return torch.full_like(SPREADS, alpha * MEAN), torch.sqrt((alpha * SPREADS) ** 2 + sigma**2), sigma

    mean, deviation, sigma = level(0)
    x, state = mean + deviation, table.new_state()
    for row in range(len(table)):
        mean, deviation, sigma = level(row)
        x = table.step(row, sigma / deviation**2 * (x - mean), x, state)  # the best prediction of the noise
    mean, deviation, _ = level(len(table))
    return float((x - mean - deviation).square().mean().sqrt())


def drawing(curves: dict[str, list[float]]) -> Image.Image:
    """Both axes logarithmic. Drawn twice as large, so that lines are smooth."""
    left, right, top, bottom, low, high = 160, 1900, 40, 1240, 1e-5, 1
    picture = Image.new("RGB", (2400, 1440), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(44)

    def at(steps: float, value: float) -> tuple[float, float]:
        return (left + (right - left) * math.log(steps / COUNTS[0]) / math.log(COUNTS[-1] / COUNTS[0]),
                top + (bottom - top) * math.log(high / value) / math.log(high / low))

    for exponent in range(-1, -6, -1):
        start, end = at(COUNTS[0], 10**exponent), at(COUNTS[-1], 10**exponent)
        draw.line([start, end], "#dddddd", 3)
        draw.text((start[0] - 16, start[1]), f"1e{exponent}", "black", font, "rm")
    for steps in COUNTS[::2]:
        draw.text((at(steps, low)[0], bottom + 20), str(steps), "black", font, "mt")
    draw.text(((left + right) / 2, bottom + 100), "model calls (a step of heun or dpm2 has two)", "black", font, "mt")
    free = 0.0  # below the names that are there already
    for name, values in sorted(curves.items(), key=lambda curve: -curve[1][-1]):
        points = [at(steps, value) for steps, value in zip(COUNTS, values, strict=True)]
        draw.line(points, CURVES[name], 7, "curve")
        height = max(points[-1][1], free)
        draw.text((right + 20, height), name, CURVES[name], font, "lm")
        free = height + 50
    return picture.resize((1200, 720), Image.Resampling.LANCZOS)


def main() -> None:
    steps = {name: [(n + 1) // 2 if name.startswith(("heun", "dpm2")) else n for n in COUNTS] for name in CURVES}
    drawing({name: [error(name, n) for n in steps[name]] for name in CURVES}).quantize(64).save(FILE, optimize=True)
    for name in CURVES:
        print(f"| `{name}` | " + " | ".join(f"{error(name, n):.1e}" for n in (10, 20, 40, 80)) + " |")


if __name__ == "__main__":
    main()
