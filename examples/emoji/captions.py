"""Captions of a picture: its label and what else people call it, with the style and without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from labels import Emoji
from phrases import head_of, spoken, with_article

MOST = 16
"""Captions of one picture at most."""

RARE = 5
"""So many labels may share a tag that is a caption by itself."""

COMMON_NOUN = 24
"""So many labels may share a noun that is one: every "... heart" is a heart."""

THINGS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")


class Vocabulary:
    """What the words of all labels and tags say about each of them. Made from all emoji, whichever are drawn."""

    def __init__(self, emoji: Sequence[Emoji]) -> None:
        self.shares: Counter[str] = Counter()
        self.nouns: Counter[str] = Counter()
        self.owners: dict[str, set[str]] = {}
        for one in emoji:
            label = spoken(one.label).lower()
            self.shares.update({*map(_plain, one.tags), *label.split()})
            self.nouns[head_of(label)] += 1
            for title in (label, *map(_plain, one.names)):
                self.owners.setdefault(title, set()).add(one.group)
        self.meant = self._meant(emoji)

    def _meant(self, emoji: Sequence[Emoji]) -> dict[str, str]:
        """Word -> the label of the emoji that is meant by it: the one that is called so, then the one that has it for a short
        name, a noun, a tag; of several the one with the shortest label, then the first."""
        best: dict[str, tuple[int, int, str]] = {}
        for one in emoji:
            known = _Words.of(one, self)
            for kind, words in enumerate(([spoken(one.label)], known.names, known.nouns, known.alone)):
                for word in words:
                    rank = kind, len(one.label.split()), one.label
                    if word.lower() not in best or rank[:2] < best[word.lower()][:2]:
                        best[word.lower()] = rank
        return {word: label for word, (_, _, label) in best.items()}

    def tag_stands_alone(self, tag: str, group: str) -> bool:
        """Whether a tag may be all that a caption says of a picture.

        "face" is a tag of a hundred emoji: a caption "face" asks the model for their mean, and who types it means none
        of them. "squirrel" is the tag of one, the chipmunk, and has to find it; so has "flower", which a dozen share that
        are all flowers. But a tag that another emoji is called by is that one's: "rocket" is not the astronaut.
        """
        return tag not in self.owners and tag[0].isalnum() and (
            self.shares[tag] <= RARE or (group in THINGS and tag in self.nouns and self.shares[tag] <= COMMON_NOUN))

    def noun_stands_alone(self, noun: str, group: str) -> bool:
        """The same for the noun of a label: "cat" for a black cat; but no "dog" for a hot dog, since dogs are no food."""
        return noun.isalpha() and self.nouns[noun] <= COMMON_NOUN and group in self.owners.get(noun, {group})


def nouns_of(emoji: Emoji, vocabulary: Vocabulary) -> list[str]:
    """What an emoji is a kind of: "cat" of a cat face, "apple" of a red apple, "mechanic" of a woman mechanic."""
    label = spoken(emoji.label).lower()
    found = [label.removesuffix(" face")] if emoji.group == "animals-nature" else []
    head = head_of(label)
    acting = emoji.group == "people-body" and "ing " in f"{label} "  # "person gesturing OK": no noun at the end
    if not acting and vocabulary.noun_stands_alone(head, emoji.group):
        found.append(head)
    return [word for word in dict.fromkeys(found) if word != label]


@dataclass(frozen=True)
class _Words:
    """What an emoji is called besides its label: nouns, then short names, then tags, of which `alone` may be a caption alone."""

    nouns: list[str]
    names: list[str]
    tags: list[str]
    alone: list[str]

    @classmethod
    def of(cls, emoji: Emoji, vocabulary: Vocabulary) -> _Words:
        plain, nouns = spoken(emoji.label).lower(), nouns_of(emoji, vocabulary)
        names = [name for name in map(_plain, emoji.names)
                 if sorted(name.split()) != sorted(plain.split()) and name != f"{plain} face"]
        tags = sorted({_plain(tag) for tag in emoji.tags} - {plain, *plain.split(), *nouns, *names, f"{head_of(plain)}s"},
                      key=lambda tag: (vocabulary.shares[tag], tag))
        alone = [tag for tag in tags if vocabulary.tag_stands_alone(tag, emoji.group)]
        if emoji.subgroup.startswith("animal-"):  # tags of animals are nouns: squirrel, puppy, hare
            names += [tag for tag in alone if tag.isalpha() and not tag.endswith(("ing", "ed"))]
        return cls(nouns, list(dict.fromkeys(names)), tags, alone)


def words_of(emoji: Emoji, vocabulary: Vocabulary) -> dict[str, list[str]]:
    """What one types who looks for an emoji, as columns of the metadata: all its `words`; of these those by which it is meant and
    none of the others that have them ("car" is the automobile): what it is `called`, its label first, and how it is `tagged`."""
    known = _Words.of(emoji, vocabulary)
    called = list(dict.fromkeys([spoken(emoji.label), *known.names, *known.nouns]))
    tagged = [tag for tag in known.alone if tag not in called]
    mine = [[word for word in words if vocabulary.meant[word.lower()] == emoji.label] for words in (called, tagged)]
    return {"words": called + tagged, "called": mine[0], "tagged": mine[1]}


def captions_of(emoji: Emoji, style: str, vocabulary: Vocabulary) -> list[str]:
    """The captions of one picture: 6 to `MOST`, always the same. Most have the label, and most the style."""
    label, in_style = spoken(emoji.label), f"in {style} style"
    captions = [f"{with_article(label)} {in_style}", f"{label}, {style} style", f"an emoji of {with_article(label)}",
                f"{style} emoji of {with_article(label)}", f"an image of {with_article(label)} {in_style}", label]
    known = _Words.of(emoji, vocabulary)
    nouns, alone = known.nouns, known.alone
    names = list(dict.fromkeys([*nouns, *known.names]))[:3]
    for place, name in enumerate(names):
        noun = with_article(name) if name in nouns or emoji.group in THINGS else name
        captions += [f"{noun} {in_style}", (f"an emoji of {noun}", f"an image of {noun} {in_style}", name)[place]]
    captions += [f"{tag}, {style} style" for tag in islice((tag for tag in alone if tag not in names), 2)]
    beside = [*alone[:1], *(tag for tag in known.tags if tag not in alone)]
    captions += [f"{label} {tag}, {style} style" for tag in beside[:2]]
    return list(dict.fromkeys(captions))[:MOST]


def _plain(words: str) -> str:
    return words.replace("’", "'").lower()
