"""Which pictures are kept for the evaluation: some emoji in one of their styles, so that the others can be learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

SHARE = 0.12
"""Of the emoji that at least `FEWEST` styles draw, those with one picture held out: about 3 % of all pictures."""

FEWEST = 3


def held_out_style(label: str, styles: Sequence[str]) -> str | None:
    """The style in which `label` is held out, or None for most labels.

    It depends on nothing but the label and its styles, so no other picture can move one from one split to the other.
    """
    if len(styles) < FEWEST:
        return None
    digest = hashlib.sha256(f"held out: {label}".encode()).digest()
    chosen = int.from_bytes(digest[:8], "big") / 2**64 < SHARE
    return sorted(styles)[digest[8] % len(styles)] if chosen else None
