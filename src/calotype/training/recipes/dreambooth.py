"""DreamBooth (Ruiz et al. 2023, arXiv:2208.12242): a subject, learned from a few pictures under a rare word.

So that the word's class ("a dog") goes on meaning what it did, pictures of the class that the model itself made before are
learned beside those of the subject: prior preservation (section 4.2).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from ...files import check_folder, staged_file
from ...made import note_made
from ..batches import Draw
from ..caches import LatentCache
from ..captions import Captions
from ..entries import Entry
from ..folders import find_files
from ..pictures import Pictures
from ..seeds import seed_for
from ..settings import Framed
from ..task import Batch
from .data import framing_of
from .denoising import check_sampling
from .lora import Adapted, Adapting
from .text_guided import TextGuidedSettings

_TRIES = 10
"""How often a picture of the class is drawn, of which the safety checker withholds all before."""

_log = logging.getLogger(__name__)


class DreamBoothSettings(TextGuidedSettings, Framed, Adapted):
    """Everything that `calotype train dreambooth` is told."""

    instance_data_dir: Path = Field(description="A folder with a few pictures of the subject.")
    instance_prompt: str = Field(min_length=1, description="What they show, with a rare word: a photo of sks dog.")
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
        settings = self.settings
        return Pictures.open(settings.instance_data_dir, captions=self._captioned(settings.instance_prompt),
                             not_in=[settings.output_dir, self.class_folder], **framing_of(settings, self.size))

    def _captioned(self, prompt: str) -> Captions:
        return Captions(dropout=self.settings.caption_dropout, constant=prompt)

    # -- the class --------------------------------------------------------------------------------------------------------

    @property
    def class_folder(self) -> Path:
        """Where the pictures of the class are, or are made."""
        return self.settings.class_data_dir or self.settings.output_dir / "class"

    def check(self) -> None:
        super().check()
        if self.settings.with_prior_preservation:
            check_sampling(self.pipeline, self.settings)
            if os.path.realpath(self.class_folder) == os.path.realpath(self.settings.instance_data_dir):
                raise ValueError(f"class_data_dir and instance_data_dir are both {str(self.class_folder)!r}: the class and the "
                                 "subject need a folder each")
            check_folder(self.class_folder, "class_data_dir")

    def start(self, say: Callable[[str], None]) -> None:
        settings = self.settings
        kind = None
        if settings.with_prior_preservation:
            entries = self.make_class(self.class_folder, say)
            kind = Pictures.from_entries(entries, self._captioned(settings.class_prompt), **framing_of(settings, self.size))
        super().start(say)
        if kind is not None:
            cached = isinstance(self.data, LatentCache)
            self.data = Both(self.data, LatentCache.build(
                kind, self.pipeline.vae, settings.output_dir / "cache") if cached else kind)

    def captions(self) -> list[str]:
        settings = self.settings
        return [settings.instance_prompt, *([settings.class_prompt] if settings.with_prior_preservation else [])]

    @torch.no_grad()
    def make_class(self, folder: Path, say: Callable[[str], None]) -> list[Entry]:
        """Let the pipeline make the pictures of the class that are missing; picture i has the seed i. What is hidden, cannot be
        read or was withheld by a safety checker counts as missing.

        Returns:
            All pictures of the class, in the order of their names.

        Raises:
            ValueError: the safety checker withholds whatever is drawn.
        """
        there = self._pictures_of_class(folder)
        missing = [i for i in range(self.settings.num_class_images) if folder / f"{i:05}.png" not in there]
        missing = missing[:max(0, self.settings.num_class_images - len(there))]
        if missing:
            say(f"making {len(missing)} pictures of {self.settings.class_prompt!r}")
            note_made(folder, [f"{i:05}.png" for i in missing])
        for i in missing:
            picture = self._drawn(i, folder, say)
            with staged_file(folder / f"{i:05}.png") as scratch:
                picture.save(scratch)
        return [_entry(path, folder) for path in (self._pictures_of_class(folder) if missing else there)]

    def _pictures_of_class(self, folder: Path) -> list[Path]:
        """The pictures in a folder that show something."""
        if not folder.is_dir():
            return []
        found = find_files(folder, [self.settings.output_dir, self.settings.instance_data_dir]).pictures
        shown = [path for path in found if _shows(_entry(path, folder), made=path.parent == folder)]
        if len(shown) < len(found):
            _log.warning("%d of %d pictures in %r cannot be read or are black all over, and do not count",
                         len(found) - len(shown), len(found), str(folder))
        return shown

    def _drawn(self, i: int, folder: Path, say: Callable[[str], None]) -> Any:
        """Picture i of the class; with another seed if a safety checker withholds it."""
        for tried in range(_TRIES):
            made = self.pipeline(
                self.settings.class_prompt, generator=torch.Generator().manual_seed(seed_for(i, tried) if tried else i),
                num_inference_steps=self.settings.validation_inference_steps)
            if not any(getattr(made, "nsfw_content_detected", None) or ()):
                return made.images[0]
            say(f"picture {i} of the class is drawn again: the safety checker withheld it")
        raise ValueError(f"the safety checker withheld picture {i} of class_prompt {self.settings.class_prompt!r}, whatever the "
                         f"seed ({_TRIES} were tried): say class_prompt otherwise, or put pictures of your own into "
                         f"{str(folder)!r}")

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


def _entry(path: Path, folder: Path) -> Entry:
    return Entry(path, (), {"file_name": path.relative_to(folder).as_posix()}, repr(str(path)))


def _shows(entry: Entry, made: bool) -> bool:
    """Whether a file can be read and, where it may have been `made` here, is not what a safety checker leaves of a picture."""
    try:
        picture = entry.read()
    except ValueError:
        return False
    return not (made and re.fullmatch(r"\d{5}\.png", entry.image.name)) or picture.convert("L").getbbox() is not None
