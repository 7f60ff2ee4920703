"""Variations of a picture: CLIP's embedding of it stands for the text (J. Pinkney, Lambda Labs, 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..images.reading import described
from .latent import LatentPipeline
from .request import Request, takes_request
from .stable_diffusion import warn_unchecked


class StableDiffusionImageVariationPipeline(LatentPipeline):
    """Pictures like a picture.

    Args:
        vae: `AutoencoderKL`. image_encoder: `CLIPVisionModelWithProjection`. unet: `UNet2DConditionModel`.
        scheduler: any scheduler. safety_checker: withholds unsafe pictures, or `None`.
        feature_extractor: `CLIPImageProcessor`; prepares pictures for the encoder.
        requires_safety_checker: whether the checkpoint asks for one.
    """

    _right_size = True
    image_encoder: Any
    optional_components = ("safety_checker",)

    def __init__(
        self, vae: Any, image_encoder: Any, unet: Any, scheduler: Any, safety_checker: Any, feature_extractor: Any,
        requires_safety_checker: bool = True,
    ):
        self.register_modules(
            vae=vae, image_encoder=image_encoder, unet=unet, scheduler=scheduler, safety_checker=safety_checker,
            feature_extractor=feature_extractor)
        self.register_to_config(requires_safety_checker=requires_safety_checker)
        if safety_checker is None and requires_safety_checker:
            warn_unchecked(type(self).__name__)

    @takes_request(without=(
        "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "clip_skip", "prompt_syntax", "long_prompts"))
    def __call__(
        self, image: Any, height: int | None = None, width: int | None = None, num_inference_steps: int = 50,
        guidance_scale: float = 7.5, latents: Tensor | None = None, *, request: Request,
    ) -> Any:
        """Make pictures like others.

        Args:
            image: what `feature_extractor` reads, a PIL image or a list of them; or what it makes, a tensor [n, 3, S, S].
            height, width, num_inference_steps, latents: as in `StableDiffusionPipeline`.
            guidance_scale: how much more the picture counts than in the training data.
            request: by keyword, the fields of `Request` that are not of texts; `num_images_per_prompt` is for each picture.

        Returns:
            `StableDiffusionPipelineOutput`.
        """
        height, width = self.picture_size(height, width)
        generation = self._begin(request, guidance_scale, "")
        wanted = embed_pictures(self, image)[:, None]
        generation.condition(wanted, torch.zeros_like(wanted) if generation.pipeline.do_classifier_free_guidance else None)
        table = generation.table(num_inference_steps)
        noise = self.initial_noise(generation, table, height, width, latents)
        return generation.finish(table, noise, self._develop(request))


def embed_pictures(pipeline: Any, image: Any) -> Tensor:
    """[n, C] the embeddings of pictures by CLIP, or of a tensor [n, 3, S, S] that the feature extractor has prepared.

    Raises:
        ValueError: a tensor of another shape, or with values that are not finite.
    """
    encoder = pipeline.image_encoder
    if isinstance(image, Tensor) and (image.ndim != 4 or image.shape[1] != 3 or not image.isfinite().all()):
        raise ValueError(f"image is a {described(image)}, but a tensor must be [n, 3, S, S] of finite values, as "
                         "feature_extractor makes it; PIL images and arrays may be of any size")
    pixels = image if isinstance(image, Tensor) else pipeline.feature_extractor(image, return_tensors="pt").pixel_values
    return encoder(pixels.to(encoder.device, encoder.dtype)).image_embeds
