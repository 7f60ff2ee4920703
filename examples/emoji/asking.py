"""What people type for an emoji, and the caption that says the same to a model which knows captions alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captions import THINGS
from phrases import spoken, with_article

PLAIN = ("{word}", "{word}", "{word}", "{noun}", "{noun}", "an emoji of {noun}", "an image of {noun}", "a picture of {noun}",
         "a drawing of {noun}", "{word} emoji", "the {word}", "a small {word}", "a cute {word}")
"""How one asks for a thing: mostly by its name alone."""

STYLED = ("{noun} in {style} style", "{noun} in {style} style", "{word}, {style} style", "{word}, {style} style",
          "{word} in {style} style", "{style} emoji of {noun}", "an image of {noun} in {style} style", "{style} style {word}",
          "{style} {word}")
"""The same where one says in which style."""


@dataclass(frozen=True)
class Question:
    """A thing, in a style or whichever, as a caption says it (`known`) and as people may (`asked`)."""

    known: str
    asked: tuple[str, ...]


def questions_of(rows: Sequence[Mapping[str, Any]], plain: int = 2) -> list[Question]:
    """The questions that training rows of a `metadata.jsonl` answer, those without a style `plain` times; and the empty one."""
    styles: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["split"] == "train" and row["called"] + row["tagged"]:
            styles.setdefault(row["label"], []).append(row)
    found = []
    for label, drawn in styles.items():
        title, called = with_article(spoken(label)), drawn[0]["called"] + drawn[0]["tagged"]
        called = [*called[:1] * max(1, len(called) - 1), *called[1:]]  # the label is half of what is asked
        found += [Question(f"an emoji of {title}", _asked(PLAIN, called, drawn[0]["group"]))] * plain
        found += [Question(f"{title} in {row['style']} style", _asked(STYLED, called, row["group"], row["style"]))
                  for row in drawn]
    return [*found, *[Question("", ("",))] * (len(found) // 50)]


def _asked(forms: Sequence[str], words: Sequence[str], group: str, style: str = "") -> tuple[str, ...]:
    """Names of things are counted ("a car"); of faces and symbols people say what they are like ("happy")."""
    nouns = {word: with_article(word) if group in THINGS else word for word in words}
    return tuple(form.format(word=word, noun=nouns[word], style=style) for word in words for form in forms)
