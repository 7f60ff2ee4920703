"""Stable unCLIP: Stable Diffusion that is told CLIP's embedding of a picture beside a text (Stability AI, 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arguments import tensor
from ..models.embeddings import sinusoidal
from ..prompts.encode import Prompt
from ..randomness import randn
from .guided import GuidedGeneration
from .image_variation import embed_pictures
from .latent import LatentPipeline
from .request import Request, takes_request


class StableUnCLIPImg2ImgPipeline(LatentPipeline):
    """Variations of a picture under a text.

    Args:
        feature_extractor: `CLIPImageProcessor`. image_encoder: `CLIPVisionModelWithProjection`.
        image_normalizer: `StableUnCLIPImageNormalizer`. image_noising_scheduler: adds noise to embeddings; `DDPMScheduler`.
        tokenizer, text_encoder, unet, scheduler, vae: as in `StableDiffusionBase`.
    """

    image_encoder: Any
    image_normalizer: Any
    image_noising_scheduler: Any

    def __init__(
        self, feature_extractor: Any, image_encoder: Any, image_normalizer: Any, image_noising_scheduler: Any, tokenizer: Any,
        text_encoder: Any, unet: Any, scheduler: Any, vae: Any,
    ):
        self.register_modules(
            feature_extractor=feature_extractor, image_encoder=image_encoder, image_normalizer=image_normalizer,
            image_noising_scheduler=image_noising_scheduler, tokenizer=tokenizer, text_encoder=text_encoder, unet=unet,
            scheduler=scheduler, vae=vae)

    @takes_request
    def __call__(
        self, image: Any = None, prompt: Prompt = None, height: int | None = None, width: int | None = None,
        num_inference_steps: int = 20, guidance_scale: float = 10.0, latents: Tensor | None = None, noise_level: int = 0,
        image_embeds: Tensor | None = None, *, request: Request,
    ) -> Any:
        """Make pictures like others.

        Args:
            image: what `feature_extractor` reads, a PIL image or a list of them; or what it makes, a tensor [n, 3, S, S].
            prompt: a text, one or one for each picture; by default none.
            height, width, num_inference_steps, guidance_scale, latents: as in `StableDiffusionPipeline`.
            noise_level: how noisy the embeddings are made, from 0 on, below the noising scheduler's number of timesteps:
                the more, the freer the variations.
            image_embeds: [n, C] CLIP's embeddings instead of `image`.
            request: by keyword, the fields of `Request`.

        Returns:
            `StableDiffusionPipelineOutput`.
        """
        highest = self.image_noising_scheduler.config.num_train_timesteps - 1
        if not 0 <= noise_level <= highest:
            raise ValueError(f"noise_level is {noise_level}, but must be from 0 to {highest}")
        if (image is None) == (image_embeds is None):
            raise ValueError("give an image or image_embeds, and not both")
        height, width = self.picture_size(height, width)
        prompt = "" if prompt is None and request.prompt_embeds is None else prompt
        generation = self._begin(request, guidance_scale, prompt)
        if image_embeds is not None:
            tensor("image_embeds", image_embeds, "n", self.image_normalizer.mean.shape[-1],
                   because="of the channels of the pipeline's image_normalizer")
        embeds = embed_pictures(self, image) if image_embeds is None else image_embeds
        generation.read(prompt, len(embeds))
        labels = self._noised(generation, embeds.to(generation.device, generation.dtype), noise_level)
        if generation.unwanted is not None:
            labels = torch.cat([torch.zeros_like(labels), labels])
        table = generation.table(num_inference_steps)
        noise = self.initial_noise(generation, table, height, width, latents)
        return generation.finish(table, noise, self._develop(request), class_labels=labels)

    def _noised(self, generation: GuidedGeneration, embeds: Tensor, level: int) -> Tensor:
        """[B, 2 C] embeddings [n, C] with noise, each for its share of B, and the embedding of the noise's level."""
        normalizer, at = self.image_normalizer, torch.tensor([level], device=embeds.device)

        def noisy(clean: Tensor) -> Tensor:
            noise = randn(clean.shape, generation.request.generator, clean.device, clean.dtype)
            return normalizer.unscale(self.image_noising_scheduler.add_noise(normalizer.scale(clean), noise, at))

        told = sinusoidal(at, embeds.shape[1], flip_sin_to_cos=True, freq_shift=0).to(embeds)
        return torch.cat([generation.for_each(embeds, noisy), told.expand(generation.size, -1)], dim=1)
