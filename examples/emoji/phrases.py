"""Labels as people say them: without a catalogue's punctuation, with the right article."""

from __future__ import annotations

import re

_PEOPLE = {"person", "man", "woman", "people", "men", "women"}
_PLURAL = {"people", "men", "women", "feet", "teeth", "mice", "children", "skis"}
_SINGULAR = {"gas", "lens", "canvas", "series", "rhinoceros"}
_NOUN_ENDS = {
    "with", "of", "in", "on", "and", "for", "at", "without", "behind", "over", "to", "from", "under", "showing", "holding",
}
# nouns of which there is no "a", and labels that are no nouns
_UNCOUNTED = {
    "aquarius", "aries", "arts", "bacon", "badminton", "bald", "bowling", "bread", "broccoli", "butter", "camping", "cancer",
    "capricorn", "clothes", "coffee", "construction", "cooking", "coral", "corn", "customs", "divide", "dizzy", "dna", "fire",
    "fog", "foggy", "food", "fruit", "garlic", "gemini", "hockey", "ice", "information", "lacrosse", "laughing", "leo",
    "libra", "lipstick", "liquid", "littering", "locked", "luggage", "milk", "minus", "money", "multiply", "oden",
    "ophiuchus", "pisces", "plus", "pong", "poo", "popcorn", "prohibited", "racing", "rail", "rice", "sagittarius", "sake",
    "salt", "scorpio", "smoking", "soap", "spaghetti", "star-struck", "sushi", "taurus", "tea", "tennis", "thread",
    "unlocked", "virgo", "voltage", "vomiting", "water", "weather", "wine", "wood", "worship", "yarn", "zzz",
}
_NAMES = ("Santa", "Mrs.", "Mx", "Tokyo", "Statue", "mount", "no ", "rolling on", "thumbs", "map of")


def spoken(label: str) -> str:
    """A label in the words of a caption: "man: beard" is "man with beard", "keycap: 3" is "keycap 3"."""
    words = re.sub(r"[“”!()]", "", label.replace("’", "'").replace(" (", ", "))
    first, _, rest = words.partition(": ")
    if not rest:
        return words
    if rest == "bald":
        return f"bald {first}"
    if rest.endswith(("hair", "beard")):
        return f"{first} with {rest}"
    several = rest.split(", ")  # "family: man, woman, boy"
    return f"{first} {rest}" if len(several) == 1 else f"{first} of {', '.join(several[:-1])} and {several[-1]}"


def head_of(phrase: str) -> str:
    """The noun of a phrase: the last word before "with", "of" or the like; "apple" of "red apple"."""
    words = phrase.split(",")[0].split()
    end = next((place for place, word in enumerate(words) if place and word in _NOUN_ENDS), len(words))
    return words[end - 1].lower()


def is_plural(phrase: str) -> bool:
    """Whether the phrase is about several things: "chopsticks", "women with bunny ears"."""
    first = phrase.split()[0].lower()
    head = first if first in _PEOPLE else head_of(phrase)
    return head in _PLURAL or (head.endswith("s") and not head.endswith(("ss", "us", "is", "'s")) and head not in _SINGULAR)


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an", as it is spoken: "a unicorn", "an hourglass", "an SOS button", "chopsticks", "bread"."""
    head = head_of(phrase)
    if (is_plural(phrase) or phrase.startswith(_NAMES) or head in _UNCOUNTED or head[0].isdigit()
            or head.endswith(("o'clock", "-thirty"))):
        return phrase
    return f"{'an' if _starts_with_vowel(re.split(r'[ ,-]', phrase)[0]) else 'a'} {phrase}"


def _starts_with_vowel(word: str) -> bool:
    if word[0].isdigit():
        return word.startswith(("8", "11", "18"))
    if len(word) == 1 or (word.isupper() and len(word) <= 3 and word not in ("NEW", "UP")):
        return word[0].upper() in "AEFHILMNORSX"  # spelled: "SOS" is "ess oh ess", and "x-ray" "ex ray"
    low = word.lower()
    return low.startswith(("hour", "honest", "heir")) or (
        low[0] in "aeiou" and not low.startswith(("uni", "eu", "ewe", "uk", "use", "one", "uto")))
