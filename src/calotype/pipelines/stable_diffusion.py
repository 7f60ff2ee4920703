"""Stable Diffusion: from a text to pictures, by way of latents (Rombach et al. 2022)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..prompts.encode import Prompt
from ..prompts.textual_inversion import TextualInversion
from .latent import LatentPipeline
from .old_configs import LATENTS_ARE_NOT_CLIPPED
from .request import Request, takes_request

_log = logging.getLogger(__name__)


class StableDiffusionBase(TextualInversion, LatentPipeline):
    """The components of Stable Diffusion 1.x, 2.x and what is built like them; a subclass is a task.

    Args:
        vae: `AutoencoderKL`, or another autoencoder. text_encoder: `CLIPTextModel`. tokenizer: `CLIPTokenizer`.
        unet: `UNet2DConditionModel`. scheduler: any scheduler.
        safety_checker, feature_extractor: withhold unsafe pictures, or `None`. image_encoder: not used.
        requires_safety_checker: whether the checkpoint asks for one.
    """

    optional_components = ("safety_checker", "feature_extractor", "image_encoder")

    def __init__(
        self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any, safety_checker: Any = None,
        feature_extractor: Any = None, image_encoder: Any = None, requires_safety_checker: bool = True,
    ):
        if safety_checker is not None and feature_extractor is None:
            raise ValueError("a safety_checker needs a feature_extractor: give both, or safety_checker=None")
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            safety_checker=safety_checker, feature_extractor=feature_extractor, image_encoder=image_encoder,
        )
        self.register_to_config(requires_safety_checker=requires_safety_checker)
        if safety_checker is None and requires_safety_checker:
            warn_unchecked(type(self).__name__)


class StableDiffusionPipeline(StableDiffusionBase):
    """Text to pictures. Its components are those of `StableDiffusionBase`."""

    _right_entries, _right_size = LATENTS_ARE_NOT_CLIPPED, True

    @takes_request
    def __call__(
        self, prompt: Prompt = None, height: int | None = None, width: int | None = None, num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None, sigmas: Sequence[float] | None = None, guidance_scale: float = 7.5,
        latents: Tensor | None = None, *, request: Request,
    ) -> Any:
        """Make pictures of a text.

        Args:
            prompt: the text, or a list of texts; or give `prompt_embeds` [B, L, C].
            height, width: in pixels, multiples of 8; by default what the UNet was trained for.
            num_inference_steps: more is slower and better, up to a point. timesteps, sigmas: say where the steps are
                instead, for schedulers that can.
            guidance_scale: how much more the prompt counts than in the training data; up to 1 not at all, which is faster.
            latents: [B, C, H / 8, W / 8] the noise to begin with.
            request: by keyword, the fields of `Request`: `negative_prompt`, `generator`, `output_type`, …

        Returns:
            `StableDiffusionPipelineOutput`.

        Raises:
            TypeError: an unknown argument; names the nearest. ValueError: an argument that cannot be; says what can.
        """
        height, width = self.picture_size(height, width)
        generation = self._begin(request, guidance_scale, prompt)
        generation.read(prompt)
        table = generation.table(num_inference_steps, timesteps, sigmas)
        noise = self.initial_noise(generation, table, height, width, latents)
        return generation.finish(table, noise, self._develop(request))


_warned: set[str] = set()


def warn_unchecked(name: str) -> None:
    """Say once a class that its checkpoint's pictures are not checked."""
    if name not in _warned:
        _warned.add(name)
        _log.warning("%s has no safety checker: its pictures are not checked for unsafe content "
                     "(requires_safety_checker=False says that this is meant)", name)
