"""From a picture, its depth and a text to a picture of the same depth (Stability AI, 2022)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import finite, shown
from ..depth import DPTForDepthEstimation, DPTImageProcessor
from ..images.conversion import rgb_images
from ..prompts.encode import Prompt
from ..prompts.textual_inversion import TextualInversion
from .latent import GivenImages, LatentPipeline
from .request import Request, takes_request

_log = logging.getLogger(__name__)


class StableDiffusionDepth2ImgPipeline(TextualInversion, LatentPipeline):
    """Pictures changed by a text, with the depth that they have.

    Args:
        vae, text_encoder, tokenizer, unet, scheduler: as in `StableDiffusionBase`; the UNet sees the depth too.
        depth_estimator: transformers' `DPTForDepthEstimation`; or `None`, as where transformers (the extra `depth`) is not
            installed: then calls need a `depth_map`. feature_extractor: transformers' `DPTImageProcessor`, or `None`.
    """

    _right_size = True
    _callback_tensor_inputs = ("latents", "prompt_embeds", "negative_prompt_embeds", "depth_mask")
    optional_components = ("depth_estimator", "feature_extractor")
    depth_estimator: Any

    def __init__(
        self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any, depth_estimator: Any = None,
        feature_extractor: Any = None,
    ):
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            depth_estimator=DPTForDepthEstimation.of(depth_estimator), feature_extractor=DPTImageProcessor.of(feature_extractor))

    @classmethod
    def _load_component(cls, name: str, class_name: str, folder: Path, loading: dict[str, Any]) -> Any:
        try:
            return super()._load_component(name, class_name, folder, loading)
        except ModuleNotFoundError as missing:
            if name not in cls.optional_components or missing.name != "transformers":
                raise
            _log.warning("%s is left out, since transformers is not installed (pip install 'calotype[depth]'): "
                         "calls need a depth_map", name)
            return None

    @takes_request
    def __call__(
        self, prompt: Prompt = None, image: Any = None, depth_map: Tensor | None = None, strength: float = 0.8,
        num_inference_steps: int = 50, guidance_scale: float = 7.5, *, request: Request,
    ) -> Any:
        """Change pictures by a text.

        Args:
            prompt, image, strength, num_inference_steps, guidance_scale: as in `StableDiffusionImg2ImgPipeline`.
            depth_map: [n, h, w] how near each place is, on any scale, the nearest highest: one, or one for each picture.
                By default `depth_estimator` estimates it.
            request: by keyword, the fields of `Request`.

        Returns:
            `StableDiffusionPipelineOutput`.
        """
        generation = self._begin(request, guidance_scale, prompt)
        given = self.given_images(image)
        depth = self._estimated(image, given) if depth_map is None else checked_depth(depth_map)
        generation.read(prompt, len(given))
        if generation.size % len(depth):
            raise ValueError(f"depth_map is {list(depth.shape)}, but must be [n, h, w], one or one for each of "
                             f"{len(given)} pictures")
        table = generation.table(num_inference_steps, strength=strength)
        latents = self.noised_latents(generation, table, given)
        generation.held["depth_mask"] = depth_mask(depth, latents).repeat_interleave(generation.size // len(depth), dim=0)
        return generation.finish(table, latents, self._develop(request), joined=("depth_mask",))

    def _estimated(self, image: Any, given: GivenImages) -> Tensor:
        """[n, h, w] the depth of pictures, estimated."""
        if given.latents:
            raise ValueError("image is latents, of which no depth can be estimated: give a depth_map, or pictures")
        if self.depth_estimator is None or self.feature_extractor is None:
            raise ValueError("this pipeline has no depth_estimator or no feature_extractor: give a depth_map, or install "
                             "transformers (pip install 'calotype[depth]') and load the checkpoint again")
        pixels = self.feature_extractor(rgb_images(image), return_tensors="pt").pixel_values
        return self.depth_estimator(pixels.to(self.depth_estimator.device, self.depth_estimator.dtype)).predicted_depth


def checked_depth(given: Any) -> Tensor:
    """[n, h, w] depth as it was given; whole numbers are depths too, of estimators that count.

    Raises:
        ValueError: it is no tensor, array or list, has other axes or none, or values that are not finite.
    """
    depth = torch.as_tensor(given) if isinstance(given, Tensor | np.ndarray | list) else given
    depth = depth.float() if isinstance(depth, Tensor) and not depth.is_complex() and depth.dtype != torch.bool else depth
    if not isinstance(depth, Tensor) or depth.ndim != 3 or not depth.is_floating_point() or not depth.numel():
        raise ValueError(f"depth_map is {shown(given)}, but must be a tensor of numbers of shape [n, h, w], one or one for each "
                         "image")
    return finite("depth_map", depth)


def depth_mask(depth: Tensor, like: Tensor) -> Tensor:
    """[n, 1, H, W] depth [n, h, w] at the size of latents `like` [B, C, H, W], each scaled to [-1, 1]; flat depth is 0."""
    small = F.interpolate(depth[:, None].float(), like.shape[2:], mode="bicubic", align_corners=False)
    low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    return torch.where(high > low, 2 * (small - low) / (high - low) - 1, torch.zeros_like(small)).to(like)
