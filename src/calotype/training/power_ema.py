"""Averages over a fixed share of all training so far, instead of a fixed number of steps (EDM2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from .ema import EMAModel, _is_number

WIDEST = 12**-0.5
"""The greatest `sigma_rel`: that of the plain mean of all steps."""


class PowerEMA(EMAModel):
    """An average with the power-function profile of Karras et al. 2023 (EDM2, arXiv:2312.02696, section 3.1).

    After t steps, step τ has a weight in proportion to `τ ** gamma`, so early steps fade as training goes on, and there is no
    decay to choose for a length of training. In each step `s = d s + (1 - d) p` with `d = (1 - 1 / t) ** (gamma + 1)`.

    Args:
        parameters: of the model; copied.
        sigma_rel: the profile's standard deviation as a share of the training time, in (0, 0.2886]; EDM2 has 0.05 and 0.10.
        update_after_step: until this step averages are copies, and t counts from there.
        foreach, model_cls, model_config: as for `EMAModel`.

    Raises:
        TypeError, ValueError: as `EMAModel` does.
    """

    _options: ClassVar = {
        "optimization_step": EMAModel._options["optimization_step"],
        "update_after_step": EMAModel._options["update_after_step"],
        "sigma_rel": ("a number greater than 0 and at most 12**-0.5 (0.2886)",
                      lambda value: _is_number(value) and 0 < value <= WIDEST),
    }

    def __init__(
        self, parameters: Iterable[Tensor], sigma_rel: float = 0.05, update_after_step: int = 0, foreach: bool = True,
        model_cls: Any = None, model_config: Mapping[str, Any] | None = None,
    ) -> None:
        self._check({"sigma_rel": sigma_rel, "update_after_step": update_after_step})
        super().__init__(parameters, foreach=foreach, model_cls=model_cls, model_config=model_config)
        self.sigma_rel, self.update_after_step = sigma_rel, update_after_step

    def get_decay(self, optimization_step: int) -> float:
        """The weight of what was in this step, counted from 1; in the first it is 0."""
        t = optimization_step - self.update_after_step
        return (1 - 1 / t) ** (power_of(self.sigma_rel) + 1) if t > 1 else 0.0


@lru_cache
def power_of(sigma_rel: float) -> float:
    """The exponent gamma of a profile: the greatest root of `(gamma + 2)² (gamma + 3) = (gamma + 1) / sigma_rel²`."""
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def mixture(saved: Sequence[tuple[int, float]], step: int, sigma_rel: float) -> list[float]:
    """By what to multiply saved averages, so that their sum is about the average of another width, after training is over.

    The least-squares fit of EDM2's section 3.2: of the saved profiles to the wanted one, over time.

    Args:
        saved: the step (from 1) and the `sigma_rel` of each saved average; of two widths, say 0.05 and 0.10, several times.
        step: the step whose average is wanted, best one that is saved; not beyond the last of those.
        sigma_rel: its width.

    Raises:
        ValueError: a step or a width is out of its range.
    """
    last = max((t for t, _ in saved), default=0)
    if not 1 <= step <= last or min(t for t, _ in saved) < 1:
        raise ValueError(f"steps must be from 1 to the last that is saved, {last}; wanted is {step}, saved are {list(saved)}")
    for _, width in (*saved, (step, sigma_rel)):
        PowerEMA._check({"sigma_rel": width})
    t = np.array([*(t for t, _ in saved), step], dtype=np.float64)
    gamma = np.array([*(power_of(width) for _, width in saved), power_of(sigma_rel)])
    shared = np.minimum.outer(t, t)  # beyond the earlier one's step the product of two profiles is 0
    scaled = (shared / t[:, None]) ** gamma[:, None] * (shared / t) ** gamma / np.maximum.outer(t, t)
    products = scaled * np.multiply.outer(gamma + 1, gamma + 1) / (np.add.outer(gamma, gamma) + 1)
    return np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=None)[0].tolist()
