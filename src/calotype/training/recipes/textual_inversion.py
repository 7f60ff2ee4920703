"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): a new word whose embedding is all that is trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from ...files import staged_folder
from ...prompts.learned_words import added_tokens, tokens_of
from ..captions import Captions
from ..settings import Data
from .data import open_pictures
from .text_guided import TextGuided, TextGuidedSettings

TEMPLATES = {
    "object": ("a photo of {}", "a picture of {}", "an image of {}", "{}", "a drawing of {}", "one {}", "a large {}",
               "a small {}", "a close-up of {}", "the {}"),
    "style": ("a picture in the style of {}", "a drawing in the style of {}", "an image in the style of {}",
              "in the style of {}", "a painting in the style of {}", "a small picture in the style of {}", "{} style"),
}
"""What pictures without captions are captioned, by what they show of the new word (as the paper's appendix does it)."""


class TextualInversionSettings(TextGuidedSettings, Data):
    """Everything that `calotype train textual-inversion` is told."""

    placeholder_token: str = Field(description="The new word, such as <my-cat>.")
    initializer_token: str = Field(description="A word of the vocabulary that is near to it: where its embedding begins.")
    learnable_property: Literal["object", "style"] = Field("object", description="What pictures show of it.")
    num_vectors: int = Field(1, ge=1, description="How many tokens it stands for.")
    learning_rate: float = Field(5e-3, gt=0, description="The highest learning rate.")
    adam_weight_decay: float = Field(0.0, ge=0, description="Decay of the embedding.")
    caption_dropout: float = Field(0.0, ge=0, le=1, description="Share of captions left empty.")

    @model_validator(mode="after")
    def _trains_the_word(self) -> Any:
        if self.train_text_encoder:
            raise ValueError("train_text_encoder cannot be: of the text encoder, only the new word's embedding is trained")
        return self


class Learned(nn.Module):
    """A text encoder that does not change but for the embeddings of a few tokens.

    Args:
        encoder: the text encoder. tokens: [n] the ids of those tokens.
    """

    def __init__(self, encoder: nn.Module, tokens: list[int]):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("tokens", torch.tensor(tokens), persistent=False)
        self.embeddings = nn.Parameter(self._all()[tokens].clone())
        every = encoder.get_input_embeddings().weight  # type: ignore[operator]
        self._name = next(name for name, one in encoder.named_parameters() if one is every)

    tokens: Tensor

    def _all(self) -> Tensor:
        return self.encoder.get_input_embeddings().weight.detach()  # type: ignore[operator]

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Any:
        """What the encoder gives for token ids [B, L], of which a mask [B, L] may leave out some."""
        weight = self._all().index_copy(0, self.tokens, self.embeddings.to(self._all().dtype))
        return torch.func.functional_call(self.encoder, {self._name: weight}, (ids, mask))

    @torch.no_grad()
    def put(self) -> None:
        """Put the embeddings into the encoder, for those who call it without this."""
        self._all()[self.tokens] = self.embeddings.to(self._all().dtype)


class TextualInversion(TextGuided):
    """Trains the embedding of a new word."""

    Settings = TextualInversionSettings

    def trains(self) -> None:
        settings, pipeline = self.settings, self.pipeline
        near = pipeline.tokenizer(settings.initializer_token, add_special_tokens=False).input_ids
        if len(near) != 1:
            raise ValueError(f"initializer_token is {settings.initializer_token!r}, which is {len(near)} tokens of this "
                             "tokenizer; give a word that is one")
        start = pipeline.text_encoder.get_input_embeddings().weight[near].detach().repeat(settings.num_vectors, 1)
        pipeline.load_textual_inversion({settings.placeholder_token: start})
        pipeline.text_encoder.requires_grad_(False)
        words = tokens_of(settings.placeholder_token, added_tokens(pipeline.tokenizer))
        self.denoiser.text_encoder = Learned(pipeline.text_encoder, pipeline.tokenizer.convert_tokens_to_ids(words))

    def pictures(self) -> Any:
        settings = self.settings
        templates = [one.format(settings.placeholder_token) for one in TEMPLATES[settings.learnable_property]]
        return open_pictures(settings, self.size, Captions(dropout=settings.caption_dropout, constant=templates), self.factor)

    def samples(self) -> list[Any]:
        self._learned.put()
        return super().samples()

    def prompts(self) -> list[str]:
        return super().prompts() or [TEMPLATES[self.settings.learnable_property][0].format(self.settings.placeholder_token)]

    @property
    def _learned(self) -> Learned:
        assert isinstance(self.denoiser.text_encoder, Learned)
        return self.denoiser.text_encoder

    def save(self, folder: Path) -> None:
        """Write `learned_embeds.safetensors`, which `load_textual_inversion` reads, here and in Diffusers."""
        self._learned.put()
        embeddings = self._learned.embeddings.detach().cpu().contiguous()
        with staged_folder(folder) as scratch:
            save_file({self.settings.placeholder_token: embeddings}, scratch / "learned_embeds.safetensors")

    def facts(self) -> Iterable[tuple[str, str]]:
        yield from super().facts()
        yield "new word", f"{self.settings.placeholder_token}, {self.settings.num_vectors} tokens, begins as " \
                          f"{self.settings.initializer_token!r}"
