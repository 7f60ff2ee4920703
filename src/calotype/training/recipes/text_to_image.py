"""A text-to-image pipeline, trained on pictures with captions: all of its UNet, and its text encoder if wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ... import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ..settings import Data
from .text_guided import TextGuided, TextGuidedSettings


class TextToImageSettings(TextGuidedSettings, Data):
    """Everything that `calotype train text-to-image` is told."""

    new_weights: list[Literal["unet", "text_encoder"]] = Field([], description=(
        "Begin these with random weights, and train them: a model of one's own."))
    unet_config: Path | None = Field(None, description="A JSON file: the config of a new UNet, in place of the pipeline's.")
    pretrained_vae_model_name_or_path: str | None = Field(None, description="Another autoencoder than the pipeline's.")


class TextToImage(TextGuided):
    """Trains a text-to-image pipeline on captioned pictures."""

    Settings = TextToImageSettings

    def begun(self, pipeline: Any) -> Any:
        settings = self.settings
        if settings.pretrained_vae_model_name_or_path:
            pipeline.vae = AutoencoderKL.from_pretrained(settings.pretrained_vae_model_name_or_path)
        if settings.unet_config and "unet" not in settings.new_weights:
            raise ValueError("unet_config says what a new UNet is like, and new_weights does not ask for one: name unet there")
        if "unet" in settings.new_weights:
            config = UNet2DConditionModel.load_config(settings.unet_config) if settings.unet_config else pipeline.unet.config
            pipeline.unet = UNet2DConditionModel.from_config(config)
        if "text_encoder" in settings.new_weights:
            if not settings.train_text_encoder:
                raise ValueError("new_weights names text_encoder, which is not trained: train_text_encoder must be true")
            pipeline.text_encoder = CLIPTextModel.from_config(pipeline.text_encoder.config)
        return pipeline
