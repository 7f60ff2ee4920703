"""Pictures out of nothing: a `UNet2DModel` learns to denoise (Ho et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ... import DDPMPipeline, DDPMScheduler, UNet2DModel
from ...pipelines.base import DiffusionPipeline
from ..settings import Data, Noise, Optimisation, Run
from ..task import Batch, Place, Player, Task, parameter_count
from .data import check_resolution, open_pictures
from .denoising import check_sampling, objective_of, plainly


class UnconditionalSettings(Run, Data, Optimisation, Noise):
    """Everything that `calotype train unconditional` is told."""

    pretrained_model_name_or_path: str | None = Field(None, description="Go on from this pipeline; by default a new one is made.")
    model_config_name_or_path: str | None = Field(None, description="The new network's config: a JSON file or a checkpoint.")
    block_out_channels: list[int] = Field([64, 128, 128, 256], description="Or its channels, level by level.", min_length=1)
    layers_per_block: int = Field(2, ge=1, description="And its residual blocks in each level.")
    attention_levels: int = Field(2, ge=0, description="Of the levels, so many of the lowest have attention.")
    ddpm_num_steps: int = Field(1000, ge=2, description="Timesteps of the new scheduler.")
    ddpm_beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = Field(
        "linear", description="How its noise grows.")


class Unconditional(Task):
    """Trains a pipeline that makes pictures like those given."""

    Settings = UnconditionalSettings

    def __init__(self, settings: UnconditionalSettings):
        self.settings = settings
        self.pipeline = plainly(_pipeline(settings))
        size, factor = self.pipeline.unet.config.sample_size, 2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)
        check_resolution(settings, factor, "since the network halves its pictures so often")
        self.data = open_pictures(settings, size, bucket_step=factor)
        self.groups = self.data.groups
        self.objective = objective_of(self.pipeline, settings)
        self.players = [Player("unet", self.pipeline.unet, self.loss)]

    def check(self) -> None:
        if self.settings.num_validation_images:
            check_sampling(self.pipeline, self.settings)

    def loss(self, batch: Batch, place: Place) -> tuple[Tensor, dict[str, Tensor]]:
        noised = self.objective.noised(batch["pixel_values"], place.generator)
        output = self.players[0].module(noised.sample, noised.timesteps).sample
        return self.objective.loss(output, noised).mean(), {}

    def samples(self) -> list[Any]:
        generators = [torch.Generator().manual_seed(self.settings.validation_seed + i)
                      for i in range(self.settings.num_validation_images)]
        return self.pipeline(
            len(generators), generators, num_inference_steps=self.settings.validation_inference_steps).images

    def save(self, folder: Path) -> None:
        self.pipeline.save_pretrained(folder)

    def facts(self) -> Iterable[tuple[str, str]]:
        unet, scheduler = self.pipeline.unet, self.pipeline.scheduler
        yield "network", f"UNet2DModel, {parameter_count(unet.parameters()) / 1e6:.2f} million parameters"
        yield "predicts", f"{self.objective.prediction_type}, as {type(scheduler).__name__} says"


def _pipeline(settings: UnconditionalSettings) -> Any:
    name = settings.pretrained_model_name_or_path
    if name:
        pipeline: Any = DiffusionPipeline.from_pretrained(name, torch_dtype=torch.float32)
        if not isinstance(getattr(pipeline, "unet", None), UNet2DModel):
            raise ValueError(f"{name!r} is a {type(pipeline).__name__}, and has no UNet2DModel "
                             "that makes pictures out of nothing")
        if settings.resolution and settings.resolution != pipeline.unet.config.sample_size:
            raise ValueError(f"resolution is {settings.resolution}, but the network of {name!r} is of "
                             f"{pipeline.unet.config.sample_size} pixels; leave resolution out")
        return pipeline
    if not settings.resolution:
        raise ValueError("resolution is needed to make a new network: the size of its pictures, in pixels")
    scheduler = DDPMScheduler(settings.ddpm_num_steps, beta_schedule=settings.ddpm_beta_schedule)
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.seed)  # the weights to begin with are random too
        return DDPMPipeline(_network(settings), scheduler)


def _network(settings: UnconditionalSettings) -> UNet2DModel:
    if settings.model_config_name_or_path:
        return UNet2DModel.from_config(settings.model_config_name_or_path, sample_size=settings.resolution)
    levels, lowest = len(settings.block_out_channels), settings.attention_levels
    down = ["AttnDownBlock2D" if levels - i <= lowest else "DownBlock2D" for i in range(levels)]
    return UNet2DModel(
        sample_size=settings.resolution, in_channels=3, out_channels=3, layers_per_block=settings.layers_per_block,
        block_out_channels=tuple(settings.block_out_channels), down_block_types=tuple(down),
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        norm_num_groups=math.gcd(32, *settings.block_out_channels))  # the usual 32 where channels can be divided so
