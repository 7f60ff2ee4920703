"""Weighted prompts: from a text to its parts and what each counts.

Two tools' ways of writing are known. They differ in every sign, so one is chosen by name and none is guessed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import NamedTuple

from ..words import check_choice

Part = tuple[str, float]


class Clause(NamedTuple):
    """What the text encoder reads on its own: its parts, each with a weight, and the weight of the whole."""

    parts: list[Part]
    weight: float = 1.0


def parse(prompt: str, syntax: str | None) -> list[Clause]:
    """The clauses of a prompt, in order; neighbours of one weight are one part.

    Args:
        syntax: `"a1111"`, see `parse_a1111`; `"compel"`, see `parse_compel`; `None`: the prompt is one part as it stands.

    Raises:
        ValueError: an unknown syntax, or something of that syntax which there is not here; names it. A prompt that is
            merely malformed is no error: a bracket without its other half is text. Or a weight that is not finite.
    """
    check_choice("prompt_syntax", syntax, (None, *SYNTAXES))
    clauses = [Clause([(prompt, 1.0)])] if syntax is None else SYNTAXES[syntax](prompt)
    for clause in clauses:
        for text, weight in (*clause.parts, *((text, clause.weight) for text, _ in clause.parts[:1])):
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {text!r:.80} in the prompt is {weight}: it must be a finite number")
    return clauses


def _refuse(prompt: str, syntax: str, unknown: dict[str, str], escaped: str) -> None:
    """Raise if there is something `unknown`, by patterns. What is `escaped`, by a pattern of two signs, is none of it."""
    seen = re.sub(escaped, "  ", prompt)
    for pattern, what in unknown.items():
        if found := re.search(pattern, seen):
            raise ValueError(f"{prompt[slice(*found.span())]!r} is {what} in the syntax {syntax!r}, which there is not here")


def _joined(parts: Iterable[Part], between: str = "") -> list[Part]:
    """Neighbours of one weight as one part; parts without text left out."""
    said = (part for part in parts if part[0])
    return [(between.join(text for text, _ in same), weight) for weight, same in groupby(said, lambda part: part[1])]


# -- AUTOMATIC1111's web UI ----------------------------------------------------------------------------------------------

_NOT_A1111 = {
    r"\[[^\[\]]*:\s*(?:\d+(?:\.\d+)?|\.\d+)\s*\]": "prompt editing ([from:to:when])",
    r"\[[^\[\]|]*\|[^\[\]]*\]": "alternating words ([one|other])",
    r"\bAND\b": "composition (AND)",
    r"<(lora|lyco|hypernet):[^<>]*>": "a network to load",
}
_A1111 = re.compile(r"\\(?P<literal>[()\[\]\\])|:\s*(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)|(?P<bracket>[()\[\]])"
                    r"|(?P<text>[^\\()\[\]:]+|.)", re.DOTALL)


def parse_a1111(prompt: str) -> list[Clause]:
    r"""A prompt in the syntax of AUTOMATIC1111's web UI (its wiki, "Features", sections "Attention/emphasis" and "BREAK").

    `(words)` count 1.1 times as much, `[words]` as much divided by 1.1, `(words:1.3)` 1.3 times; nested, the factors
    multiply. `\(`, `\)`, `\[`, `\]` and `\\` are the signs themselves. `BREAK` ends a clause, whatever brackets are open.
    A bracket without its other half is text (the web UI lets an open one reach to the end).

    Raises:
        ValueError: prompt editing, alternating words, `AND` or a network to load, none of which there is.
    """
    _refuse(prompt, "a1111", _NOT_A1111, r"\\[()\[\]\\]")
    texts: list[str] = []
    opened: list[tuple[str, int]] = []  # brackets that wait for their other half, and their places in `texts`
    factors: dict[int, float] = {}  # of the texts from an opening bracket's place on
    closed: Counter[int] = Counter()  # how many brackets are closed before a text, by its place
    for match in _A1111.finditer(prompt):
        text, number = match["literal"] or match[0], match["number"]
        closes = {")": "(", "]": "["}.get(match[0][-1]) if match["bracket"] or number else None
        if closes and opened and opened[-1][0] == closes:
            _, start = opened.pop()
            texts[start] = ""
            factors[start] = float(number) if number else 1.1 if closes == "(" else 1 / 1.1
            closed[len(texts)] += 1
            continue
        if match["bracket"] and text in "([":
            opened.append((text, len(texts)))
        texts.append(text)
    parts: list[Part] = []
    weights = [1.0]
    for place, text in enumerate(texts):
        del weights[len(weights) - closed[place]:]
        if place in factors:
            weights.append(weights[-1] * factors[place])
        parts.append((text, weights[-1]))
    clauses: list[list[Part]] = [[]]
    for text, weight in _joined(parts):
        first, *others = re.split(r"\bBREAK\b", text)
        for other in others:
            clauses[-1].append((first.rstrip(), weight))
            clauses.append([])
            first = other.lstrip()
        clauses[-1].append((first, weight))
    return [Clause(_joined(parts)) for parts in clauses]


# -- compel --------------------------------------------------------------------------------------------------------------

_NOT_COMPEL = {
    r"\.blend\(": "a blend", r"\.swap\(": "a swap", r"\b(with|use)Lora\(": "a network to load",
    r"\)\s*\.and\(": "a conjunction that is not of the form (\"…\", \"…\").and(…) and the whole prompt",
}
_QUOTED = r'\s*"(?:\\.|[^"\\])*"\s*'
_CONJUNCTION = re.compile(rf"\s*\(({_QUOTED}(?:,{_QUOTED})*)\)\s*\.and\(([^()]*)\)\s*", re.DOTALL)
_FACTOR = re.compile(r"\++|-+|\d+(?:\.\d+)?|\.\d+")
_COMPEL = re.compile(r"""\\(?P<literal>[()"])|(?P<bracket>[()"])|(?P<signs>\++|-+)|[^\\()"+-]+|.""", re.DOTALL)
_DEEPEST = 50  # what is nested deeper is text: no prompt means it


