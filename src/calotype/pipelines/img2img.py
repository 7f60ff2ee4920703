"""From a picture and a text to a picture like it: enter the trajectory midway (Meng et al. 2022, SDEdit)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..prompts.encode import Prompt
from .old_configs import LATENTS_ARE_NOT_CLIPPED
from .request import Request, takes_request
from .stable_diffusion import StableDiffusionBase


class StableDiffusionImg2ImgPipeline(StableDiffusionBase):
    """Pictures changed by a text. Its components are those of `StableDiffusionBase`."""

    _right_entries, _right_size = LATENTS_ARE_NOT_CLIPPED, True

    @takes_request
    def __call__(
        self, prompt: Prompt = None, image: Any = None, strength: float = 0.8, num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None, sigmas: Sequence[float] | None = None, guidance_scale: float = 7.5, *,
        request: Request,
    ) -> Any:
        """Change pictures by a text.

        Args:
            prompt: the text, or a list of texts; or give `prompt_embeds` [B, L, C].
            image: a picture or a list of them: PIL, arrays [H, W, C] in [0, 1], tensors [C, H, W] in [0, 1] or [-1, 1];
                or latents [B, 4, H / 8, W / 8]. Several pictures go with one prompt, or each with its own.
            strength: how much is changed, above 0 to 1: noise for that part of the steps is added, and taken away again.
            num_inference_steps, timesteps, sigmas: as in `StableDiffusionPipeline`, for a strength of 1.
            guidance_scale: how much more the prompt counts than in the training data.
            request: by keyword, the fields of `Request`.

        Returns:
            `StableDiffusionPipelineOutput`.
        """
        generation = self._begin(request, guidance_scale, prompt)
        given = self.given_images(image)
        generation.read(prompt, len(given))
        table = generation.table(num_inference_steps, timesteps, sigmas, strength)
        return generation.finish(table, self.noised_latents(generation, table, given), self._develop(request))
