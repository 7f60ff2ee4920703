"""Pictures to latents and back: an `AutoencoderKL` learns to reconstruct (Rombach et al. 2022, section 3.1), all of it, or its
decoder alone, so that the latents stay those that other networks were trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.data import Dataset

from ... import AutoencoderKL
from ...hub import Source
from ...images.conversion import postprocess
from ...images.grids import contact_sheet
from ...models.autoencoder_kl import DiagonalGaussianDistribution
from ...pipelines.base import DiffusionPipeline
from ..adversary import Discriminator, balanced, fooling_loss, hinge_loss
from ..caches import LatentCache, sample_moments
from ..perceptual import PerceptualDistance, edge_distance, pixel_distance, signal_to_noise
from ..settings import Data, Optimisation, Run
from ..task import Batch, Place, Player, Task, parameter_count
from .data import open_pictures


class AutoencoderSettings(Run, Data, Optimisation):
    """Everything that `calotype train autoencoder` is told."""

    pretrained_model_name_or_path: str | None = Field(None, description=(
        "The pipeline whose autoencoder is trained, or an autoencoder; calotype/emoji unless a config is given."))
    model_config_name_or_path: Path | None = Field(None, description="Begin with a new autoencoder of this JSON config.")
    train_parts: Literal["both", "decoder"] = Field("both", description=(
        "decoder: leave the encoder as it is, and so all latents, which a pipeline's UNet was trained on."))
    reconstruction: Literal["l1", "l2", "huber"] = Field("l1", description="The distance of values.")
    kl_weight: float = Field(1e-6, ge=0, description="Of the latents' divergence from the normal distribution, by pixel value.")
    edge_weight: float = Field(0.0, ge=0, description="Of the distance of outlines (differences of neighbouring pixels).")
    perceptual_weight: float = Field(0.0, ge=0, description="Of the distance as an encoder sees it.")
    perceptual_model: str | None = Field(None, description=(
        "The autoencoder, or a pipeline with it, whose encoder that is; by default the one that training begins with."))
    adversarial_weight: float = Field(0.0, ge=0, description="Of a discriminator's opinion, 1 being as strong as the rest.")
    adversarial_start: int = Field(0, ge=0, description="The step with which the discriminator comes in.")
    discriminator_learning_rate: float | None = Field(None, gt=0, description="Its learning rate; by default learning_rate.")
    discriminator_channels: int = Field(32, ge=8, multiple_of=8, description="Channels of its first layer.")
    discriminator_layers: int = Field(3, ge=1, description="How often it halves the picture.")
    cache_latents: bool = Field(True, description="Encode every picture once, where the encoder stays as it is.")
    validation_split: str | None = Field(None, description="Sample pictures are of this split; by default of those trained on.")

    @model_validator(mode="after")
    def _begins(self) -> Any:
        if self.model_config_name_or_path and self.pretrained_model_name_or_path:
            raise ValueError("give pretrained_model_name_or_path or model_config_name_or_path, and not both")
        if self.model_config_name_or_path and self.train_parts == "decoder":
            raise ValueError("train_parts is 'decoder', but the encoder of a new autoencoder is random: train both")
        if self.perceptual_model and not self.perceptual_weight:
            raise ValueError("perceptual_model is given, but perceptual_weight is 0")
        return self


class Reconstruction(nn.Module):
    """There and back, as one network with one forward, so that processes can agree."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(
        self, pictures: Tensor, generator: torch.Generator | None, moments: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Reconstructions of pictures [B, 3, H, W], through a draw of their latents, and the moments [B, 2C, h, w] of these,
        which need not be computed where they are given."""
        if moments is None:
            moments = self.vae.encode(pictures).latent_dist.parameters
        return self.vae.decode(sample_moments(moments, generator)).sample, moments


class AutoencoderTraining(Task):
    """Trains an autoencoder."""

    Settings = AutoencoderSettings

    def __init__(self, settings: AutoencoderSettings):
        self.settings = settings
        torch.manual_seed(settings.seed)  # the weights to begin with may be random
        self.pipeline, self.vae = _begun(settings)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        resolution = settings.resolution or self.vae.config.sample_size
        if resolution % self.factor:
            raise ValueError(f"resolution is {resolution}, but must be a multiple of {self.factor}, the autoencoder's factor")
        self.vae.requires_grad_(settings.train_parts == "both")
        for part in (self.vae.decoder, self.vae.post_quant_conv):
            if part is not None:
                part.requires_grad_(True)
        self.players = [Player("autoencoder", Reconstruction(self.vae), self.loss)]
        if settings.adversarial_weight:
            rate = (settings.discriminator_learning_rate or settings.learning_rate) / settings.learning_rate
            network = Discriminator(settings.discriminator_channels, settings.discriminator_layers, self.vae.config.out_channels)
            self.players.append(Player("discriminator", network, self.discriminator_loss, rate, averaged=False,
                                       first_step=settings.adversarial_start))
        self.perceptual = PerceptualDistance(_perceiving(settings, self.vae)) if settings.perceptual_weight else None
        self.data: Any = open_pictures(settings, resolution, bucket_step=self.factor)
        self.groups = self.data.groups
        self.shown = self.data if settings.validation_split is None else open_pictures(
            settings.model_copy(update={"split": settings.validation_split}), resolution, bucket_step=self.factor)
        self._made: dict[int, Tensor] = {}  # by micro batch: what the autoencoder made of it, for the discriminator

    def place(self, device: torch.device) -> None:
        if self.perceptual is not None:
            self.perceptual.to(device)
            if self.settings.channels_last:
                self.perceptual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def start(self, say: Callable[[str], None]) -> None:
        settings = self.settings
        if settings.train_parts == "both":
            if self.pipeline is not None:
                say("the latents will move away from those that the rest of the pipeline was trained on: train that on, "
                    "or say train_parts decoder")
        elif settings.cache_latents and not self.data.framing.center_crop:
            say("cache_latents is left out: with random crops a picture is never the same")
        elif settings.cache_latents and not isinstance(self.data, _WithMoments):
            say(f"encoding {len(self.data)} pictures, once")
            self.data = _WithMoments(LatentCache.build(self.data, self.vae, settings.output_dir / "cache"))

    # -- the losses ------------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch, place: Place) -> tuple[Tensor, dict[str, Tensor]]:
        originals, settings = batch["pixel_values"], self.settings
        made, moments = self.players[0].module(originals, place.generator, batch.get("moments"))
        made = made.float()
        terms = self.distances(made, originals)
        told = {**terms, "psnr": signal_to_noise(made.detach(), originals).mean()}
        loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        if len(self.players) > 1 and place.step >= settings.adversarial_start:
            fooling = fooling_loss(self.players[1].network(made))  # and not its module: its gradients are not wanted here
            loss, balance = balanced(made, loss, fooling, self.vae.decoder.conv_out.weight, settings.adversarial_weight)
            told |= {"fooling": fooling, "balance": balance}
            self._made[place.micro] = made.detach()
        if settings.train_parts == "both":
            # As if errors of values were summed, as they are where 1e-6 comes from, and all of it then divided by their number.
            divergence = DiagonalGaussianDistribution(moments.float()).kl().mean() / originals[0].numel()
            loss, told = loss + settings.kl_weight * divergence, told | {"divergence": divergence}
        return loss, told

    @property
    def weights(self) -> dict[str, float]:
        """What each distance is multiplied by."""
        return {"error": 1.0, "edges": self.settings.edge_weight, "perceptual": self.settings.perceptual_weight}

    def distances(self, made: Tensor, originals: Tensor) -> dict[str, Tensor]:
        """How far the reconstructions [B, 3, H, W] are from their originals: scalars."""
        terms = {"error": pixel_distance(made, originals, self.settings.reconstruction)}
        if self.settings.edge_weight:
            terms["edges"] = edge_distance(made, originals)
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(made, originals)
        return terms

    def discriminator_loss(self, batch: Batch, place: Place) -> tuple[Tensor, dict[str, Tensor]]:
        """Of what the autoencoder made of this batch before it took its step."""
        both = torch.cat([batch["pixel_values"], self._made.pop(place.micro)])
        of_originals, of_made = self.players[1].module(both).float().chunk(2)
        return hinge_loss(of_originals, of_made), {"of_originals": of_originals.mean(), "of_made": of_made.mean()}

    # -- results ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def samples(self) -> list[Any]:
        """Originals, each with its reconstruction to the right of it."""
        pairs = []
        for original in _spread(self.shown, self.settings.num_validation_images):
            picture = original[None].to(self.vae.device)
            both = torch.cat([picture, self.vae(picture).sample])
            pairs.append(contact_sheet(postprocess(both.float(), "pil"), columns=2))
        return pairs

    def save(self, folder: Path) -> None:
        if self.pipeline is not None:
            self.pipeline.save_pretrained(folder)
            return
        if self.settings.model_config_name_or_path:
            self.vae.register_to_config(scaling_factor=1 / self._deviation())
        self.vae.save_pretrained(folder)

    @torch.no_grad()
    def _deviation(self) -> float:
        """The standard deviation of the latents, by which diffusion divides them (Rombach et al. 2022, appendix G)."""
        latents = [self.vae.encode(picture[None].to(self.vae.device)).latent_dist.mode() for picture in _spread(self.data, 256)]
        return float(torch.cat([one.flatten() for one in latents]).std())

    def facts(self) -> Iterable[tuple[str, str]]:
        beginning = self.settings.model_config_name_or_path or self.settings.pretrained_model_name_or_path or _BUNDLED
        yield "autoencoder", f"{beginning}, {parameter_count(self.vae.parameters()) / 1e6:.2f} million parameters"
        if len(self.players) > 1:
            count = parameter_count(self.players[1].network.parameters())
            yield "discriminator", f"{count / 1e6:.2f} million parameters, from step {self.settings.adversarial_start} on"


class _WithMoments(Dataset[dict[str, Any]]):
    """Pictures, and what their latents are drawn from."""

    takes_draws = True

    def __init__(self, cache: LatentCache):
        self.cache, self.framing = cache, cache.pictures.framing

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, draw: Any) -> dict[str, Any]:
        return {**self.cache.pictures[draw], "moments": self.cache[draw]["moments"]}


_BUNDLED = "calotype/emoji"


def _begun(settings: AutoencoderSettings) -> tuple[Any, Any]:
    """The pipeline to begin with, or `None`, and the autoencoder."""
    if settings.model_config_name_or_path:
        return None, AutoencoderKL.from_config(settings.model_config_name_or_path)
    name = settings.pretrained_model_name_or_path or _BUNDLED
    if not _is_pipeline(name):
        return None, _autoencoder(name)
    pipeline: Any = DiffusionPipeline.from_pretrained(name, torch_dtype=torch.float32)
    return pipeline, _checked(name, getattr(pipeline, "vae", None))


def _perceiving(settings: AutoencoderSettings, beginning: Any) -> Any:
    """The encoder by whose eyes pictures are compared."""
    name = settings.perceptual_model
    return beginning.encoder if name is None else _autoencoder(name, "vae" if _is_pipeline(name) else None).encoder


def _is_pipeline(name: str) -> bool:
    try:
        return Source(name).file(DiffusionPipeline.config_name).is_file()
    except FileNotFoundError:  # what is no checkpoint either is reported by whoever loads it
        return False


def _autoencoder(name: str, subfolder: str | None = None) -> Any:
    kind = AutoencoderKL.load_config(name, subfolder=subfolder).get("_class_name")
    if kind not in (None, "AutoencoderKL"):
        raise ValueError(f"{name!r} is a {kind}, and no AutoencoderKL nor a pipeline with one")
    return AutoencoderKL.from_pretrained(name, subfolder=subfolder)


def _checked(name: str, vae: Any) -> Any:
    if not isinstance(vae, AutoencoderKL):
        has = "no autoencoder" if vae is None else f"a {type(vae).__name__}"
        raise ValueError(f"{name!r} is a pipeline with {has}, and not with an AutoencoderKL")
    return vae


def _spread(pictures: Any, most: int) -> Iterable[Tensor]:
    """Some of the pictures, from the first to the last, read plainly."""
    for i in range(min(most, len(pictures))):
        yield pictures[i * len(pictures) // min(most, len(pictures))]["pixel_values"]
