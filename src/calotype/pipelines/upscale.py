"""Pictures four times as wide and high, by a diffusion model that sees the small picture (Rombach et al. 2022, section 4.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..prompts.encode import Prompt
from ..prompts.textual_inversion import TextualInversion
from ..randomness import randn
from .decoding import decoded
from .guided import GuidedGeneration
from .latent import LatentPipeline
from .request import Request, takes_request

_SCALING = 0.08333
"""The scale of the latents that these UNets are trained on, whatever the autoencoder's config says; old ones do not say it."""


class StableDiffusionUpscalePipeline(TextualInversion, LatentPipeline):
    """Larger pictures under a text.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor: as in `StableDiffusionBase`; the
            UNet works at the small picture's size, and the autoencoder makes its latents larger.
        low_res_scheduler: adds noise to the small picture; `DDPMScheduler`.
        watermarker: marks PIL images, by its method `apply_watermark(images, sample_size)`; or `None`.
        max_noise_level: the highest `noise_level` of a call.
    """

    _resample = "bicubic"
    optional_components = ("watermarker", "safety_checker", "feature_extractor")
    low_res_scheduler: Any
    watermarker: Any

    def __init__(
        self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, low_res_scheduler: Any, scheduler: Any,
        safety_checker: Any = None, feature_extractor: Any = None, watermarker: Any = None, max_noise_level: int = 350,
    ):
        if safety_checker is not None and feature_extractor is None:
            raise ValueError("a safety_checker needs a feature_extractor: give both, or safety_checker=None")
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, low_res_scheduler=low_res_scheduler,
            scheduler=scheduler, safety_checker=safety_checker, watermarker=watermarker, feature_extractor=feature_extractor)
        self.register_to_config(max_noise_level=max_noise_level)

    def decode_latents(self, latents: Tensor, **options: Any) -> Tensor:
        """[B, 3, 4 H, 4 W] in [-1, 1] from latents [B, 4, H, W] as the UNet has them; `options` go to the autoencoder."""
        return decoded(self.vae, latents / _SCALING, **options)

    @takes_request
    def __call__(
        self, prompt: Prompt = None, image: Any = None, num_inference_steps: int = 75, guidance_scale: float = 9.0,
        noise_level: int = 20, latents: Tensor | None = None, *, request: Request,
    ) -> Any:
        """Make pictures larger.

        Args:
            prompt: what they show, or a list of such; or give `prompt_embeds` [B, L, C].
            image: a picture or a list of them: PIL, arrays [H, W, C] in [0, 1] or tensors [C, H, W] in [0, 1] or [-1, 1].
            num_inference_steps, guidance_scale: as in `StableDiffusionPipeline`.
            noise_level: how noisy the small picture is made, 0 to `max_noise_level`: the more, the freer the large one.
            latents: [B, 4, H, W] the noise to begin with.
            request: by keyword, the fields of `Request`.

        Returns:
            `StableDiffusionPipelineOutput`.
        """
        highest = self.config.max_noise_level
        if not 0 <= noise_level <= highest:
            raise ValueError(f"noise_level is {noise_level}, but must be from 0 to {highest}, the pipeline's max_noise_level")
        generation = self._begin(request, guidance_scale, prompt)
        given = self.given_images(image)
        if given.latents:
            raise ValueError(f"image is latents {list(given.values.shape)}, but must be pictures: "
                             "StableDiffusionLatentUpscalePipeline makes latents larger")
        pictures = given.values
        generation.read(prompt, len(given))
        table = generation.table(num_inference_steps)
        generation.held["image"] = self._noisy(generation, pictures, noise_level)
        noise = generation.noise(self.vae.config.latent_channels, pictures.shape[2], pictures.shape[3], latents)
        labels = torch.full((generation.size,), int(noise_level), device=generation.device)

        def mark(made: list[Any]) -> list[Any]:
            return self.watermarker.apply_watermark(made, self.unet.config.sample_size)

        marked = mark if self.watermarker is not None and request.output_type == "pil" else None
        return generation.finish(
            table, noise * table.init_noise_sigma, self._develop(request, marked), joined=("image",), class_labels=labels)

    def _noisy(self, generation: GuidedGeneration, pictures: Tensor, level: int) -> Tensor:
        """[B, 3, H, W] the pictures [n, 3, H, W] with noise, each for its share of B."""
        at = torch.tensor([level], device=generation.device)

        def noisy(clean: Tensor) -> Tensor:
            noise = randn(clean.shape, generation.request.generator, clean.device, clean.dtype)
            return self.low_res_scheduler.add_noise(clean, noise, at)

        return generation.for_each(pictures.to(generation.device, generation.dtype), noisy)
