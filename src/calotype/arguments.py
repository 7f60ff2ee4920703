"""Arguments of calls, checked before any work is done: numbers, lists of them, and tensors.

Each function takes an argument's name and what was given, and returns what to go on with, or raises a `ValueError` that says
what was given and what is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def refuse(name: str, given: Any, allowed: str) -> NoReturn:
    """Raise a `ValueError`: `name` is what was given, and must be what is `allowed`."""
    raise ValueError(f"{name} is {shown(given)}, but must be {allowed}")


def shown(given: Any) -> str:
    """What was given, in an error: tensors and arrays by their shapes, all else as Python writes it, if that is short."""
    shape = getattr(given, "shape", None)
    if isinstance(given, Tensor | np.ndarray) and shape:
        return f"{'a tensor' if isinstance(given, Tensor) else 'a NumPy array'} of {given.dtype} and shape {[*shape]}"
    words = repr(given)
    return words if len(words) <= 80 else f"{words[:77]}..."


def whole_number(
    name: str, given: Any, least: int | None = 1, most: int | None = None, floats: bool = False, limit: str = ""
) -> int:
    """A whole number: Python's, NumPy's or a tensor's. A truth value is none.

    Args:
        floats: take floats of whole value too.
        limit: what `most` is, for the error.
    """
    number = _plain(given)
    whole = isinstance(number, int) or (floats and number is not None and number.is_integer())
    if number is None or isinstance(number, bool) or not whole or (
            least is not None and number < least) or (most is not None and number > most):
        bounds = "" if least is None else f" of at least {least}" if most is None else f" from {least} to {most}"
        refuse(name, given, f"a whole number{bounds}" + (f", {limit}" if limit else ""))
    return int(number)


def number(name: str, given: Any, least: float | None = None) -> float:
    """A finite number: Python's, NumPy's or a tensor's."""
    found = _plain(given)
    if found is None or not math.isfinite(found) or (least is not None and found < least):
        refuse(name, given, "a finite number" + ("" if least is None else f" of at least {least:g}"))
    return found


def numbers(name: str, given: Any) -> NDArray[np.float64]:
    """[n] a list of numbers, an array or a tensor."""
    values = given.detach().cpu() if isinstance(given, Tensor) else given
    values = values.numpy() if isinstance(values, Tensor) and values.dtype != torch.bfloat16 else values
    found = None
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iuf":
        found = values.astype(np.float64)
    elif isinstance(values, Sequence | Tensor) and not isinstance(values, str | bytes):
        each = [_plain(value) for value in values]
        if not any(value is None or isinstance(value, bool) for value in each):
            found = np.array(each, dtype=np.float64)
    if found is None:
        raise ValueError(f"{name} must be a list of numbers, and this is {shown(given)}")
    return found


def tensor(name: str, given: Any, *shape: int | str, because: str = "", values: bool = True) -> Tensor:
    """A tensor of floating-point numbers, all of them finite, and of a shape.

    Args:
        shape: each side, or a word for a side that may have any length but 0.
        because: what wants this shape, for the error.
        values: look whether they are finite too, for which an accelerator has to be waited for.
    """
    allowed = f"a tensor of floating-point numbers of shape [{', '.join(map(str, shape))}]" + (f", {because}" if because else "")
    if not isinstance(given, Tensor) or not given.is_floating_point() or given.ndim != len(shape):
        refuse(name, given, allowed)
    for found, side in zip(given.shape, shape, strict=True):
        if found != side if isinstance(side, int) else found == 0:
            refuse(name, given, allowed)
    return finite(name, given) if values else given


def finite(name: str, given: Tensor) -> Tensor:
    """A tensor without NaN and infinite values."""
    if not torch.isfinite(given).all():
        raise ValueError(f"{name} has values that are not finite (NaN or infinite)")
    return given


def least_strength(count: int) -> float:
    """The lowest strength of few digits that leaves one of `count` steps."""
    digits = len(str(count)) + 1
    least = -(-10**digits // count)
    while int(count * (least / 10**digits)) < 1:  # where rounding takes the step away
        least += 1
    return least / 10**digits


def _plain(given: Any) -> int | float | None:
    """The Python number that `given` is, NumPy's and a tensor's of one element too; `None` if it is none."""
    if isinstance(given, Tensor | np.ndarray | np.generic):
        count = given.numel() if isinstance(given, Tensor) else given.size
        given = given.item() if count == 1 else None
    if isinstance(given, int | float):
        return given
    return float(given) if isinstance(given, Real) else None
