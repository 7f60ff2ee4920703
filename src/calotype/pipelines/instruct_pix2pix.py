"""Pictures edited by an instruction (Brooks et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..prompts.encode import Prompt
from .guidance import guide_edit
from .latent import GivenImages
from .request import Request, takes_request
from .stable_diffusion import StableDiffusionBase


class StableDiffusionInstructPix2PixPipeline(StableDiffusionBase):
    """Pictures edited as a text says. Its components are those of `StableDiffusionBase`; the UNet sees the picture too.

    Attributes:
        image_guidance_scale: as `guidance_scale`, of the generation whose callback this pipeline was given to.
    """

    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds", "image_latents")
    _image_guidance_scale: float = 1.5

    @property
    def image_guidance_scale(self) -> float:
        """How much the picture counts."""
        return self._image_guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether predictions are guided: by text and picture at once, or not at all."""
        return super().do_classifier_free_guidance and self._image_guidance_scale >= 1

    @takes_request(without=("guidance_rescale", "quality"))
    def __call__(
        self, prompt: Prompt = None, image: Any = None, num_inference_steps: int = 100, guidance_scale: float = 7.5,
        image_guidance_scale: float = 1.5, latents: Tensor | None = None, *, request: Request,
    ) -> Any:
        """Edit pictures by an instruction.

        Args:
            prompt: what is to be done ("make it snow"), or a list of such; or give `prompt_embeds` [B, L, C].
            image: a picture or a list of them, as for `StableDiffusionImg2ImgPipeline`; latents [B, 4, h, w] are unscaled.
            num_inference_steps: as in `StableDiffusionPipeline`.
            guidance_scale: how much the instruction counts, above 1.
            image_guidance_scale: how much of the picture is kept, from 1 on. Nothing is guided where either is below.
            latents: [B, 4, h, w] the noise to begin with.
            request: by keyword, the fields of `Request`.

        Returns:
            `StableDiffusionPipelineOutput`.
        """
        generation = self._begin(request, guidance_scale, prompt)
        own = generation.pipeline
        own._image_guidance_scale = image_guidance_scale
        given = self.given_images(image)
        generation.read(prompt, len(given))
        table = generation.table(num_inference_steps)
        seen = self.unscaled_latents(given).to(generation.device, generation.dtype)
        seen = seen.repeat_interleave(generation.size // len(seen), dim=0)
        noise = generation.noise(self.vae.config.latent_channels, seen.shape[2], seen.shape[3], latents)
        if generation.unwanted is not None:  # given text and picture, the picture, and neither
            wanted = generation.text[generation.size:]
            generation.text = torch.cat([wanted, generation.unwanted, generation.unwanted])
            seen = torch.cat([seen, seen, torch.zeros_like(seen)])
        generation.held["image_latents"] = seen

        def combine(output: Tensor) -> Tensor:
            return guide_edit(output, own._guidance_scale, own._image_guidance_scale)

        return generation.finish(
            table, noise * table.init_noise_sigma, self._develop(request), joined=("image_latents",), combine=combine)

    def unscaled_latents(self, given: GivenImages) -> Tensor:
        """[n, 4, h, w] the most likely latents of pictures, not scaled; or latents as they are."""
        if given.latents:
            return given.values
        encoded = self.vae.encode(given.values.to(self.vae.device, self.vae.dtype))
        return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
