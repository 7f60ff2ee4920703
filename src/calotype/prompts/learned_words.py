"""Words that were added to a tokenizer: which there are, and how texts are read so that each has all its vectors."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import Any

Word = tuple[int, ...]
"""The ids of a word's tokens."""


def added_tokens(tokenizer: Any) -> list[str]:
    """The tokens that are not of the vocabulary, nor special."""
    own = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    found = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items()}
    return [token for id, token in found.items() if id >= tokenizer.vocab_size and token not in own]


def tokens_of(word: str, added: Collection[str]) -> list[str]:
    """The tokens of a word, one for each vector: `word`, `word_1`, …"""
    tokens: list[str] = []
    while (token := f"{word}_{len(tokens)}" if tokens else word) in added:
        tokens.append(token)
    return tokens


def same_for_all(tokenizer: Any, text: str) -> str:
    """What a tokenizer makes of a text before it looks for words in it: all that it cannot tell apart has one such form.

    CLIP's composes letters and their accents, makes all white space one space, and knows no capitals.
    """
    if hasattr(tokenizer, "normalized"):
        return str(tokenizer.normalized(text))
    if hasattr(tokenizer, "backend_tokenizer"):  # transformers'
        normalizer = tokenizer.backend_tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def words_of(tokenizer: Any, texts: Sequence[str]) -> list[list[Word]]:
    """The words of each text, without the tokens of start and end. An added word has the tokens of all its vectors.

    Only the tokenizer knows how a word may be written (its letters' case, their composition). So words are found by their
    ids in what it returns, and no text is changed before a syntax of weights has read it.
    """
    several, added = _of_several_vectors(tokenizer), set(tokenizer.added_tokens_decoder)
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return [_words(tokenizer, ids, several, added) for ids in rows]


def expand_tokens(tokenizer: Any, prompt: str) -> str:
    """A prompt with every added word of several vectors written out as its tokens: `word` as `word word_1 word_2`.

    What is written out already stays.
    """
    several = _of_several_vectors(tokenizer)
    if not several:
        return prompt
    read = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = read["input_ids"], read["offset_mapping"]
    pieces, done = [], 0
    for at, end, word in _steps(ids, several):
        if word and end == at + 1:
            start, after = places[at]
            pieces += [prompt[done:start], " ".join(tokenizer.convert_ids_to_tokens(list(word)))]
            pieces += [" "] if prompt[after:after + 1].isdigit() else []  # or it would be a part of the last token's number
            done = after
    return "".join(pieces) + prompt[done:]


def _of_several_vectors(tokenizer: Any) -> dict[int, Word]:
    """The words that have several, by the id of the first."""
    added = dict.fromkeys(added_tokens(tokenizer))
    words = (tokens for word in added if len(tokens := tokens_of(word, added)) > 1)
    return {ids[0]: tuple(ids) for ids in map(tokenizer.convert_tokens_to_ids, words)}


def _steps(ids: Sequence[int], several: dict[int, Word]) -> Iterator[tuple[int, int, Word | None]]:
    """Each token, or the tokens of a word that is written out: its first and last place, and the word if it has several."""
    at = 0
    while at < len(ids):
        word = several.get(ids[at])
        end = at + (len(word) if word and tuple(ids[at:at + len(word)]) == word else 1)
        yield at, end, word
        at = end


def _words(tokenizer: Any, ids: Sequence[int], several: dict[int, Word], added: Collection[int]) -> list[Word]:
    words: list[list[int]] = []
    unfinished = False  # whether the last word goes on: a word's last token ends in "</w>"
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    for at, _, word in _steps(ids, several):
        own = ids[at] in added
        if unfinished and not own:
            words[-1].append(ids[at])
        else:
            words.append([*(word or (ids[at],))])
        unfinished = not own and not tokens[at].endswith("</w>")
    return [tuple(word) for word in words]
