"""Prompts with alternatives: `a {red|blue|{dark|light} green} car`."""

from __future__ import annotations

import math
import random
import re
from typing import overload

_SIGN = re.compile(r"\\[{|}]|[{|}]")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*::")
_LONGEST_WEIGHT = 1000  # signs


@overload
def expand_wildcards(prompt: str, seed: int) -> str: ...


@overload
def expand_wildcards(prompt: list[str], seed: int) -> list[str]: ...


def expand_wildcards(prompt: str | list[str], seed: int) -> str | list[str]:
    r"""Choose one of every `{a|b|c}`; the same seed chooses the same, on every machine.

    The choices are nested as you like, and may be weighted: `{2::a|b}` gives "a" twice as often as "b" (the syntax of
    Dynamic Prompts for one choice; weights of 1 by default). Spaces inside belong to the choice. `\{`, `\|` and `\}` are the
    signs themselves; a brace without its other half, and braces without a `|` inside, are text.

    Args:
        prompt: a text; or several that belong together, such as a prompt and its negative prompt. Their choices are drawn one
            text after another, so that those of the first are what they are alone, and the others' do not follow them.
        seed: of Python's `random.Random`; one draw for each choice, inner ones first and from left to right.

    Raises:
        ValueError: the weights of one choice are all 0 or beyond all numbers, or several are asked for at once (`{2$$a|b|c}`).
    """
    generator = random.Random(seed)
    return _expanded(prompt, generator) if isinstance(prompt, str) else [_expanded(one, generator) for one in prompt]


class _Braces:
    """What stands in one pair of braces, between its `|`: texts and inner braces. `chosen` is what is left of it."""

    __slots__ = ("branches", "chosen", "height", "several", "start")

    def __init__(self) -> None:
        self.branches: list[list[str | _Braces]] = [[]]
        self.height = 0  # how many braces are in each other here
        self.chosen: list[str | _Braces] = []
        self.start = ""  # of the chosen text
        self.several = False  # whether there is a $$ in it

    def choose(self, generator: random.Random) -> None:
        starts = [_start(branch) for branch in self.branches]
        self.several = any("$$" in one if isinstance(one, str) else one.several for branch in self.branches for one in branch)
        if len(self.branches) < 2:
            self.chosen, self.start = ["{", *self.branches[0], "}"], "{"
            return
        if self.several:
            raise ValueError(f"{self.written()!r} asks for several choices at once ($$), and one of them is what there is here")
        found = [_WEIGHT.match(start) for start in starts]
        weights = [float(weight[1]) if weight else 1.0 for weight in found]
        if not 0 < sum(weights) < math.inf:
            total = "all 0: nothing can be chosen" if sum(weights) == 0 else "too large to be added"
            raise ValueError(f"the weights of {self.written()!r} are {total}")
        number = generator.choices(range(len(weights)), weights)[0]
        self.chosen, weight = self.branches[number], found[number]
        if weight:
            first = self.chosen[0]
            self.chosen = [first[weight.end():], *self.chosen[1:]] if isinstance(first, str) and len(first) >= weight.end() else [
                _text(self.chosen)[weight.end():]]  # a weight that is itself chosen
        self.start = _start(self.chosen)

    def written(self) -> str:
        return "{" + "|".join(map(_text, self.branches)) + "}"


def _start(branch: list[str | _Braces]) -> str:
    """As much of a text as may be a weight."""
    start = ""
    for one in branch:
        start += one[:_LONGEST_WEIGHT] if isinstance(one, str) else one.start
        if len(start) >= _LONGEST_WEIGHT:
            break
    return start[:_LONGEST_WEIGHT]


def _text(branch: list[str | _Braces]) -> str:
    texts, rest = [], [iter(branch)]
    while rest:
        for one in rest[-1]:
            if not isinstance(one, str):
                rest.append(iter(one.chosen))
                break
            texts.append(one)
        else:
            rest.pop()
    return "".join(texts)


def _expanded(prompt: str, generator: random.Random) -> str:
    opened, closed = [_Braces()], []  # the whole, and the braces in it that wait for their other half
    at, prompt = 0, prompt.replace("\0", "")
    for sign in _SIGN.finditer(prompt):
        opened[-1].branches[-1].append(prompt[at:sign.start()])
        at = sign.end()
        if sign[0] == "{":
            opened.append(_Braces())
        elif sign[0] == "|":
            opened[-1].branches.append([])
        elif sign[0] == "}" and len(opened) > 1:
            closed.append(opened.pop())
            opened[-1].branches[-1].append(closed[-1])
            opened[-1].height = max(opened[-1].height, closed[-1].height + 1)
        else:
            opened[-1].branches[-1].append(sign[0][-1])
    opened[-1].branches[-1].append(prompt[at:])
    for braces in sorted(closed, key=lambda one: one.height):
        braces.choose(generator)
    return "{".join("|".join(map(_text, braces.branches)) for braces in opened)
