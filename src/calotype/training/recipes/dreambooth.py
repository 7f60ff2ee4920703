"""DreamBooth (Ruiz et al. 2023, arXiv:2208.12242): a subject, learned from a few pictures under a rare word.

So that the word's class ("a dog") goes on meaning what it did, pictures of the class that the model itself made before are
learned beside those of the subject: prior preservation (section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from ...files import staged_file
from ..batches import Draw
from ..caches import LatentCache
from ..captions import Captions
from ..folders import EXTENSIONS
from ..pictures import Pictures
from ..settings import Framed
from ..task import Batch
from .data import framing_of
from .lora import Adapted, Adapting
from .text_guided import TextGuidedSettings


class DreamBoothSettings(TextGuidedSettings, Framed, Adapted):
    """Everything that `calotype train dreambooth` is told."""

    instance_data_dir: Path = Field(description="A folder with a few pictures of the subject.")
    instance_prompt: str = Field(description="What they show, with a rare word: a photo of sks dog.")
    with_prior_preservation: bool = Field(False, description="Learn pictures of the class as well, so that it stays what it is.")
    class_data_dir: Path | None = Field(None, description="Where those are, or are made; by default in output_dir.")
    class_prompt: str | None = Field(None, description="What they show, without the rare word: a photo of a dog.")
    num_class_images: int = Field(100, ge=1, description="How many there should be; what is missing is made.")
    prior_loss_weight: float = Field(1.0, ge=0, description="How much they count.")
    learning_rate: float = Field(5e-6, gt=0, description="The highest learning rate; an adapter wants more, mostly 1e-4.")
    adapter: bool = Field(False, description="Train a LoRA adapter, and not all of the network.")
    caption_dropout: float = Field(0.0, ge=0, le=1, description="Share of captions left empty.")

    @model_validator(mode="after")
    def _has_a_class(self) -> Any:
        if self.with_prior_preservation and not self.class_prompt:
            raise ValueError("with_prior_preservation needs class_prompt, what the class of the subject is called")
        if self.class_prompt and not self.with_prior_preservation:
            raise ValueError("class_prompt is of no use without with_prior_preservation: say both, or neither")
        return self


class Both(Dataset[tuple[Any, Any]]):
    """A picture of the subject and, with each, one of the class: its ticket says which."""

    takes_draws = True

    def __init__(self, subject: Any, kind: Any):
        self.subject, self.kind = subject, kind

    def __len__(self) -> int:
        return len(self.subject)

    def __getitem__(self, draw: Draw | int) -> tuple[Any, Any]:
        if isinstance(draw, tuple):
            return self.subject[draw], self.kind[Draw(draw[1] % len(self.kind), draw[1])]
        return self.subject[draw], self.kind[draw % len(self.kind)]


class DreamBooth(Adapting):
    """Trains a pipeline, or an adapter of it, on a subject."""

    Settings = DreamBoothSettings

    def trains(self) -> None:
        if self.settings.adapter:
            self.adapt()
        else:
            super().trains()

    def pictures(self) -> Pictures:
        return self._opened(self.settings.instance_data_dir, self.settings.instance_prompt)

    def _opened(self, folder: Path, prompt: str) -> Pictures:
        captions = Captions(dropout=self.settings.caption_dropout, constant=prompt)
        return Pictures.open(folder, captions=captions, **framing_of(self.settings, self.size))

    # -- the class --------------------------------------------------------------------------------------------------------

    def start(self, say: Callable[[str], None]) -> None:
        settings = self.settings
        kind = None
        if settings.with_prior_preservation:
            folder = settings.class_data_dir or settings.output_dir / "class"
            self.make_class(folder, say)
            kind = self._opened(folder, settings.class_prompt)
        super().start(say)
        if kind is not None:
            cached = isinstance(self.data, LatentCache)
            self.data = Both(self.data, LatentCache.build(
                kind, self.pipeline.vae, settings.output_dir / "cache") if cached else kind)

    def captions(self) -> list[str]:
        settings = self.settings
        return [settings.instance_prompt, *([settings.class_prompt] if settings.with_prior_preservation else [])]

    @torch.no_grad()
    def make_class(self, folder: Path, say: Callable[[str], None]) -> None:
        """Let the pipeline make the pictures of the class that are missing; picture i has the seed i."""
        wanted, there = self.settings.num_class_images, sum(path.suffix.lower() in EXTENSIONS for path in folder.rglob("*"))
        missing = [i for i in range(wanted) if not (folder / f"{i:05}.png").is_file()][:max(0, wanted - there)]
        if missing:
            say(f"making {len(missing)} pictures of {self.settings.class_prompt!r}")
            folder.mkdir(parents=True, exist_ok=True)
        for i in missing:
            picture = self.pipeline(
                self.settings.class_prompt, generator=torch.Generator().manual_seed(i),
                num_inference_steps=self.settings.validation_inference_steps).images[0]
            with staged_file(folder / f"{i:05}.png") as scratch:
                picture.save(scratch)

    # -- the loss -----------------------------------------------------------------------------------------------------------

    def collate(self, items: Sequence[Any]) -> Batch:
        if not isinstance(items[0], tuple):
            return super().collate(items)
        subject, kind = zip(*items, strict=True)
        batch = super().collate([*subject, *kind])
        # The mean over both halves times 2 is the sum of the halves' means, as the paper has it.
        batch["weight"] = torch.tensor([2.0] * len(subject) + [2 * self.settings.prior_loss_weight] * len(kind))
        return batch

    def weights(self, batch: Batch) -> Tensor | float:
        return batch.get("weight", 1.0)

    def save(self, folder: Path) -> None:
        if self.settings.adapter:
            self.save_adapter(folder)
        else:
            super().save(folder)
