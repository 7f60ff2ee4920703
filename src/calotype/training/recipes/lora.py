"""A LoRA adapter of a text-to-image pipeline (Hu et al. 2021): its layers stay, thin products beside them are trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from ...models.lora import TARGETS, add_lora, lora_parameters, lora_state_dict
from ..seeds import generator_for
from ..settings import Data, Settings
from ..task import parameter_count
from .text_guided import TextGuided, TextGuidedSettings

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


class Adapted(Settings):
    """The adapter."""

    rank: int = Field(4, ge=1, description="Rank of the adapter's products.")
    lora_alpha: float | None = Field(None, gt=0, description="They count alpha / rank; by default once.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout of what enters them.")
    lora_targets: list[str] = Field(list(TARGETS), min_length=1, description="Which of the UNet's layers are adapted.")


class LoraSettings(TextGuidedSettings, Data, Adapted):
    """Everything that `calotype train lora` is told."""


class Adapting(TextGuided):
    """What recipes share that train an adapter, and save it alone."""

    def adapt(self) -> None:
        """Put the adapter in, of the UNet and, if it is trained too, the text encoder."""
        settings = self.settings
        how = {"rank": settings.rank, "alpha": settings.lora_alpha, "dropout": settings.lora_dropout}
        add_lora(self.pipeline.unet, targets=settings.lora_targets, generator=generator_for(settings.seed), **how)
        if settings.train_text_encoder:
            add_lora(self.pipeline.text_encoder, targets=TEXT_TARGETS, generator=generator_for(settings.seed, 1), **how)

    def save_adapter(self, folder: Path) -> None:
        """Write `pytorch_lora_weights.safetensors`, which `load_lora_weights` reads, here and in Diffusers."""
        text = lora_state_dict(self.pipeline.text_encoder) if self.settings.train_text_encoder else None
        self.pipeline.save_lora_weights(
            folder, unet_lora_layers=lora_state_dict(self.pipeline.unet), text_encoder_lora_layers=text)

    def facts(self) -> Iterable[tuple[str, str]]:
        yield from super().facts()
        adapted = lora_parameters(self.denoiser)
        if adapted:
            yield "adapter", f"rank {self.settings.rank}, {parameter_count(adapted) * 4 / 2**20:.2f} MiB"


class Lora(Adapting):
    """Trains an adapter on captioned pictures."""

    Settings = LoraSettings

    def trains(self) -> None:
        self.adapt()

    def save(self, folder: Path) -> None:
        self.save_adapter(folder)
