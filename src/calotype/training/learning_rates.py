"""Learning rates as functions of the step's number, under the names that training scripts know."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..words import check_choice

Factor = Callable[[int], float]

POLYNOMIAL_END = 1e-7
"""The rate at which "polynomial" ends; with the name, all that Diffusers' `get_scheduler` says about it."""


def get_scheduler(
    name: str, optimizer: Optimizer, step_rules: str | None = None, num_warmup_steps: int | None = None,
    num_training_steps: int | None = None, num_cycles: int = 1, power: float = 1.0, last_epoch: int = -1,
    **more: Any,
) -> LambdaLR:
    """A PyTorch scheduler that multiplies the rates of `optimizer` by `learning_rate(name, …)` of the step.

    The arguments and what is raised are those of `learning_rate`, and `last_epoch`: the step from which to go on, -1 to begin.
    """
    factor = learning_rate(
        name, step_rules=step_rules, num_warmup_steps=num_warmup_steps, num_training_steps=num_training_steps,
        num_cycles=num_cycles, power=power, initial_rate=float(optimizer.defaults["lr"]), **more)
    return LambdaLR(optimizer, factor, last_epoch)


def learning_rate(
    name: str, *, step_rules: str | None = None, num_warmup_steps: int | None = None, num_training_steps: int | None = None,
    num_cycles: int = 1, power: float = 1.0, initial_rate: float | None = None, reference_steps: int | None = None,
    cooldown: float = 0.2,
) -> Factor:
    """What the initial learning rate is multiplied by in a step, as a function of the step's number from 0.

    All but two rise linearly from 0 to 1 over `num_warmup_steps`, W, and then, with T = `num_training_steps`:

    - "constant": 1 throughout, and no warm-up.
    - "constant_with_warmup": stays.
    - "linear": falls to 0 at T.
    - "cosine": half a wave down to 0 at T (Loshchilov and Hutter 2017). Steps beyond T go up the wave again.
    - "cosine_with_restarts": `num_cycles` such half waves.
    - "polynomial": falls as `((T - step) / (T - W)) ** power`, to the rate 1e-7 at T.
    - "piecewise_constant": no warm-up; `step_rules` "1:10,0.1:20,0.01" is 1 before step 10, 0.1 before 20, then 0.01.
    - "inverse_sqrt": stays until step `reference_steps` R (by default W) and falls as `sqrt(R / step)`, without an end
      (Vaswani et al. 2017; with another R, EDM2: Karras et al. 2023, arXiv:2312.02696).
    - "warmup_stable_decay" or "wsd": stays, and falls linearly to 0 over the last share `cooldown` of T (Hägele et al. 2024).

    Args:
        name: one of these.
        step_rules: for "piecewise_constant".
        num_warmup_steps: for all names but "constant" and "piecewise_constant"; may be 0.
        num_training_steps: for those that end.
        num_cycles: for "cosine_with_restarts".
        power: for "polynomial".
        initial_rate: for "polynomial", the rate that will be multiplied; greater than 1e-7.
        reference_steps: for "inverse_sqrt".
        cooldown: for "warmup_stable_decay", in (0, 1].

    Raises:
        ValueError: there is no such name, what it needs is missing, or a number is out of its range.
    """
    name = getattr(name, "value", name)  # Diffusers' SchedulerType
    check_choice("the learning-rate scheduler", name, NAMES)
    if name == "constant":
        return lambda step: 1.0
    if name == "piecewise_constant":
        return _piecewise(step_rules)
    warmup = _needed(name, "num_warmup_steps", num_warmup_steps, 0)
    if name == "constant_with_warmup":
        return _warmed_up(warmup, lambda step: 1.0)
    if name == "inverse_sqrt":
        reference = _needed(name, "reference_steps or num_warmup_steps", reference_steps or warmup or None, 1)
        return _warmed_up(warmup, lambda step: (max(step, reference) / reference) ** -0.5)
    total = _needed(name, "num_training_steps", num_training_steps, 1)
    if name in ("warmup_stable_decay", "wsd"):
        if not 0 < cooldown <= 1:
            raise ValueError(f"cooldown is {cooldown!r}, but must be a share of the steps, greater than 0 and at most 1")
        falling = min(max(cooldown * total, 1), max(total - warmup, 1))
        return _warmed_up(warmup, lambda step: min(max((total - step) / falling, 0.0), 1.0))
    span = max(total - warmup, 1)
    if name == "linear":
        return _warmed_up(warmup, lambda step: max((total - step) / span, 0.0))
    if name == "cosine":
        return _warmed_up(warmup, lambda step: _wave((step - warmup) / span))
    if name == "cosine_with_restarts":
        if num_cycles < 1:
            raise ValueError(f"num_cycles is {num_cycles!r}, but must be at least 1")
        return _warmed_up(warmup, lambda step: _wave(num_cycles * t % 1) if (t := (step - warmup) / span) < 1 else 0.0)
    if initial_rate is None or not initial_rate > POLYNOMIAL_END:
        raise ValueError(f"'polynomial' ends at the rate {POLYNOMIAL_END}, so it needs initial_rate (the learning rate) greater "
                         f"than that, not {initial_rate!r}")
    if not power > 0:
        raise ValueError(f"power is {power!r}, but must be greater than 0")
    end = POLYNOMIAL_END / initial_rate
    return _warmed_up(warmup, lambda step: (1 - end) * max((total - step) / span, 0.0) ** power + end)


def _wave(time: float) -> float:
    return max((1 + math.cos(math.pi * time)) / 2, 0.0)


def _warmed_up(warmup: int, then: Factor) -> Factor:
    return lambda step: step / warmup if step < warmup else then(step)


def _piecewise(step_rules: str | None) -> Factor:
    example = "such as '1:10,0.1:20,0.01' (1 before step 10, 0.1 before step 20, then 0.01)"
    if step_rules is None:
        raise ValueError(f"'piecewise_constant' needs step_rules {example}")
    *rules, last = step_rules.split(",")
    until: dict[int, float] = {}
    try:
        for rule in rules:
            factor, step = rule.split(":")
            if int(step) in until:
                raise ValueError
            until[int(step)] = float(factor)
        final = float(last)
    except ValueError:
        raise ValueError(f"step_rules are {step_rules!r}, but must be text {example}") from None
    ordered = sorted(until.items())
    return lambda step: next((factor for before, factor in ordered if step < before), final)


def _needed(name: str, what: str, value: int | None, least: int) -> int:
    if value is None:
        raise ValueError(f"the learning-rate scheduler {name!r} needs {what}")
    if not value >= least:
        raise ValueError(f"{what} is {value!r}, but must be at least {least}")
    return value


NAMES = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "piecewise_constant",
    "inverse_sqrt", "warmup_stable_decay", "wsd",
)
