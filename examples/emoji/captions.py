"""Captions of one picture: its label, what else people call it, with and without the style."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from labels import Emoji

MOST = 14
"""Captions of one picture at most."""

MANY = 5
"""A tag that more labels than this share does not say which of them is meant."""

MANY_HEADS = 24
"""The same for the noun of a label: every "... cat" is a cat, but of a hundred faces none is "the face"."""

_ENDS = {"with", "of", "in", "on", "and", "for", "at", "without", "behind", "over", "to", "from", "under", "beneath", "holding",
         "facing", "in", "taking", "playing", "blowing", "tipping", "gesturing", "wearing", "feeding"}
_PLURAL = {"people", "men", "women", "feet", "teeth", "mice", "children"}
_SINGULAR = {"gas", "lens", "aries", "canvas", "series", "christmas", "gymnastics", "pants"}
_THINGS = {"animals-nature", "food-drink", "travel-places", "activities", "objects"}


def spoken(label: str) -> str:
    """A label without the punctuation of a catalogue: "man: beard" is "man with beard"."""
    words = re.sub(r"[“”!()]", "", label.replace("’", "'").replace(" (", ", "))
    first, _, rest = words.partition(": ")
    if rest:
        words = f"{first} with {rest}" if rest.split()[-1] in ("hair", "beard") else f"{first}, {rest}"
    return words


def head_of(phrase: str) -> str:
    """The noun of a phrase: its last word before "with", "of" or the like."""
    words = phrase.split(",")[0].split()
    end = next((place for place, word in enumerate(words) if place and word in _ENDS), len(words))
    return words[end - 1]


def is_plural(phrase: str) -> bool:
    head = head_of(phrase).lower()
    return head in _PLURAL or (head.endswith("s") and not head.endswith(("ss", "us", "is", "'s")) and head not in _SINGULAR)


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an" by its sound; plurals stay bare."""
    if is_plural(phrase):
        return phrase
    first = re.split(r"[\s\-,]", phrase)[0]
    spelled = first.isupper() and len(first) <= 3 and first not in ("NEW", "UP")  # "SOS" is "ess oh ess"
    if spelled:
        vowel = first[0] in "AEFHILMNORSX"
    elif first[0].isdigit():
        vowel = first[0] == "8" or first.startswith(("11", "18"))
    else:
        low = first.lower()
        vowel = low.startswith(("hour", "honest", "heir")) or (
            low[0] in "aeiou" and not low.startswith(("uni", "eu", "uk", "use", "one", "uto")))
    return f"{'an' if vowel else 'a'} {phrase}"


def shares_of(emoji: Iterable[Emoji]) -> Counter[str]:
    """How many labels have a word, as a tag or in the label itself."""
    return Counter(word for one in emoji for word in {*one.tags, *spoken(one.label).split(), spoken(one.label)})


def stands_alone(tag: str, shares: Mapping[str, int], most: int = MANY) -> bool:
    """Whether a tag may be all that a caption says of a picture.

    "face" is a tag of a hundred emoji: a caption "face" would ask the model for their mean, and whoever types it
    means none of them. "squirrel" is a tag of one, the chipmunk, and has to find it.
    """
    return shares[tag] <= most


def synonyms_of(emoji: Emoji, shares: Mapping[str, int]) -> list[str]:
    """What else people may call it, that tells it from most others: first its noun, then its rarest tags."""
    label = spoken(emoji.label).lower()
    found = []
    if emoji.group == "animals-nature" and label.endswith(" face"):
        found.append(label.removesuffix(" face"))
    head = head_of(label)
    if stands_alone(head, shares, MANY_HEADS):
        found.append(head)
    found += sorted((tag for tag in emoji.tags if stands_alone(tag, shares)), key=lambda tag: (shares[tag], tag))
    return [word for word in dict.fromkeys(found) if word != label and word not in (f"{label}s", f"{head}s")]


def captions_of(emoji: Emoji, style: str, shares: Mapping[str, int]) -> list[str]:
    """The captions of one picture, always the same, at most `MOST`: about half of them name the style."""
    label = spoken(emoji.label)
    a_label = with_article(label)
    captions = [f"{a_label} in {style} style", f"{label}, {style} style", f"an emoji of {a_label}", f"{style} emoji of {a_label}",
                f"an image of {a_label} in {style} style", label]
    synonyms = synonyms_of(emoji, shares)[:3]
    for place, word in enumerate(synonyms):
        thing = with_article(word) if emoji.group in _THINGS else word
        captions += [f"{thing} in {style} style", (f"an emoji of {thing}", f"{word}, {style} style")[place % 2]]
    captions += [f"{label} {word}, {style} style" for word in [*synonyms[:1], *_shared(emoji, shares)[:1]]]
    return list(dict.fromkeys(captions))[:MOST]


def _shared(emoji: Emoji, shares: Mapping[str, int]) -> Sequence[str]:
    """Tags that need the label beside them, the rarest first."""
    known = set(spoken(emoji.label).lower().split())
    return sorted((tag for tag in emoji.tags if tag not in known and not stands_alone(tag, shares)),
                  key=lambda tag: (shares[tag], tag))
