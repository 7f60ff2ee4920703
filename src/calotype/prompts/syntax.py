"""Weighted prompts: from a text to its parts and what each counts.

Two tools' ways of writing are known. They differ in every sign, so one is chosen by name and none is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
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
            merely malformed is no error: a bracket without its other half is text.
    """
    check_choice("prompt_syntax", syntax, (None, *SYNTAXES))
    return [Clause([(prompt, 1.0)])] if syntax is None else SYNTAXES[syntax](prompt)


def _refuse(prompt: str, syntax: str, unknown: dict[str, str]) -> None:
    for pattern, what in unknown.items():
        if found := re.search(pattern, prompt):
            raise ValueError(f"{found[0]!r} is {what} in the syntax {syntax!r}, which there is not here")


def _joined(parts: Iterable[Part], between: str = "") -> list[Part]:
    """Neighbours of one weight as one part; parts without text left out."""
    joined: list[Part] = []
    for text, weight in parts:
        if not text:
            continue
        if joined and joined[-1][1] == weight:
            text = joined.pop()[0] + between + text
        joined.append((text, weight))
    return joined


# -- AUTOMATIC1111's web UI ----------------------------------------------------------------------------------------------

_NOT_A1111 = {
    r"(?<!\\)\[[^\[\]]*:\s*\d*\.?\d+\s*\]": "prompt editing ([from:to:when])",
    r"(?<!\\)\[[^\[\]]*\|[^\[\]]*\]": "alternating words ([one|other])",
    r"\bAND\b": "composition (AND)",
    r"<(lora|lyco|hypernet):[^<>]*>": "a network to load",
}
_A1111 = re.compile(r"\\(?P<literal>[()\[\]\\])|:\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|(?P<bracket>[()\[\]])"
                    r"|(?P<text>[^\\()\[\]:]+|.)", re.DOTALL)


def parse_a1111(prompt: str) -> list[Clause]:
    r"""A prompt in the syntax of AUTOMATIC1111's web UI (its wiki, "Features", sections "Attention/emphasis" and "BREAK").

    `(words)` count 1.1 times as much, `[words]` as much divided by 1.1, `(words:1.3)` 1.3 times; nested, the factors
    multiply. `\(`, `\)`, `\[`, `\]` and `\\` are the signs themselves. `BREAK` ends a clause, whatever brackets are open.
    A bracket without its other half is text (the web UI lets an open one reach to the end).

    Raises:
        ValueError: prompt editing, alternating words, `AND` or a network to load, none of which there is.
    """
    _refuse(prompt, "a1111", _NOT_A1111)
    texts: list[str] = []
    weights: list[float] = []
    opened: list[tuple[str, int]] = []  # brackets that wait for their other half, and their places in `texts`
    for match in _A1111.finditer(prompt):
        text, number = match["literal"] or match[0], match["number"]
        closes = {")": "(", "]": "["}.get(match[0][-1]) if match["bracket"] or number else None
        if closes and opened and opened[-1][0] == closes:
            _, start = opened.pop()
            texts[start] = ""
            factor = float(number) if number else 1.1 if closes == "(" else 1 / 1.1
            weights[start:] = [weight * factor for weight in weights[start:]]
            continue
        if match["bracket"] and text in "([":
            opened.append((text, len(texts)))
        texts.append(text)
        weights.append(1.0)
    clauses: list[list[Part]] = [[]]
    for text, weight in _joined(zip(texts, weights, strict=True)):
        first, *others = re.split(r"\s*\bBREAK\b\s*", text)
        clauses[-1].append((first, weight))
        clauses += [[(other, weight)] for other in others]
    return [Clause(_joined(parts)) for parts in clauses]


# -- compel --------------------------------------------------------------------------------------------------------------

_NOT_COMPEL = {
    r"\.blend\(": "a blend", r"\.swap\(": "a swap", r"\b(with|use)Lora\(": "a network to load",
    r"\)\s*\.and\(": "a conjunction that is not of the form (\"…\", \"…\").and(…) and the whole prompt",
}
_QUOTED = r'\s*"(?:\\.|[^"\\])*"\s*'
_CONJUNCTION = re.compile(rf"\s*\(({_QUOTED}(?:,{_QUOTED})*)\)\s*\.and\(([^()]*)\)\s*", re.DOTALL)
_FACTOR = re.compile(r"\++|-+|\d+(?:\.\d+)?|\.\d+")
_SIGNS = re.compile(r"(?:\++(?!\+)|-+(?!-))(?!\w)")
_CLOSING = {"(": ")", '"': '"'}
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
    _refuse(prompt, "compel", _NOT_COMPEL)
    return [Clause(_joined(_compel_parts(prompt), between=" "))]


def _compel_parts(text: str, depth: int = 0) -> Iterator[Part]:
    said, at, halves = "", 0, _halves(text)  # what was read and not yet given out
    while at < len(text):
        sign = text[at]
        if sign == "\\" and text[at + 1:at + 2] in ("(", ")", '"'):
            said, at = said + text[at + 1], at + 2
        elif at in halves and depth < _DEEPEST and not re.search(r"\w$", said):
            yield said.strip(), 1.0
            end = halves[at]
            factor = _FACTOR.match(text, end + 1)
            for part, weight in _compel_parts(text[at + 1:end], depth + 1):
                yield part, weight * (_factor(factor[0]) if factor else 1.0)
            said, at = "", factor.end() if factor else end + 1
        elif (signs := _SIGNS.match(text, at)) and (word := re.search(r"[^\s,]+$", said)):
            yield said[:word.start()].strip(), 1.0
            yield word[0], _factor(signs[0])
            said, at = "", signs.end()
        elif signs:  # on their own
            said, at = said + signs[0], signs.end()
        else:
            said, at = said + sign, at + 1
    yield said.strip(), 1.0


def _factor(written: str) -> float:
    return {"+": 1.1, "-": 0.9}[written[0]] ** len(written) if written[0] in "+-" else float(written)


def _halves(text: str) -> dict[int, int]:
    """Where what opens at a place is closed. A parenthesis closed leaves a quotation mark inside it without its half."""
    halves: dict[int, int] = {}
    opened: list[int] = []
    for found in re.finditer(r"\\.|[()\"]", text, re.DOTALL):
        sign, at = found[0], found.start()
        opening = {")": "(", '"': '"'}.get(sign)
        levels = reversed(range(len(opened) if opening else 0))
        level = next((level for level in levels if text[opened[level]] == opening), None)
        if level is not None:
            halves[opened[level]] = at
            del opened[level:]
        elif sign in _CLOSING:
            opened.append(at)
    return halves


SYNTAXES: dict[str, Callable[[str], list[Clause]]] = {"a1111": parse_a1111, "compel": parse_compel}
"""The ways to write weights, by name."""
