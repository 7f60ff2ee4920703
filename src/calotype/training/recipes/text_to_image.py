"""A text-to-image pipeline, trained on pictures with captions: all of its UNet, and its text encoder if wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from ... import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ..settings import Data
from .text_guided import TextGuided, TextGuidedSettings


class TextToImageSettings(TextGuidedSettings, Data):
    """Everything that `calotype train text-to-image` is told."""

    new_weights: list[Literal["unet", "text_encoder"]] = Field([], description=(
        "Begin these with random weights, and train them: a model of one's own."))
    unet_config: Path | None = Field(None, description="A JSON file: the new UNet's config, if not the pipeline's.")
    text_encoder_config: Path | None = Field(None, description="A JSON file: the new text encoder's config.")
    pretrained_vae_model_name_or_path: str | None = Field(None, description="Another autoencoder than the pipeline's.")

    @model_validator(mode="after")
    def _begins(self) -> Any:
        if "text_encoder" in self.new_weights and not self.train_text_encoder:
            raise ValueError("new_weights names text_encoder, which is not trained: train_text_encoder must be true")
        for part, file in (("unet", self.unet_config), ("text_encoder", self.text_encoder_config)):
            if file and part not in self.new_weights:
                raise ValueError(f"{part}_config is of a new {part}, and new_weights does not ask for one: name it there")
        return self


_KINDS: dict[str, Any] = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}


class TextToImage(TextGuided):
    """Trains a text-to-image pipeline on captioned pictures."""

    Settings = TextToImageSettings

    def begun(self, pipeline: Any) -> Any:
        settings = self.settings
        if settings.pretrained_vae_model_name_or_path:
            pipeline.vae = AutoencoderKL.from_pretrained(settings.pretrained_vae_model_name_or_path)
        for part, file in (("unet", settings.unet_config), ("text_encoder", settings.text_encoder_config)):
            if part in settings.new_weights:
                kind = _KINDS[part]
                setattr(pipeline, part, kind.from_config(kind.load_config(file) if file else getattr(pipeline, part).config))
        return pipeline
