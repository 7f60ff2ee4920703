"""Captions: which, how often none, and tags in any order."""

from __future__ import annotations

from collections import Counter

import pytest

from calotype.training.captions import Captions
from calotype.training.seeds import generator_for

TEXTS = ["a cat", "a tabby", "an animal"]


def drawn(captions, texts, count=2000):
    return Counter(captions(texts, generator_for(0, ticket)) for ticket in range(count))


def test_captions_are_equally_likely():
    counts = drawn(Captions(), TEXTS)
    assert set(counts) == set(TEXTS) and all(abs(count - 2000 / 3) < 80 for count in counts.values())


def test_dropout_is_as_often_as_told():
    assert abs(drawn(Captions(dropout=0.1), ["a cat"])[""] - 200) < 50
    assert drawn(Captions(dropout=1.0), ["a cat"], 50) == {"": 50}
    assert drawn(Captions(), [], 5) == {"": 5}


def test_dropout_changes_no_other_caption():
    for ticket in range(100):
        plain, dropping = (Captions(dropout=p)(TEXTS, generator_for(0, ticket)) for p in (0, 0.5))
        assert dropping in ("", plain)
    counts = drawn(Captions(dropout=0.5), TEXTS)
    assert all(abs(counts[text] - 1000 / 3) < 70 for text in TEXTS)


def test_tags_are_shuffled_but_for_the_first():
    counts = drawn(Captions(shuffle_tags=True, keep_tags=1), ["1girl, red hair,  hat , sea,"], 600)
    assert len(counts) == 6 and all(50 < count < 150 for count in counts.values())
    assert all(text.startswith("1girl, ") and sorted(text.split(", ")) == ["1girl", "hat", "red hair", "sea"] for text in counts)


def test_a_constant_caption():
    captions = Captions(constant="a photo of sks dog")
    assert drawn(captions, TEXTS, 5) == {"a photo of sks dog": 5} == drawn(captions, [], 5)
    assert captions.of(TEXTS) == ["a photo of sks dog"] and captions.first([]) == "a photo of sks dog"
    assert set(drawn(Captions(constant=["a", "b"]), TEXTS, 50)) == {"a", "b"}


def test_the_first_where_nothing_is_drawn():
    assert Captions(dropout=1.0).first(TEXTS) == "a cat" and Captions().first([]) == ""


@pytest.mark.parametrize(("arguments", "word"), [
    ({"dropout": 1.5}, "dropout is 1.5"), ({"keep_tags": 2}, "keep_tags is 2"), ({"constant": []}, "constant is an empty list"),
    ({"shuffle_tags": True, "keep_tags": -1}, "keep_tags is -1")])
def test_bad_input(arguments, word):
    with pytest.raises(ValueError, match=word):
        Captions(**arguments)
