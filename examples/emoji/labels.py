"""The emoji and what they are called, from emojibase; and which icon of a set draws which emoji."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from calotype.words import nearest, some

LEFT_OUT = ("component", "flags")
"""Groups without pictures of their own (skin tones, hair) and of flags, which no small model draws and few prompts name."""


@dataclass(frozen=True)
class Emoji:
    """One emoji: its label ("red apple"), hexcode ("1F34E"), tags, short names ("apple"), the keys of group and subgroup."""

    label: str
    hexcode: str
    tags: tuple[str, ...]
    names: tuple[str, ...]
    group: str
    subgroup: str

    @property
    def name(self) -> str:
        """The label as a file name: "red-apple"."""
        return name_of(self.label)


def name_of(label: str) -> str:
    """A label as icon sets write it: lower case, no accents, no punctuation, spaces as hyphens."""
    label = label.replace("#", "pound").replace("*", "asterisk")  # else two keycaps have the same name
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", label) if not unicodedata.combining(letter))
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['’.,!“”():&]", "", plain.lower())).strip("-")


def read_emoji(data: Sequence[Mapping[str, Any]], messages: Mapping[str, Any],
               shortcodes: Sequence[Mapping[str, str | list[str]]] = ()) -> list[Emoji]:
    """The emoji of emojibase's `data.json` and `messages.json`, without variants in skin tones and without `LEFT_OUT`.

    `shortcodes` are its lists of what one types for an emoji (`:apple:`), the source of short names.
    Skin tones would show the same 330 people and hands six times, and be half of all pictures; only the yellow ones are taken.
    """
    groups = {row["order"]: row["key"] for row in messages["groups"]}
    subgroups = {row["order"]: row["key"] for row in messages["subgroups"]}
    found = [Emoji(row["label"], row["hexcode"], tuple(row.get("tags", ())), _names(row["hexcode"], shortcodes),
                   groups[row["group"]], subgroups[row["subgroup"]])
             for row in data if groups.get(row.get("group"), LEFT_OUT[0]) not in LEFT_OUT]
    twice = [name for name, count in Counter(one.name for one in found).items() if count > 1]
    if twice:
        raise ValueError(f"several emoji have the same name, and would have the same file: {some(twice)}")
    return found


def _names(hexcode: str, shortcodes: Sequence[Mapping[str, str | list[str]]]) -> tuple[str, ...]:
    """Short names that are words: no codes (`kiss_mw`, `male-cook`), no numbers (`snowman2`), no sentences."""
    listed = [known.get(hexcode, []) for known in shortcodes]
    names = [name for entry in listed for name in ([entry] if isinstance(entry, str) else entry)]
    words = "[a-z]+|[a-z]{3,}(_[a-z]{3,}){1,2}"
    return tuple(dict.fromkeys(name.replace("_", " ") for name in names
                               if re.fullmatch(words, name) and not name.startswith(("family", "couple"))))


def select(emoji: Sequence[Emoji], groups: Iterable[str] = (), subgroups: Iterable[str] = (),
           labels: Iterable[str] = ()) -> list[Emoji]:
    """The emoji of any of the groups, subgroups or labels (patterns like `*cat*` too); all where none is given.

    Raises:
        ValueError: a word that selects nothing.
    """
    wanted = [*(("group", word) for word in groups), *(("subgroup", word) for word in subgroups),
              *(("label", word) for word in labels)]
    for field, word in wanted:
        known = list(dict.fromkeys(getattr(one, field) for one in emoji))
        if not any(fnmatchcase(have, word) for have in known):
            raise ValueError(f"no {field} is {word!r}{nearest(word, known)} (there are {some(known)})")
    return [one for one in emoji
            if not wanted or any(fnmatchcase(getattr(one, field), word) for field, word in wanted)]


def icon_name(emoji: Emoji, icons: Mapping[str, Any], *characters: Mapping[str, str]) -> str | None:
    """The name of the icon that draws `emoji` in a set, or None.

    Args:
        icons: the set's `icons.json`.
        characters: its `chars.json` (hexcode -> name), and that of a set with the same names. They come first: labels
            change from version to version ("pouting face" is "enraged face" now), characters do not.
    """
    code = emoji.hexcode.lower()
    names = [known.get(key) for known in characters for key in (code, code.replace("-fe0f", ""))]
    return next((name for name in (*names, emoji.name) if name in icons["icons"] or name in icons.get("aliases", {})), None)


def svg_of(name: str, icons: Mapping[str, Any], size: int) -> str:
    """The SVG of an icon, `size` pixels square. What is not square is centred.

    The format (https://iconify.design/docs/types/iconify-json.html): an icon has a body and, where they are not the
    set's own, left, top, width and height; an alias is another icon, turned and mirrored.
    """
    flips, turns = [False, False], 0
    while name not in icons["icons"]:
        alias = icons["aliases"][name]
        flips = [flips[0] ^ alias.get("hFlip", False), flips[1] ^ alias.get("vFlip", False)]
        turns += alias.get("rotate", 0)
        name = alias["parent"]
    icon = icons["icons"][name]
    left, top, width, height = (icon.get(key, icons.get(key, usual)) for key, usual in
                                (("left", 0), ("top", 0), ("width", 16), ("height", 16)))
    middle = f"{left + width / 2} {top + height / 2}"
    x, y = (-1 if flip else 1 for flip in flips)
    body = icon["body"]
    if turns or any(flips):
        body = (f'<g transform="translate({middle}) rotate({turns % 4 * 90}) scale({x} {y}) '
                f'translate({-(left + width / 2)} {-(top + height / 2)})">{body}</g>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{size}" '
            f'height="{size}" viewBox="{left} {top} {width} {height}">{body}</svg>')
