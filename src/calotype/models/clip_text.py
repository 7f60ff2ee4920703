"""The text encoder of CLIP: a causal transformer with pre-normalisation, whose hidden states Stable Diffusion reads.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020, 2.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import register_to_config
from ..outputs import Output
from .clip import ACTIVATIONS as ACTIVATIONS
from .clip import CLIPEncoder


@dataclass
class CLIPTextOutput(Output):
    """What the encoder says of B texts of L tokens: in D channels, and in P once projected. `None` is not given.

    Args:
        text_embeds: `[B, P]`, the pooled state in the space that CLIP's texts and pictures share, not normalised.
        last_hidden_state: `[B, L, D]`, after the final norm.
        pooler_output: `[B, D]`, the last hidden state at the end-of-text token.
        hidden_states: each `[B, L, D]`, before the final norm: the embeddings, then every layer's.
    """

    text_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class CLIPTextModel(CLIPEncoder):
    """CLIP's text encoder. Loads and saves the format of transformers' class of this name, old and new.

    Args:
        vocab_size, max_position_embeddings: how many tokens and positions have an embedding.
        hidden_size, intermediate_size: the channels D of the hidden states, and those inside the feed-forward parts.
        projection_dim: the channels P of `CLIPTextModelWithProjection`'s `text_embeds`.
        num_hidden_layers, num_attention_heads: the depth, and the heads, a divisor of `hidden_size`.
        hidden_act: a name in `ACTIVATIONS`.
        layer_norm_eps: added to the variance in every norm.
        attention_dropout: the fraction of attention weights dropped while training.
        initializer_range, initializer_factor: their product is the deviation of a fresh model's token embeddings.
        pad_token_id, bos_token_id: for the record; nothing depends on them.
        eos_token_id: a text is pooled at its first token of this id (its first token if there is none). The value 2,
            which configs from before 2023 have, is no vocabulary's end of text; it means the highest id in the text.

    Raises:
        ValueError: `hidden_act` is unknown, or the heads do not divide `hidden_size`.
    """

    reads = "text"

    @register_to_config
    def __init__(
        self, vocab_size: int = 49408, hidden_size: int = 512, intermediate_size: int = 2048, projection_dim: int = 512,
        num_hidden_layers: int = 12, num_attention_heads: int = 8, max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu", layer_norm_eps: float = 1e-5, attention_dropout: float = 0.0,
        initializer_range: float = 0.02, initializer_factor: float = 1.0, pad_token_id: int | None = 1,
        bos_token_id: int | None = 49406, eos_token_id: int | None = 49407,
    ) -> None:
        super().__init__()
        self.text_model = nn.ModuleDict({
            "embeddings": nn.ModuleDict({
                "token_embedding": nn.Embedding(vocab_size, hidden_size),
                "position_embedding": nn.Embedding(max_position_embeddings, hidden_size),
            }),
            "encoder": self._layers(causal=True),
            "final_layer_norm": nn.LayerNorm(hidden_size, layer_norm_eps),
        })
        if self.projects:
            self.text_projection = nn.Linear(hidden_size, projection_dim, bias=False)
        self._initialise()

    def final_norm(self, hidden: Tensor) -> Tensor:
        """The norm after the last layer, for one of `hidden_states`. "Clip skip" n is
        `final_norm(output.hidden_states[-(n + 1)])`; with n = 0 that is `last_hidden_state`."""
        return self.text_model["final_layer_norm"](hidden)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings; their `weight` is `[vocab_size, D]`."""
        return self.text_model["embeddings"].token_embedding  # type: ignore[return-value]

    @torch.no_grad()
    def resize_token_embeddings(self, vocab_size: int) -> nn.Embedding:
        """Make it `vocab_size` token embeddings: drop the last ones, or add random ones for new tokens."""
        old, config = self.get_input_embeddings(), self.config
        new = nn.Embedding(vocab_size, config.hidden_size, device=old.weight.device, dtype=old.weight.dtype)
        nn.init.normal_(new.weight, std=config.initializer_range * config.initializer_factor)
        new.weight[:old.num_embeddings] = old.weight[:vocab_size]
        new.weight.requires_grad_(old.weight.requires_grad)
        self.text_model["embeddings"].token_embedding = new
        self.register_to_config(vocab_size=vocab_size)
        return new

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        output_hidden_states: bool | None = False, return_dict: bool | None = True,
    ) -> Any:
        """Encode texts.

        Args:
            input_ids: `[B, L]`, integers below `vocab_size`, L at most `max_position_embeddings`.
            attention_mask: `[B, L]`, zero at tokens that none may attend to (Stable Diffusion gives no mask).
            position_ids: `[B, L]` or `[L]`; by default 0 … L-1.
            output_hidden_states: return `hidden_states` too.
            return_dict: return an output object, else a tuple of its fields.

        Raises:
            ValueError: more tokens than positions, or a mask of another shape than `input_ids`.
        """
        text_model: Any = self.text_model
        input_ids = input_ids.view(-1, input_ids.shape[-1])
        length, most = input_ids.shape[-1], self.config.max_position_embeddings
        if length > most:
            raise ValueError(f"the texts have {length} tokens, but the model has {most} positions; truncate them")
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise ValueError(f"attention_mask is {list(attention_mask.shape)}, but must have the shape of "
                                 f"input_ids, {list(input_ids.shape)}")
            causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
            attention_mask = causal & attention_mask[:, None, None].bool()
        if position_ids is None:
            position_ids = torch.arange(length, device=input_ids.device)
        embeddings = text_model.embeddings
        hidden = embeddings.token_embedding(input_ids) + embeddings.position_embedding(position_ids)
        states = [hidden]
        for layer in text_model.encoder.layers:
            hidden = self.run(layer, hidden, attention_mask)
            states.append(hidden)
        last, eos = self.final_norm(hidden), self.config.eos_token_id
        end = input_ids.argmax(-1) if eos == 2 else (input_ids == eos).int().argmax(-1)
        pooled = last[torch.arange(len(last), device=last.device), end]
        shown = tuple(states) if output_hidden_states else None
        output = (CLIPTextOutput(self.text_projection(pooled), last, None, shown) if self.projects
                  else CLIPTextOutput(None, last, pooled, shown))
        return output if return_dict is not False else output.to_tuple()


class CLIPTextModelWithProjection(CLIPTextModel):
    """CLIP's text encoder and its projection: gives `text_embeds` for `pooler_output` (SDXL's second text encoder)."""

    projects = True
