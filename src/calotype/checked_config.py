"""What of a downloaded config is handed to another library: the entries of a list of ours, each of its kind.

Another library may do more with a config than read numbers from it: fetch a backbone or kernels, import what they name. So
nothing gets there by being in a file: an entry that is not on the list is left out, and one whose value is of another kind is an
error.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .words import listing, some

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """The values that an entry may have: `fits` tells them, `said` describes them."""

    said: str
    fits: Callable[[Any], bool]


def whole(low: int, high: int) -> Kind:
    """Whole numbers, limits included."""
    return Kind(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float) -> Kind:
    """Numbers, limits included."""
    return Kind(f"a number from {low} to {high}",
                lambda value: type(value) in (int, float) and math.isfinite(value) and low <= value <= high)


def one_of(*words: str) -> Kind:
    """Some words."""
    return Kind(listing(words), lambda value: type(value) is str and value in words)


def matching(pattern: str) -> Kind:
    """Words of a form."""
    return Kind(f"text of the form {pattern}", lambda value: type(value) is str and re.fullmatch(pattern, value) is not None)


def list_of(kind: Kind, longest: int) -> Kind:
    """Lists of values of one kind."""
    return Kind(f"a list of at most {longest}, each {kind.said}",
                lambda value: isinstance(value, list) and len(value) <= longest and all(map(kind.fits, value)))


def by_name(kind: Kind, *names: str) -> Kind:
    """Objects of such names, and values of one kind."""
    return Kind(f"an object of {listing(names)}, each {kind.said}",
                lambda value: isinstance(value, dict) and set(value) <= set(names) and all(map(kind.fits, value.values())))


def either(*kinds: Kind) -> Kind:
    """Values of any of these kinds."""
    return Kind(", or ".join(kind.said for kind in kinds), lambda value: any(kind.fits(value) for kind in kinds))


def optional(kind: Kind) -> Kind:
    """Null too."""
    return either(kind, NULL)


NULL = Kind("null", lambda value: value is None)
FLAG = Kind("true or false", lambda value: type(value) is bool)


def checked(content: Mapping[str, Any], allowed: Mapping[str, Kind], where: str) -> dict[str, Any]:
    """The entries of `content` that are allowed; others are left out, and said so in the log where they say anything.

    Args:
        where: the file, for errors.

    Raises:
        ValueError: an entry has a value of another kind; names them all.
    """
    wrong = [f"{name} is {value!r:.80}, but must be {allowed[name].said}" for name, value in content.items()
             if name in allowed and not allowed[name].fits(value)]
    if wrong:
        raise ValueError("\n  ".join([f"{where!r} cannot be used:", *wrong]))
    if left_out := sorted(name for name, value in content.items() if name not in allowed and value not in (None, False)):
        _log.info("of %r, these entries are not handed on: %s", where, some(left_out))
    return {name: value for name, value in content.items() if name in allowed}
