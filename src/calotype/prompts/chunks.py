"""Prompts longer than the text encoder reads, and weighted ones: in chunks that are encoded on their own and joined."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .learned_words import words_of
from .syntax import Clause

LOOK_BACK = 20
"""A chunk ends at a comma rather than where it is full, if there is one among this many of its last tokens."""

_log = logging.getLogger(__name__)
States = Callable[[Tensor, Tensor | None], Tensor]


class Token(NamedTuple):
    """A token's id, what it counts, the number of the part of the clause that it comes from, and its place in its word."""

    id: int
    weight: float
    part: int
    place: int
    length: int  # of its word


class Chunk(NamedTuple):
    """At most as many tokens as the text encoder reads, those of start and end not counted; and what they count together."""

    tokens: tuple[Token, ...] = ()
    weight: float = 1.0


def split(tokenizer: Any, clauses: Iterable[Clause], whole: bool) -> list[Chunk]:
    """The chunks of a prompt: each clause begins a new one.

    Args:
        whole: a clause that is too long goes on in further chunks; else its end is lost, and a warning names it. A chunk ends
            after a comma, if there is one near its end; else between two words, unless a word is longer than a chunk.
    """
    room, chunks = tokenizer.model_max_length - 2, []
    commas = {id for word in words_of(tokenizer, [","])[0] for id in word}
    for clause in clauses:
        words = words_of(tokenizer, [text for text, _ in clause.parts])
        tokens = [Token(id, weight, number, place, len(word)) for number, (_, weight) in enumerate(clause.parts)
                  for word in words[number] for place, id in enumerate(word)]
        begin = 0
        while len(tokens) - begin > room and whole:
            end = _end(tokens, begin, begin + room, commas)
            chunks.append(Chunk(tuple(tokens[begin:end]), clause.weight))
            begin = end
        if len(tokens) - begin > room:
            warn_of_loss(tokenizer, room, [token.id for token in tokens[begin + room:]])
        chunks.append(Chunk(tuple(tokens[begin:begin + room]), clause.weight))
    return chunks


def _end(tokens: Sequence[Token], begin: int, full: int, commas: Collection[int]) -> int:
    """Where a chunk ends that begins at the token `begin` and has no room for the token `full`."""
    for end in range(full, max(full - LOOK_BACK, begin), -1):
        if tokens[end - 1].id in commas:
            return end
    next = tokens[full]
    start = full - next.place
    return start if start > begin and next.length <= full - begin else full


def warn_of_loss(tokenizer: Any, room: int, ids: list[int]) -> None:
    """Say which words of a prompt the text encoder does not read."""
    _log.warning("the text encoder reads %d tokens; this end of the prompt is lost: %r", room, tokenizer.decode(ids).strip())


def encode_chunks(
    tokenizer: Any, states: States, prompts: list[list[Chunk]], count: int, syntax: str | None, masked: bool = False,
) -> Tensor:
    """[B, count · L, D] the hidden states of the chunks of each prompt, filled up with empty chunks and joined.

    Weights w change the hidden states z of a chunk by the rule of the syntax that they were written in:

    - "a1111" (its wiki, "Attention/emphasis"): z' = w·z, and then all of z' is scaled so that it has the mean magnitude of z,
      that of one chunk of one prompt: a batch does not change a picture. The web UI's "Original" restores the mean instead.
      Both come to the mean of w where tokens are alike, as in Stable Diffusion's encoder, whose states have a mean well away
      from 0. But other encoders' states cancel out in their mean: a quotient of such means is any number, of any sign.
    - "compel" (its doc/syntax.md and changelog, 1.0.0): z' = e + w·(z - e), with e the states of the empty prompt. For each
      part with w < 1, z is first blended with z_masked, in which no token may attend to that part:
      z ← (z + Σ k·z_masked) / (1 + Σ k). How k follows from w is not documented; k = tan((1 - w)·π/2), from 0 at w = 1
      to infinity at w = 0, was fitted to its numbers. A clause's weight w applies to all of its states: e + w·(z' - e).

    Args:
        states: from ids [N, L] and an attention mask or `None` to hidden states [N, L, D].
        masked: whether the text encoder is given the mask of what is not padding.
    """
    length = tokenizer.model_max_length
    rows: dict[tuple[tuple[int, ...], frozenset[int]], int] = {}  # what is encoded: ids, and the places that are hidden

    def row(chunk: Chunk, part: int | None = None) -> int:
        hidden = frozenset(1 + place for place, token in enumerate(chunk.tokens) if token.part == part)
        return rows.setdefault((tuple(token.id for token in chunk.tokens), hidden), len(rows))

    filled = [chunks + [Chunk()] * (count - len(chunks)) for chunks in prompts]
    plan: list[tuple[Chunk, dict[int, float]]] = []
    for chunk in (chunk for chunks in filled for chunk in chunks):
        shares = {row(chunk): 1.0}
        if syntax == "compel":
            less = {token.part: token.weight for token in chunk.tokens if token.weight < 1}
            shares |= {row(chunk, part): math.tan((1 - weight) * math.pi / 2) for part, weight in less.items()}
        plan.append((chunk, shares))
    empty = row(Chunk())

    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids) if masked else torch.ones_like(ids)
    for number, (said, hidden) in enumerate(rows):
        ids[number, :len(said) + 2] = torch.tensor([tokenizer.bos_token_id, *said, tokenizer.eos_token_id])
        mask[number, :len(said) + 2] = 1
        mask[number, sorted(hidden)] = 0
    encoded = states(ids, mask if masked or not mask.all() else None)

    joined: list[Tensor] = []
    largest = 1.0
    for chunk, shares in plan:
        weights = [1.0, *(token.weight for token in chunk.tokens)]
        total = math.fsum(shares.values())
        mixed = encoded[next(iter(shares))] if len(shares) == 1 else sum(
            (encoded[number].float() * (share / total) for number, share in shares.items()), torch.zeros(()))
        if chunk.weight != 1 or any(weight != 1 for weight in weights):
            largest = max(largest, abs(chunk.weight) * max(map(abs, weights)))
            weights += [1.0] * (length - len(weights))
            mixed = _weighted(mixed.float(), weights, chunk.weight, encoded[empty].float(), syntax)
        joined.append(mixed.to(encoded.dtype))
    result = torch.stack(joined)
    if largest > 1 and not bool(result.isfinite().all()) and bool(encoded.isfinite().all()):
        raise ValueError(f"a weight of {largest:g} in a prompt leads to hidden states beyond what {result.dtype} holds")
    return result.unflatten(0, (len(prompts), count)).flatten(1, 2)


def _weighted(z: Tensor, weights: list[float], whole: float, empty: Tensor, syntax: str | None) -> Tensor:
    if syntax == "a1111":
        most = max(map(abs, weights))  # what all weights have in common cancels out; without it, none is beyond float32
        changed = z * z.new_tensor([weight / most for weight in weights])[:, None]
        before, after = z.abs().sum(), changed.abs().sum()
        return changed * torch.where(after > 0, before / after, 1.0)
    return empty + z.new_tensor([whole * weight for weight in weights])[:, None] * (z - empty)
