"""What recipes share that train a text-to-image pipeline, or parts of it: latents and texts in, noise out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ...models.latent_space import scaled
from ...pipelines.base import DiffusionPipeline
from ...prompts.encode import encode, tokenized
from ..caches import LatentCache, TextCache, sample_moments
from ..captions import Captions
from ..settings import Noise, Optimisation, Run, Text
from ..task import Batch, Groups, Place, Player, Task, parameter_count
from .data import check_resolution, open_pictures
from .denoising import check_sampling, objective_of, plainly

_MOST_KEPT = 2**30  # bytes of hidden states on disk


class TextGuidedSettings(Run, Text, Optimisation, Noise):
    """What all recipes of text-to-image pipelines are told."""

    pretrained_model_name_or_path: str = Field("calotype/emoji", description="The pipeline to begin with.")
    revision: str | None = Field(None, description="Which branch, tag or commit of its repository.")
    variant: str | None = Field(None, description="Which of its files: fp16, say.")
    train_text_encoder: bool = Field(False, description="Train the text encoder too.")


class TextToNoise(nn.Module):
    """A UNet, and the text encoder if that is trained as well: one network with one forward, so that processes can agree."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module | None = None):
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, sample: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """The UNet's output for samples [B, C, h, w], under texts: token ids [B, L], with a mask if the encoder goes by one, or
        hidden states [B, L, D]."""
        hidden = text if self.text_encoder is None else self.text_encoder(text, mask).last_hidden_state
        return self.unet(sample, timesteps, encoder_hidden_states=hidden).sample


