"""Prompts as hidden states of a text encoder."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .chunks import encode_chunks, split, warn_of_loss
from .learned_words import words_of
from .remembered import remembered
from .syntax import parse

Prompt = str | list[str] | None


def encode(
    tokenizer: Any, text_encoder: Any, prompts: list[str], clip_skip: int | None = None, length: int | None = None
) -> Tensor:
    """[B, L, C] the hidden states of `prompts`, cut and padded to L tokens.

    Args:
        clip_skip: take the states that many layers before the last, through the final norm.
        length: L; by default as many as the encoder has positions.
    """
    tokens = tokenized(tokenizer, prompts, length or tokenizer.model_max_length)
    mask = tokens.attention_mask if _masked(text_encoder) else None
    return _states(text_encoder, tokens.input_ids, mask, clip_skip)


def tokenized(tokenizer: Any, prompts: list[str], length: int) -> Any:
    """What the tokenizer makes of `prompts`, each cut and padded to `length` tokens; warns of what is lost."""
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    for row, mask, words in zip(tokens.input_ids, tokens.attention_mask, words_of(tokenizer, prompts), strict=True):
        ids = [id for word in words for id in word]
        if len(ids) > length - 2:
            warn_of_loss(tokenizer, length - 2, ids[length - 2:])
        ids = [tokenizer.bos_token_id, *ids[:length - 2], tokenizer.eos_token_id]
        place = slice(len(ids)) if tokenizer.padding_side == "right" else slice(length - len(ids), length)
        row[place], mask[place] = torch.tensor(ids), 1  # words of several vectors are longer than the tokenizer knows
    return tokens


def _masked(text_encoder: Any) -> bool:
    return bool(text_encoder.config.get("use_attention_mask"))


def _states(text_encoder: Any, ids: Tensor, mask: Tensor | None, clip_skip: int | None) -> Tensor:
    return remembered(text_encoder, ids, mask, clip_skip, lambda: _encoded(text_encoder, ids, mask, clip_skip))


def _encoded(text_encoder: Any, ids: Tensor, mask: Tensor | None, clip_skip: int | None) -> Tensor:
    ids, mask = ids.to(text_encoder.device), None if mask is None else mask.to(text_encoder.device)
    if clip_skip is None:
        return text_encoder(ids, attention_mask=mask).last_hidden_state
    output = text_encoder(ids, attention_mask=mask, output_hidden_states=True)
    if not 0 <= clip_skip < len(output.hidden_states):
        raise ValueError(f"clip_skip is {clip_skip}, and the text encoder has {len(output.hidden_states) - 1} layers")
    return text_encoder.final_norm(output.hidden_states[-(clip_skip + 1)])


def encode_pair(
    tokenizer: Any, text_encoder: Any, prompt: Prompt, negative_prompt: Prompt, images_per_prompt: int, guided: bool,
    prompt_embeds: Tensor | None = None, negative_prompt_embeds: Tensor | None = None, clip_skip: int | None = None,
    dtype: torch.dtype | None = None, *, prompt_syntax: str | None = None, long_prompts: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Hidden states for what is wanted and, if `guided`, for what is not; each prompt's `images_per_prompt` times.

    Prompts or their embeddings may be given. A missing negative prompt is the empty one. What has fewer tokens is filled
    up with the empty prompt, so that both have the same L; so has a text beside embeddings that were given.

    Args:
        clip_skip: for what is wanted, take the states that many layers before the last, through the final norm. For what is not,
            they are the last layer's all the same, as in Diffusers.
        prompt_syntax: how weights are written in the prompts; see `syntax.parse`. By default there are none.
        long_prompts: read prompts to their end, in chunks as long as the encoder reads, each between its own start and end
            tokens. By default what the encoder does not read is lost, with a warning.

    Returns:
        [B · images_per_prompt, L, C] twice, or once and `None`.

    Raises:
        ValueError: no prompts; negative prompts of another number, or embeddings of another shape, than the prompts';
            `clip_skip` beyond the encoder's layers; see also `syntax.parse`.
    """
    positions = tokenizer.model_max_length
    given = [prompt_embeds, negative_prompt_embeds if guided else None]
    texts = [None if prompt_embeds is not None else texts_of("prompt", prompt),
             None if given[1] is not None or not guided else texts_of("negative_prompt", negative_prompt)]
    count = len(prompt_embeds) if prompt_embeds is not None else len(texts[0] or ())
    if texts[1] is not None and len(texts[1]) not in (1, count):
        raise ValueError(f"{len(texts[1])} negative prompts for {count} prompts: give one, or one for each")
    length = positions
    if prompt_embeds is not None:
        length = prompt_embeds.shape[1]
    elif given[1] is not None and given[1].shape[1] % positions == 0:
        length = given[1].shape[1]
    if texts[1] is not None and length > positions and length % positions:
        raise ValueError(f"prompt_embeds have {length} tokens, and a negative prompt, in chunks of {positions}, cannot: "
                         "give negative_prompt_embeds")
    found: list[Tensor | None]
    skips = (clip_skip, None)
    if prompt_syntax is None and not long_prompts and length <= positions:
        found = [None if one is None else encode(tokenizer, text_encoder, one, skip, length)
                 for one, skip in zip(texts, skips, strict=True)]
    else:
        chunks = [None if one is None else [split(tokenizer, parse(text, prompt_syntax), long_prompts)
                                            for text in one] for one in texts]
        most = max([len(one) for side in chunks for one in side or ()] + [length // positions])
        found = [None if side is None else encode_chunks(
            tokenizer, functools.partial(_states, text_encoder, clip_skip=skip), side, most, prompt_syntax, _masked(text_encoder))
            for side, skip in zip(chunks, skips, strict=True)]
    wanted, unwanted = (one if one is not None else other for one, other in zip(given, found, strict=True))
    assert wanted is not None
    if unwanted is not None and texts[1] is not None:
        unwanted = unwanted.expand(count, -1, -1)  # the same text is encoded once
    if unwanted is not None and unwanted.shape != wanted.shape:
        raise ValueError(f"the prompts' embeddings are {list(wanted.shape)} and the negative ones {list(unwanted.shape)}: "
                         "they must have one shape")

    def ready(embeds: Tensor) -> Tensor:
        return embeds.to(dtype or embeds.dtype).repeat_interleave(images_per_prompt, dim=0)

    return ready(wanted), None if unwanted is None else ready(unwanted)


def texts_of(what: str, given: Prompt) -> list[str]:
    """The texts of a call's argument `what`; of no negative prompt, the empty text."""
    if given is None and what == "negative_prompt":
        given = ""
    texts = [given] if isinstance(given, str) else given
    if not texts:
        raise ValueError(f"{what} is {given!r}: give a text, or a list of at least one")
    return texts
