"""Latent consistency models: pictures in one to eight steps (Luo et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..prompts.encode import Prompt
from ..schedulers.lcm import DistilledScheduler
from ..schedulers.table import Table
from .guided import GuidedGeneration
from .request import Request, takes_request
from .stable_diffusion import StableDiffusionBase

_UNGUIDED = ("negative_prompt", "negative_prompt_embeds", "guidance_rescale", "quality")


class _Distilled(StableDiffusionBase):
    """What both tasks share: the guidance scale is told to the UNet, and the steps are some of those of the distillation."""

    _callback_tensor_inputs = ("latents", "prompt_embeds", "w_embedding")

    def _begin(self, request: Request, guidance_scale: float, prompt: Prompt) -> GuidedGeneration:
        if self.unet.config.time_cond_proj_dim is None:
            raise ValueError("this UNet takes no guidance scale (its config has no time_cond_proj_dim): use a "
                             "StableDiffusionPipeline, with LCMScheduler if it was distilled")
        if not isinstance(self.scheduler, DistilledScheduler):
            raise ValueError(f"a {type(self.scheduler).__name__} does not know on which steps a model was distilled: "
                             "use LCMScheduler or TCDScheduler")
        return super()._begin(request, guidance_scale, prompt)

    def _table(
        self, generation: GuidedGeneration, steps: int, original_steps: int | None, timesteps: Sequence[int] | None,
        strength: float = 1.0,
    ) -> Table:
        if timesteps is None:
            timesteps = self.scheduler.distilled_timesteps(steps, original_steps, strength).tolist()
        else:
            timesteps = timesteps[len(timesteps) - max(int(len(timesteps) * strength), 1):]
        return generation.table(steps, timesteps)


class LatentConsistencyModelPipeline(_Distilled):
    """Text to pictures in few steps. Its components are those of `StableDiffusionBase`."""

    @takes_request(without=_UNGUIDED)
    def __call__(
        self, prompt: Prompt = None, height: int | None = None, width: int | None = None, num_inference_steps: int = 4,
        original_inference_steps: int | None = None, timesteps: Sequence[int] | None = None, guidance_scale: float = 8.5,
        latents: Tensor | None = None, *, request: Request,
    ) -> Any:
        """Make pictures of a text.

        Args:
            prompt, height, width, latents: as in `StableDiffusionPipeline`.
            num_inference_steps: 1 to 8 are enough.
            original_inference_steps: of the solver that was distilled; by default what the scheduler's config says.
            timesteps: say where the steps are instead.
            guidance_scale: told to the UNet, which was trained with scales of about 3 to 14.
            request: by keyword, the fields of `Request`, but for those of unwanted things.

        Returns:
            `StableDiffusionPipelineOutput`.
        """
        height, width = self.picture_size(height, width)
        generation = self._begin(request, guidance_scale, prompt)
        generation.read(prompt)
        table = self._table(generation, num_inference_steps, original_inference_steps, timesteps)
        noise = self.initial_noise(generation, table, height, width, latents)
        return generation.finish(table, noise, self._develop(request))


class LatentConsistencyModelImg2ImgPipeline(_Distilled):
    """Pictures changed by a text, in few steps. Its components are those of `StableDiffusionBase`."""

    @takes_request(without=_UNGUIDED)
    def __call__(
        self, prompt: Prompt = None, image: Any = None, num_inference_steps: int = 4, strength: float = 0.8,
        original_inference_steps: int | None = None, timesteps: Sequence[int] | None = None, guidance_scale: float = 8.5,
        latents: Tensor | None = None, *, request: Request,
    ) -> Any:
        """Change pictures by a text.

        Args:
            prompt, image: as in `StableDiffusionImg2ImgPipeline`.
            num_inference_steps: all of them are taken, whatever the strength.
            strength: how much is changed, above 0 to 1: the share of training, from its noisiest end, that is left out is
                1 - `strength`.
            original_inference_steps, guidance_scale: as in `LatentConsistencyModelPipeline`.
            timesteps: say where the steps are, for a strength of 1.
            latents: [B, C, h, w] the noisy latents to begin with, instead of the picture's.
            request: by keyword, the fields of `Request`, but for those of unwanted things.

        Returns:
            `StableDiffusionPipelineOutput`.
        """
        generation = self._begin(request, guidance_scale, prompt)
        given = self.given_images(image)
        generation.read(prompt, len(given))
        table = self._table(generation, num_inference_steps, original_inference_steps, timesteps, strength)
        if latents is not None:
            height, width = latents.shape[2:]
            noisy = generation.noise(self.vae.config.latent_channels, height, width, latents)
            return generation.finish(table, noisy, self._develop(request))
        return generation.finish(table, self.noised_latents(generation, table, given), self._develop(request))
