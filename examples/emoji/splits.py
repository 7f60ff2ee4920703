"""Which pictures are kept for the evaluation: some emoji, each in one of its styles, so that the others can be learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

SHARE = 0.12
"""Of the emoji that at least `FEWEST` styles draw, those with one picture held out: about 3 % of all pictures."""

FEWEST = 3


def split_of(label: str, style: str, styles: Sequence[str]) -> str:
    """`"train"` or `"held_out"`, of the picture of `label` in `style`, one of the `styles` that draw it.

    It depends on nothing else, so choosing fewer emoji or adding some moves no picture from one split to the other.
    """
    digest = hashlib.sha256(f"held out: {label}".encode()).digest()
    chosen = len(styles) >= FEWEST and int.from_bytes(digest[:8], "big") / 2**64 < SHARE
    return "held_out" if chosen and style == sorted(styles)[digest[8] % len(styles)] else "train"
