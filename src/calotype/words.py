"""The words of an error: what was given, what is allowed, and the nearest right thing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(given: object, allowed: Iterable[object]) -> str:
    """`"; did you mean 'x'?"` for the allowed word most like `given`, else an empty string."""
    words = [str(word) for word in allowed]
    close = get_close_matches(str(given), words, n=1, cutoff=0.5)
    if not close:  # a wrong case is no less near than a wrong letter
        folded = {word.lower(): word for word in words}
        close = [folded[word] for word in get_close_matches(str(given).lower(), folded, n=1, cutoff=0.5)]
    return f"; did you mean {close[0]!r}?" if close else ""


def listing(allowed: Iterable[object]) -> str:
    """`'a', 'b' or 'c'`."""
    words = [repr(word) for word in allowed]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def some(words: Sequence[str], most: int = 12) -> str:
    """The first words of a list that may be long, and how many more there are."""
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def check_choice(what: str, given: object, allowed: Iterable[object]) -> None:
    """Raise a `ValueError` that names `given` and every allowed value, unless it is one of them."""
    allowed = list(allowed)
    if given not in allowed:
        raise ValueError(f"{what} is {given!r}, but must be {listing(allowed)}{nearest(given, allowed)}")


def check_keywords(caller: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise a `TypeError` for the first keyword in `given` that `caller` does not take."""
    allowed = list(allowed)
    for name in given:
        if name not in allowed:
            raise TypeError(f"{caller} takes no argument {name!r}{nearest(name, allowed)}")
