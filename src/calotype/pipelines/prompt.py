"""Prompts as hidden states of a text encoder."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
Prompt = str | list[str] | None


def encode(tokenizer: Any, text_encoder: Any, prompts: list[str], clip_skip: int | None = None) -> Tensor:
    """[B, L, C] the hidden states of `prompts`, cut and padded to the encoder's positions.

    Args:
        clip_skip: take the states that many layers before the last, through the final norm.
    """
    length = tokenizer.model_max_length
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    _warn_of_lost_words(tokenizer, prompts, length)
    device = text_encoder.device
    uses_mask = text_encoder.config.get("use_attention_mask")
    mask = tokens.attention_mask.to(device) if uses_mask else None
    if clip_skip is None:
        return text_encoder(tokens.input_ids.to(device), attention_mask=mask).last_hidden_state
    output = text_encoder(tokens.input_ids.to(device), attention_mask=mask, output_hidden_states=True)
    if not 0 <= clip_skip < len(output.hidden_states):
        raise ValueError(f"clip_skip is {clip_skip}, and the text encoder has {len(output.hidden_states) - 1} layers")
    return text_encoder.final_norm(output.hidden_states[-(clip_skip + 1)])


def _warn_of_lost_words(tokenizer: Any, prompts: list[str], length: int) -> None:
    for ids in tokenizer(prompts).input_ids:
        if len(ids) > length:
            lost = tokenizer.decode(ids[length - 1 : -1]).strip()
            _log.warning("the text encoder reads %d tokens; this end of the prompt is lost: %r", length - 2, lost)


def encode_pair(
    tokenizer: Any, text_encoder: Any, prompt: Prompt, negative_prompt: Prompt, images_per_prompt: int, guided: bool,
    prompt_embeds: Tensor | None = None, negative_prompt_embeds: Tensor | None = None, clip_skip: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Hidden states for what is wanted and, if `guided`, for what is not; each prompt's `images_per_prompt` times.

    Prompts or their embeddings may be given. A missing negative prompt is the empty one.

    Returns:
        [B · images_per_prompt, L, C] twice, or once and `None`.
    """
    if prompt_embeds is None:
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        prompt_embeds = encode(tokenizer, text_encoder, prompts, clip_skip)
    count = len(prompt_embeds)
    if guided and negative_prompt_embeds is None:
        negative = negative_prompt if negative_prompt is not None else ""
        negatives = [negative] if isinstance(negative, str) else negative
        if len(negatives) not in (1, count):
            raise ValueError(f"{len(negatives)} negative prompts for {count} prompts: give one, or one for each")
        # the same text is encoded once
        negative_prompt_embeds = encode(tokenizer, text_encoder, negatives, clip_skip)
        negative_prompt_embeds = negative_prompt_embeds.expand(count, -1, -1)

    def ready(embeds: Tensor) -> Tensor:
        return embeds.to(dtype or embeds.dtype).repeat_interleave(images_per_prompt, dim=0)

    return ready(prompt_embeds), ready(negative_prompt_embeds) if guided and negative_prompt_embeds is not None else None
