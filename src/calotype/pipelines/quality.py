"""`quality`: one word over approximations that make a generation quicker, and its pictures others, if close ones.

What changes little from step to step is not computed in every step. In a *shallow* step

- only the outermost layers of the UNet run, with what the deeper ones gave in the last full step (DeepCache; Ma, Fang & Wang
  2024; see `models/deep_features.py`);
- only the conditional prediction is made; what guidance adds to it is that of the last full step (FasterCache; Lv et al. 2024,
  section 3.2, where the difference is weighed by frequencies besides).

Which steps can be shallow depends on the noise: early ones decide what the picture will be. Leaving guidance out altogether
below a level of noise (Kynkäänniemi et al. 2024) was measured too, and costs much more of the likeness for less time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..schedulers.table import Table

WORDS: dict[str, Sequence[tuple[float, int]]] = {"exact": (), "high": ((3.0, 3),), "draft": ((3.0, 4), (float("inf"), 2))}
"""What the words mean: below a level of noise (its standard deviation beside the picture's own, that of Karras et al. 2022),
one step in so many is full. The first level that fits counts; above all of them every step is full."""
QUALITIES = tuple(WORDS)
_ENDS = 12  # one step in so many, at the end, is full: nothing later makes up for what is wrong there


def shallow_calls(table: Table, quality: str) -> list[bool]:
    """For each row of `table`, that is, each model call, whether it is shallow.

    All calls of one step are alike (Heun has two a step, and PNDM in its first). The first step and the last ones are full.
    """
    made: list[bool] = []
    steps = sum(table.ends_step)
    step, since, end = 0, 0, steps - max(1, steps // _ENDS)
    for row, ends in enumerate(table.ends_step):
        if row == 0 or table.ends_step[row - 1]:
            every = _one_in(float(table.levels.sigma[row]), float(table.levels.alpha[row]), WORDS[quality])
            since = 0 if step == 0 or step >= end or since + 1 >= every else since + 1
        made.append(since > 0)
        step += ends
    return made


def _one_in(sigma: float, alpha: float, bands: Sequence[tuple[float, int]]) -> int:
    """Of how many steps at this level of noise one is full."""
    return next((every for below, every in bands if sigma < below * alpha or below == float("inf")), 1)