def parse_compel(prompt: str) -> list[Clause]:
    r"""A prompt in the syntax of compel (damian0815/compel, doc/syntax.md and Reference.md).

    `word+` counts 1.1 times as much, `word-` 0.9 times, and each further sign multiplies again; `(some words)++` and
    `(some words)1.3` are for several; nested, the factors multiply. Parentheses and quotation marks that carry no weight
    go; `\(`, `\)` and `\"` are the signs themselves, and so are those without their other half and parentheses right
    after a letter. Signs inside a word (`well-known`) or on their own are text.
    `("some words", "others").and(1, 0.5)` makes clauses, with their weights, 1 by default.

    Raises:
        ValueError: `.blend()`, `.swap()`, `withLora()`, none of which there is; or clauses and weights differ in number.
    """
    if (conjunction := _CONJUNCTION.fullmatch(prompt)) and ".and(" not in conjunction[1]:
        texts = [text.strip()[1:-1] for text in re.findall(_QUOTED, conjunction[1], re.DOTALL)]
        try:
            weights = [float(number) for number in conjunction[2].split(",")] if conjunction[2].strip() else [1.0] * len(texts)
        except ValueError:
            raise ValueError(f"the weights of .and() must be numbers, and are {conjunction[2]!r}") from None
        if len(texts) != len(weights):
            raise ValueError(f".and() has {len(texts)} clauses and {len(weights)} weights: give none, or one for each")
        return [Clause(parse_compel(text)[0].parts, weight) for text, weight in zip(texts, weights, strict=True)]
    _refuse(prompt, "compel", _NOT_COMPEL, r'\\[()"]')
    return [Clause(_joined(_compel_parts(prompt), between=" "))]


def _compel_parts(text: str) -> list[Part]:
    halves, weights = _halves(text), [1.0]
    ends: list[int] = []  # where the open parentheses are closed; what is in them counts the last of `weights`
    parts: list[Part] = []
    said: list[str] = []  # what was read and not yet given out
    at = 0
    while at < len(text):
        found = _COMPEL.match(text, at)
        assert found
        sign, signs = found[0], found["signs"]
        inside = bool(said) and _in_word(said[-1][-1])
        if ends and at == ends[-1]:
            parts.append(("".join(said).strip(), weights.pop()))
            said, factor = [], _FACTOR.match(text, ends.pop() + 1)
            at = factor.end() if factor else at + 1
            continue
        if found["bracket"] and at in halves and len(ends) < _DEEPEST and not inside:
            parts.append(("".join(said).strip(), weights[-1]))
            said, factor = [], _FACTOR.match(text, halves[at] + 1)
            ends.append(halves[at])
            weights.append(weights[-1] * (_factor(factor[0]) if factor else 1.0))
        elif signs and said and not re.match(r"[\s,]", said[-1][-1]) and not _in_word(text[found.end():found.end() + 1]):
            before = "".join(said)
            word = re.split(r"[\s,]", before)[-1]
            parts += [(before[:-len(word)].strip(), weights[-1]), (word, weights[-1] * _factor(signs))]
            said = []
        else:
            said.append(found["literal"] or sign)
        at = found.end()
    parts.append(("".join(said).strip(), 1.0))
    return parts


def _in_word(sign: str) -> bool:
    return sign.isalnum() or sign == "_"


def _factor(written: str) -> float:
    if written[0] not in "+-":
        return float(written)
    try:
        return float({"+": 1.1, "-": 0.9}[written[0]] ** len(written))
    except OverflowError:
        return math.inf


def _halves(text: str) -> dict[int, int]:
    """Where what opens at a place is closed. A parenthesis closed leaves a quotation mark inside it without its half."""
    halves: dict[int, int] = {}
    opened: list[int] = []
    quotes = 0  # that are open: one at most
    for found in re.finditer(r"""\\[()"]|[()"]""", text):
        sign, at = found[0], found.start()
        opening = {")": "(", '"': '"' if quotes else None}.get(sign)
        levels = reversed(range(len(opened) if opening else 0))
        level = next((level for level in levels if text[opened[level]] == opening), None)
        if level is not None:
            halves[opened[level]] = at
            quotes -= sum(text[place] == '"' for place in opened[level:])
            del opened[level:]
        elif sign in '("':
            opened.append(at)
            quotes += sign == '"'
    return halves


SYNTAXES: dict[str, Callable[[str], list[Clause]]] = {"a1111": parse_a1111, "compel": parse_compel}
"""The ways to write weights, by name."""
