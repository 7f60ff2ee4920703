"""Prompts longer than the text encoder reads, and weighted ones: in chunks that are encoded on their own and joined."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .syntax import Clause

LOOK_BACK = 20
"""A chunk ends at a comma rather than at its border, if there is one among this many of its last tokens."""

_log = logging.getLogger(__name__)
States = Callable[[Tensor, Tensor | None], Tensor]


class Token(NamedTuple):
    """A token's id, what it counts, and the number of the part of the clause that it comes from."""

    id: int
    weight: float
    part: int


class Chunk(NamedTuple):
    """At most as many tokens as the text encoder reads, those of start and end not counted; and what they count together."""

    tokens: tuple[Token, ...] = ()
    weight: float = 1.0


def split(tokenizer: Any, clauses: Iterable[Clause], whole: bool) -> list[Chunk]:
    """The chunks of a prompt: each clause begins a new one.

    Args:
        whole: a clause that is too long goes on in further chunks; else its end is lost, and a warning names it.
    """
    room, chunks = tokenizer.model_max_length - 2, []
    commas = set(tokenizer(",", add_special_tokens=False).input_ids)
    for clause in clauses:
        tokens = [Token(id, weight, number) for number, (text, weight) in enumerate(clause.parts)
                  for id in tokenizer(text, add_special_tokens=False).input_ids]
        rest = tokens
        while len(rest) > room and whole:
            ends = [end for end in range(room, max(room - LOOK_BACK, 0), -1) if rest[end - 1].id in commas]
            end = ends[0] if ends else room
            chunks.append(Chunk(tuple(rest[:end]), clause.weight))
            rest = rest[end:]
        if len(rest) > room:
            warn_of_loss(tokenizer, room, [token.id for token in rest[room:]])
        chunks.append(Chunk(tuple(rest[:room]), clause.weight))
    return chunks


def warn_of_loss(tokenizer: Any, room: int, ids: list[int]) -> None:
    """Say which words of a prompt the text encoder does not read."""
    _log.warning("the text encoder reads %d tokens; this end of the prompt is lost: %r", room, tokenizer.decode(ids).strip())


def encode_chunks(
    tokenizer: Any, states: States, prompts: list[list[Chunk]], count: int, syntax: str | None, masked: bool = False,
) -> Tensor:
    """[B, count · L, D] the hidden states of the chunks of each prompt, filled up with empty chunks and joined.

    Weights w change the hidden states z of a chunk by the rule of the syntax that they were written in:

    - "a1111" (its wiki, "Attention/emphasis"; the web UI's default "Original"): z' = w·z, and then all of z' is scaled so that
      it has the mean of z. The mean is that of one chunk of one prompt, so that a batch does not change a picture.
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
    for chunk, shares in plan:
        weights = torch.ones(length, 1, dtype=torch.float32, device=encoded.device)
        weights[1:len(chunk.tokens) + 1, 0] = torch.tensor([token.weight for token in chunk.tokens])
        total = math.fsum(shares.values())
        mixed = encoded[next(iter(shares))] if len(shares) == 1 else sum(
            (encoded[number].float() * (share / total) for number, share in shares.items()), torch.zeros(()))
        if chunk.weight != 1 or bool((weights != 1).any()):
            mixed = _weighted(mixed.float(), weights, chunk.weight, encoded[empty].float(), syntax)
        joined.append(mixed.to(encoded.dtype))
    return torch.stack(joined).unflatten(0, (len(prompts), count)).flatten(1, 2)


def _weighted(z: Tensor, weights: Tensor, whole: float, empty: Tensor, syntax: str | None) -> Tensor:
    if syntax == "a1111":
        changed = z * weights
        return changed * (z.mean() / changed.mean())
    return empty + whole * weights * (z - empty)
