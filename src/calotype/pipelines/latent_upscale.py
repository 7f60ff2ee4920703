"""Pictures twice as wide and high, from latents to latents (K. Crowson, 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import tensor
from ..prompts.encode import Prompt, texts_of, tokenized
from .latent import LatentPipeline
from .request import Request, takes_request

_LEVELS = 64
"""Half the channels in which the UNet is told how noisy the small latents are."""


class StableDiffusionLatentUpscalePipeline(LatentPipeline):
    """Larger pictures under a text, of Stable Diffusion's latents before they are decoded, or of pictures.

    The UNet is preconditioned as in Karras et al. 2022, table 1, with sigma_data = 1: it predicts `-v`, and is told
    `log(sigma) / 4`. Its last channel, a variance, has no use here.

    Args:
        vae: `AutoencoderKL`. text_encoder: `CLIPTextModel`. tokenizer: `CLIPTokenizer`.
        unet: `UNet2DConditionModel` of `KDownBlock2D`, … scheduler: any scheduler, such as `EulerDiscreteScheduler`; its
            `prediction_type` is left aside.
    """

    _resample = "bicubic"

    def __init__(self, vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any):
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether predictions are guided: the scale is over 1."""
        return self._guidance_scale > 1

    @takes_request(without=("clip_skip", "prompt_syntax", "long_prompts"))
    def __call__(
        self, prompt: Prompt = None, image: Any = None, num_inference_steps: int = 75, guidance_scale: float = 9.0,
        latents: Tensor | None = None, pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None, *, request: Request,
    ) -> Any:
        """Make pictures larger.

        Args:
            prompt: what they show, or a list of such; or give `prompt_embeds` [B, L, C] and `pooled_prompt_embeds`.
            image: latents [n, 4, h, w], as `output_type="latent"` gives them; or pictures as for
                `StableDiffusionImg2ImgPipeline`.
            num_inference_steps, guidance_scale: as in `StableDiffusionPipeline`.
            latents: [B, 4, 2 h, 2 w] the noise to begin with.
            pooled_prompt_embeds, negative_pooled_prompt_embeds: [B, C] the pooled texts, beside `prompt_embeds` and
                `negative_prompt_embeds`.
            request: by keyword, the fields of `Request`.

        Returns:
            `StableDiffusionPipelineOutput`.
        """
        generation = self._begin(request, guidance_scale, prompt)
        guided = generation.pipeline.do_classifier_free_guidance
        given = self.given_images(image)
        wanted, pooled = self._read("prompt", prompt, request.prompt_embeds, pooled_prompt_embeds)
        unwanted, pools = None, [pooled]
        if guided:
            unwanted, other = self._read(
                "negative_prompt", request.negative_prompt, request.negative_prompt_embeds, negative_pooled_prompt_embeds)
            if len(unwanted) not in (1, len(wanted)):
                raise ValueError(f"{len(unwanted)} negative prompts for {len(wanted)} prompts: give one, or one for each")
            unwanted, pools = unwanted.expand(len(wanted), -1, -1), [other, pooled]
        generation.condition(wanted, unwanted, len(given))
        small = self.starting_latents(generation, given)
        multiple = 2 ** (len(self.unet.config.block_out_channels) - 2)
        if any(side % multiple for side in small.shape[2:]):
            raise ValueError(f"the pictures have latents of {small.shape[2]} x {small.shape[3]}, but both must be multiples of "
                             f"{multiple}, that is, of {multiple * self.vae_scale_factor} pixels")
        generation.held["image_latents"] = F.interpolate(small, scale_factor=2, mode="nearest")
        noise = generation.noise(small.shape[1], 2 * small.shape[2], 2 * small.shape[3], latents)
        generation.pipeline.scheduler = type(self.scheduler).from_config(self.scheduler.config, prediction_type="v_prediction")
        table = generation.table(num_inference_steps)
        levels = torch.from_numpy(table.levels.sigma[:-1] / table.levels.alpha[:-1]).float().to(generation.device)
        told = torch.cat([one.repeat_interleave(generation.size // len(one), dim=0) for one in pools]).to(noise)
        told = torch.cat([told.new_ones(len(told), _LEVELS), told.new_zeros(len(told), _LEVELS), told], dim=1)
        return generation.finish(
            table, noise * table.init_noise_sigma, self._develop(request), joined=("image_latents",),
            translate=lambda output: -output[:, :-1], timestep_cond=told, times=levels.log() / 4)

    @property
    def _pooled_channels(self) -> int | str:
        """How wide pooled texts are that this UNet is told beside the level of noise."""
        told = self.unet.config.time_cond_proj_dim
        return "channels" if told is None else told - 2 * _LEVELS

    def _read(self, what: str, text: Prompt, states: Tensor | None, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """[n, L, C] the states of texts before the text encoder's last norm, and [n, C] pooled; or what was given."""
        if (states is None) != (pooled is None):
            before, after = what.split("prompt")
            raise ValueError(f"give {what}_embeds and {before}pooled_prompt{after}_embeds together")
        if states is not None and pooled is not None:
            self._check_embeds(f"{what}_embeds", states)
            before, after = what.split("prompt")
            tensor(f"{before}pooled_prompt{after}_embeds", pooled, len(states), self._pooled_channels,
                   because=f"one for each of {what}_embeds, of the channels that this UNet reads")
            return states, pooled
        tokens = tokenized(self.tokenizer, texts_of(what, text), self.tokenizer.model_max_length)
        output = self.text_encoder(tokens.input_ids.to(self.text_encoder.device), output_hidden_states=True)
        return output.hidden_states[-1], output.pooler_output
