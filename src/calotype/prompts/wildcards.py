"""Prompts with alternatives: `a {red|blue|{dark|light} green} car`."""

from __future__ import annotations

import math
import random
import re

_VARIANT = re.compile(r"\{([^{}]*)\}")  # an innermost one
_WEIGHT = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*::")


def expand_wildcards(prompt: str, seed: int) -> str:
    r"""Choose one of every `{a|b|c}`; the same seed chooses the same, on every machine.

    The choices are nested as you like, and may be weighted: `{2::a|b}` gives "a" twice as often as "b" (the syntax of
    Dynamic Prompts for one choice; weights of 1 by default). Spaces inside belong to the choice. `\{`, `\|` and `\}` are the
    signs themselves; a brace without its other half, and braces without a `|` inside, are text.

    Args:
        seed: of Python's `random.Random`; one draw for each choice, inner ones first and from left to right.

    Raises:
        ValueError: the weights of one choice are all 0, or several are asked for at once (`{2$$a|b|c}`).
    """
    generator = random.Random(seed)
    kept: list[str] = []  # what is not to be looked at again, by number: escaped signs, and braces that are text

    def keep(text: str) -> str:
        kept.append(text)
        return f"\0{len(kept) - 1}\0"

    def choose(match: re.Match[str]) -> str:
        choices = match[1].split("|")
        if len(choices) < 2:
            return keep("{") + match[1] + keep("}")
        if "$$" in match[1]:
            raise ValueError(f"{match[0]!r} asks for several choices at once ($$), and one of them is what there is here")
        found = [_WEIGHT.match(choice) for choice in choices]
        weights = [float(weight[1]) if weight else 1.0 for weight in found]
        if math.fsum(weights) == 0:
            raise ValueError(f"the weights of {match[0]!r} are all 0: nothing can be chosen")
        texts = [choice[weight.end():] if weight else choice for choice, weight in zip(choices, found, strict=True)]
        return generator.choices(texts, weights)[0]

    text, count = prompt.replace("\0", ""), 1
    text = re.sub(r"\\([{|}])", lambda match: keep(match[1]), text)
    while count:
        text, count = _VARIANT.subn(choose, text)
    return re.sub("\0(\\d+)\0", lambda match: kept[int(match[1])], text)