class TextGuided(Task):
    """Base of the recipes; a subclass says what is trained (`trains`), on which pictures, and what is saved."""

    def __init__(self, settings: Any):
        self.settings = settings
        with torch.random.fork_rng([]):
            torch.manual_seed(settings.seed)  # weights to begin with may be random too
            self.pipeline: Any = self.begun(_loaded(settings))
        _check_parts(self.pipeline, settings.pretrained_model_name_or_path)
        check_resolution(settings, self.factor, "since each of its latents stands for so many pixels")
        for part in (self.pipeline.vae, self.pipeline.text_encoder, self.pipeline.unet):
            part.requires_grad_(False)
        self.denoiser = TextToNoise(self.pipeline.unet, self.pipeline.text_encoder if settings.train_text_encoder else None)
        self.trains()
        self.players = [Player("denoiser", self.denoiser, self.loss)]
        self.objective = objective_of(self.pipeline, settings)
        self.data: Any = self.pictures()
        self.groups: Groups = self.data.groups

    # -- what a subclass says --------------------------------------------------------------------------------------------

    def begun(self, pipeline: Any) -> Any:
        """The pipeline as the training begins with it."""
        return pipeline

    def trains(self) -> None:
        """Say with `requires_grad_` which of the denoiser's parameters are trained: all of its parts, here."""
        self.denoiser.requires_grad_(True)

    def pictures(self) -> Any:
        """The pictures, with captions."""
        return open_pictures(self.settings, self.size, Captions(dropout=self.settings.caption_dropout), self.factor)

    def weights(self, batch: Batch) -> Tensor | float:
        """[B] what each picture's loss is multiplied by."""
        return 1.0

    # -- the task --------------------------------------------------------------------------------------------------------

    @property
    def factor(self) -> int:
        """Pixels a latent, each way."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def size(self) -> int:
        """Pixels, each way, of the pictures that the pipeline makes."""
        return int(self.pipeline.unet.config.sample_size) * self.factor

    def place(self, device: torch.device) -> None:
        self.pipeline.to(device)

    def check(self) -> None:
        if self.settings.num_validation_images and self.prompts():
            check_sampling(self.pipeline, self.settings)

    texts: TextCache | None = None

    def start(self, say: Callable[[str], None]) -> None:
        if self.settings.cache_latents and not self.settings.center_crop:
            say("pictures are encoded in each step, whatever cache_latents says: with random crops they are never the same")
        elif self.settings.cache_latents and not isinstance(self.data, LatentCache):
            say(f"encoding {len(self.data)} pictures, once")
            self.data = LatentCache.build(self.data, self.pipeline.vae, self.settings.output_dir / "cache")
        if self.settings.cache_latents and self.denoiser.text_encoder is None:
            self.texts = self._cached(self.captions(), say)

    def captions(self) -> list[str]:
        """All that pictures may be captioned."""
        pictures: Any = getattr(self.data, "pictures", self.data)
        return list(pictures.distinct_captions())

    def _cached(self, captions: list[str], say: Callable[[str], None]) -> TextCache | None:
        """The hidden states of captions, unless they are too many to be kept."""
        config = self.pipeline.text_encoder.config
        if len(captions) * config.max_position_embeddings * config.hidden_size * 4 > _MOST_KEPT:
            return None
        say(f"encoding {len(captions)} captions, once")
        pipeline = self.pipeline
        return TextCache.build(captions, lambda few: encode(pipeline.tokenizer, pipeline.text_encoder, few),
                               self.settings.output_dir / "cache", text_encoder=pipeline.text_encoder)

    def collate(self, items: Sequence[Any]) -> Batch:
        batch = super().collate(items)
        if self.texts is not None:
            return batch | {"text": self.texts.stacked(batch["caption"])}
        tokenizer = self.pipeline.tokenizer
        tokens = tokenized(tokenizer, batch["caption"], tokenizer.model_max_length)
        mask = {"mask": tokens.attention_mask} if self.pipeline.text_encoder.config.get("use_attention_mask") else {}
        return batch | {"text": tokens.input_ids} | mask

    def latents(self, batch: Batch, place: Place) -> Tensor:
        """[B, C, h, w] scaled latents of a batch, drawn from the encoder's distribution."""
        vae = self.pipeline.vae
        with torch.no_grad():
            if "moments" in batch:
                drawn = sample_moments(batch["moments"], place.generator)
            else:
                drawn = vae.encode(batch["pixel_values"]).latent_dist.sample(place.generator)
        return scaled(vae, drawn.float())

    def text(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the denoiser is told of the captions: hidden states; or ids (and a mask) where it trains the text encoder."""
        told = tuple(batch[name] for name in ("text", "mask") if name in batch)
        if self.texts is not None or self.denoiser.text_encoder is not None:
            return told
        with torch.no_grad():
            return (self.pipeline.text_encoder(*told).last_hidden_state,)

    def loss(self, batch: Batch, place: Place) -> tuple[Tensor, dict[str, Tensor]]:
        noised = self.objective.noised(self.latents(batch, place), place.generator)
        output = self.players[0].module(noised.sample, noised.timesteps, *self.text(batch))
        return (self.objective.loss(output, noised) * self.weights(batch)).mean(), {}

    def samples(self) -> list[Any]:
        prompts = self.prompts() * self.settings.num_validation_images
        generators = [torch.Generator().manual_seed(self.settings.validation_seed + i) for i in range(len(prompts))]
        steps, made = self.settings.validation_inference_steps, []
        for prompt, generator in zip(prompts, generators, strict=True):
            made += self.pipeline(prompt, generator=generator, num_inference_steps=steps).images
        return made

    def prompts(self) -> list[str]:
        """Of what sample pictures are made."""
        return list(self.settings.validation_prompt)

    def save(self, folder: Path) -> None:
        self.pipeline.save_pretrained(folder)

    def facts(self) -> Iterable[tuple[str, str]]:
        all_of = sum(parameter_count(part.parameters()) for part in (self.pipeline.unet, self.pipeline.text_encoder))
        yield "pipeline", f"{self.settings.pretrained_model_name_or_path}, {all_of / 1e6:.2f} million parameters"
        yield "predicts", f"{self.objective.prediction_type}, as {type(self.pipeline.scheduler).__name__} says"


def _loaded(settings: Any) -> Any:
    name = settings.pretrained_model_name_or_path
    named = {key: value for key in ("revision", "variant") if (value := getattr(settings, key))}
    pipeline: Any = DiffusionPipeline.from_pretrained(name, torch_dtype=torch.float32, **named)
    parts = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    missing = [part for part in parts if getattr(pipeline, part, None) is None]
    if missing:
        raise ValueError(f"{name!r} is a {type(pipeline).__name__}, and no text-to-image pipeline: it has no "
                         f"{', '.join(missing)}")
    return plainly(pipeline)


def _check_parts(pipeline: Any, name: str) -> None:
    """That the parts of a pipeline, some of which may be new, go together."""
    unet, vae, text_encoder = pipeline.unet.config, pipeline.vae.config, pipeline.text_encoder.config
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise ValueError(f"the UNet takes {unet.in_channels} channels and gives {unet.out_channels}, but to make latents of this "
                         f"autoencoder from a text alone it must be {vae.latent_channels} (the pipeline is {name!r})")
    width = unet.cross_attention_dim
    if isinstance(width, int) and width != text_encoder.hidden_size and unet.get("encoder_hid_dim") is None:
        raise ValueError(f"the UNet takes texts of {width} channels (cross_attention_dim), but the text encoder gives "
                         f"{text_encoder.hidden_size}")
