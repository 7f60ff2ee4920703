"""Inpainting: what a mask covers is made anew, the rest is kept (Lugmayr et al. 2022, section 4.1; Rombach et al. 2022, 4.5)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import tensor
from ..images.masks import masked_picture, prepare_mask
from ..images.vae_processor import VaeImageProcessor
from ..models.autoencoder_asymmetric import AsymmetricAutoencoderKL
from ..prompts.encode import Prompt
from .guided import GuidedGeneration
from .latent import GivenImages
from .old_configs import NO_RUNGE_KUTTA
from .request import Request, takes_request
from .stable_diffusion import StableDiffusionBase


class StableDiffusionInpaintPipeline(StableDiffusionBase):
    """Parts of pictures made anew by a text. Its components are those of `StableDiffusionBase`.

    A UNet of 9 channels sees the mask and the masked picture; for one of 4 channels, what is known is put back after every
    step, noised to that step's level.
    """

    _right_entries, _right_size = NO_RUNGE_KUTTA, True
    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds", "mask", "masked_image_latents")

    @cached_property
    def mask_processor(self) -> VaeImageProcessor:
        """Makes masks of 0 and 1; one that does not binarize, put in its place, allows soft ones."""
        return VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True)

    @takes_request
    def __call__(
        self, prompt: Prompt = None, image: Any = None, mask_image: Any = None, masked_image_latents: Tensor | None = None,
        height: int | None = None, width: int | None = None, padding_mask_crop: int | None = None, strength: float = 1.0,
        num_inference_steps: int = 50, timesteps: Sequence[int] | None = None, sigmas: Sequence[float] | None = None,
        guidance_scale: float = 7.5, latents: Tensor | None = None, *, request: Request,
    ) -> Any:
        """Make a part of pictures anew.

        Args:
            prompt: what is to be seen; or give `prompt_embeds` [B, L, C].
            image: a picture or a list of them, as for `StableDiffusionImg2ImgPipeline`.
            mask_image: white where the picture is made anew: PIL, arrays or tensors, one or one for each picture.
            masked_image_latents: [B, 4, h, w] the latents of the masked picture, instead of their computation.
            height, width: in pixels; pictures and masks are resized. By default what the UNet was trained for.
            padding_mask_crop: work on the mask's surroundings, so many pixels around it, enlarged; and paste the result.
            strength: how much of what is covered is forgotten, above 0 to 1.
            num_inference_steps, timesteps, sigmas, guidance_scale: as in `StableDiffusionPipeline`.
            latents: [B, C, h, w] the noise to begin with.
            request: by keyword, the fields of `Request`.

        Returns:
            `StableDiffusionPipelineOutput`. The autoencoder changes what is kept a little; the picture itself is put back
            by `pipeline.image_processor.apply_overlay(mask_image, image, result)`.
        """
        height, width = self.picture_size(height, width)
        generation = self._begin(request, guidance_scale, prompt)
        where: dict[str, Any] = {}
        paste = None
        if padding_mask_crop is not None:
            region = self._crop_region(request, image, mask_image, height, width, padding_mask_crop)
            where = {"crops_coords": region, "resize_mode": "fill"}

            def paste(made: list[Any]) -> list[Any]:
                return [self.image_processor.apply_overlay(mask_image, image, one, region) for one in made]

        given = self.given_images(image, height=height, width=width, **where)
        mask = prepare_mask(mask_image, height, width, self.mask_processor, **where)
        if len(mask) not in (1, len(given)):
            raise ValueError(f"{len(mask)} masks for {len(given)} pictures: give one, or one for each")
        generation.read(prompt, len(given))
        table = generation.table(num_inference_steps, timesteps, sigmas, strength)
        known = self.unet.config.in_channels == self.vae.config.latent_channels
        clean = self.starting_latents(generation, given) if known or strength < 1 else None
        factor = self.vae_scale_factor
        noise = generation.noise(self.vae.config.latent_channels, height // factor, width // factor, latents)
        start = noise * table.init_noise_sigma if strength == 1 or clean is None else table.noised(clean, noise)
        small = F.interpolate(mask, size=noise.shape[2:]).to(noise)
        generation.held["mask"] = small.repeat_interleave(generation.size // len(small), dim=0)
        asked_for = "masked_image_latents" in request.callback_on_step_end_tensor_inputs
        if known and masked_image_latents is None and not asked_for:
            generation.skip_noise(len(given), *noise.shape[1:])  # that of the masked picture, which nobody looks at
        else:
            generation.held["masked_image_latents"] = self._masked_latents(
                generation, given, mask, masked_image_latents, noise)

        def put_back(row: int, sample: Tensor) -> Tensor:
            assert clean is not None
            at_level = clean if row == len(table) - 1 else table.noised(clean, noise, row + 1)
            return torch.lerp(at_level, sample, generation.held["mask"])

        # a decoder that looks at what is kept
        decoding = {"image": given.values, "mask": mask} if isinstance(self.vae, AsymmetricAutoencoderKL) else {}
        return generation.finish(
            table, start, self._develop(request, paste, **decoding), joined=() if known else ("mask", "masked_image_latents"),
            put_back=put_back if known else None)

    def _masked_latents(
        self, generation: GuidedGeneration, given: GivenImages, mask: Tensor, masked: Tensor | None, like: Tensor
    ) -> Tensor:
        if masked is None:
            if given.latents:
                raise ValueError("image is latents, which cannot be masked for this UNet: give masked_image_latents, or images")
            return self.starting_latents(generation, GivenImages(masked_picture(given.values, mask), latents=False))
        tensor("masked_image_latents", masked, "n", *like.shape[1:])
        if generation.size % len(masked):
            raise ValueError(f"masked_image_latents are {len(masked)} for {generation.size} images: give one, or one for each")
        return masked.to(like).repeat_interleave(generation.size // len(masked), dim=0)

    def _crop_region(
        self, request: Request, image: Any, mask: Any, height: int, width: int, padding: int
    ) -> tuple[int, int, int, int]:
        from PIL import Image

        if not (isinstance(image, Image.Image) and isinstance(mask, Image.Image)) or request.output_type != "pil":
            raise ValueError("padding_mask_crop works on one PIL image and one PIL mask, with output_type='pil'")
        if mask.size != image.size:
            raise ValueError(f"with padding_mask_crop, mask and image have one size, and these are {mask.size} and {image.size}")
        region: tuple[int, int, int, int] = self.mask_processor.get_crop_region(mask, width, height, pad=padding)
        return region
