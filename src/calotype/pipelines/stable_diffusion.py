"""Stable Diffusion: from a text to pictures, by way of latents (Rombach et al. 2022)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..images import OUTPUT_TYPES, postprocess
from ..randomness import Generators, randn
from ..runtime.packed import packed_convolutions
from ..schedulers.table import Table
from ..words import check_choice, check_keywords
from .base import DiffusionPipeline, ImagePipelineOutput
from .guidance import embed_guidance_scale, guide
from .loop import denoise
from .prompt import Prompt, encode_pair

CALLBACK_TENSORS = ("latents", "prompt_embeds", "negative_prompt_embeds")
OnStepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], Mapping[str, Tensor] | None]


@dataclass
class StableDiffusionPipelineOutput(ImagePipelineOutput):
    """`images`, and `nsfw_content_detected`: for each picture, whether the safety checker withheld it (`None` without one)."""

    nsfw_content_detected: list[bool] | None = None


class StableDiffusionPipeline(DiffusionPipeline):
    """Text to pictures with Stable Diffusion 1.x, 2.x and what is built like them.

    Args:
        vae: `AutoencoderKL`. text_encoder: `CLIPTextModel`. tokenizer: `CLIPTokenizer`. unet: `UNet2DConditionModel`.
        scheduler: any scheduler. safety_checker, feature_extractor: withhold unsafe pictures, or `None`.
        image_encoder: not used. requires_safety_checker: whether the checkpoint asks for one.
    """

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    safety_checker: Any
    feature_extractor: Any
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
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)

    # -- one generation's own --------------------------------------------------------------------------------------------

    _guidance_scale: float = 7.5
    _interrupt: bool = False
    num_timesteps: int = 0

    @property
    def guidance_scale(self) -> float:
        """The scale of the generation whose callback this pipeline was given to; `_guidance_scale` may be set there."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether predictions are guided: the scale is over 1, and is not an input of the model."""
        return self._guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None

    @property
    def interrupt(self) -> bool:
        """Set `_interrupt` in a callback to end the generation after that step."""
        return self._interrupt

    # -- the parts -------------------------------------------------------------------------------------------------------

    def encode_prompt(
        self, prompt: Prompt, device: torch.device | str | None = None, num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True, negative_prompt: Prompt = None, prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None, lora_scale: float | None = None, clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states for what is wanted, and for what is not; see `prompt.encode_pair`."""
        with torch.no_grad():
            wanted, unwanted = encode_pair(
                self.tokenizer, self.text_encoder, prompt, negative_prompt, num_images_per_prompt,
                do_classifier_free_guidance, prompt_embeds, negative_prompt_embeds, clip_skip, self.unet.dtype)
        device = device or self.unet.device
        return wanted.to(device), None if unwanted is None else unwanted.to(device)

    def prepare_latents(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: Generators,
        latents: Tensor | None, scale: float,
    ) -> Tensor:
        """Noise of `shape`, or the caller's, at the top level of the trajectory."""
        if latents is None:
            latents = randn(shape, generator, device, dtype)
        elif tuple(latents.shape) != tuple(shape):
            raise ValueError(f"latents have the shape {list(latents.shape)}, and this call makes {list(shape)}")
        return latents.to(device, dtype) * scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] from scaled latents."""
        return self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample

    # -- the task --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self, prompt: Prompt = None, height: int | None = None, width: int | None = None, num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None, sigmas: Sequence[float] | None = None, guidance_scale: float = 7.5,
        negative_prompt: Prompt = None, num_images_per_prompt: int = 1, eta: float = 0.0, generator: Generators = None,
        latents: Tensor | None = None, prompt_embeds: Tensor | None = None, negative_prompt_embeds: Tensor | None = None,
        output_type: str = "pil", return_dict: bool = True, cross_attention_kwargs: Mapping[str, Any] | None = None,
        guidance_rescale: float = 0.0, clip_skip: int | None = None, callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",), **unknown: Any,
    ) -> Any:
        """Make pictures of a text.

        Args:
            prompt: the text, or a list of texts; or give `prompt_embeds` [B, L, C].
            height, width: in pixels, multiples of 8; by default what the UNet was trained for.
            num_inference_steps: more is slower and better, up to a point. timesteps, sigmas: say where the steps are
                instead, for schedulers that can.
            guidance_scale: how much more the prompt counts than in the training data; up to 1 not at all, which is faster.
            guidance_rescale: against overexposure at high scales; see `guidance.guide`.
            negative_prompt: what should not be seen: one text, or one for each prompt; or `negative_prompt_embeds`.
            num_images_per_prompt: pictures for each prompt.
            eta: fresh noise in `DDIMScheduler`, 0 to 1. generator: one, or one for each picture (each is then what it
                would be alone). latents: [B, C, H / 8, W / 8] the noise to begin with.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`. return_dict: return an object with fields, not a tuple.
            clip_skip: leave out that many last layers of the text encoder.
            callback_on_step_end: called as `callback(pipeline, step, timestep, tensors)` after every step with the tensors
                named in `callback_on_step_end_tensor_inputs`; it may return some of them changed.

        Returns:
            `StableDiffusionPipelineOutput`.

        Raises:
            TypeError: an unknown argument; names the nearest. ValueError: an argument that cannot be; says what can.
        """
        check_keywords(type(self).__name__, unknown, _arguments())
        height, width = self.picture_size(height, width)
        _check_inputs(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, output_type,
                      callback_on_step_end_tensor_inputs, num_images_per_prompt)
        own = copy.copy(self)  # what callbacks see and set; other generations have theirs
        own._guidance_scale, own._interrupt = guidance_scale, False
        device = self.unet.device
        wanted, unwanted = self.encode_prompt(
            prompt, device, num_images_per_prompt, own.do_classifier_free_guidance, negative_prompt, prompt_embeds,
            negative_prompt_embeds, clip_skip=clip_skip)
        options = {"eta": eta} if "eta" in self.scheduler.step_options() else {}
        table: Table = self.scheduler.table(num_inference_steps, timesteps=timesteps, sigmas=sigmas, **options)
        own.num_timesteps = len(table)
        shape = (len(wanted), self.unet.config.in_channels, height // self.vae_scale_factor, width // self.vae_scale_factor)
        latents = self.prepare_latents(shape, wanted.dtype, device, generator, latents, table.init_noise_sigma)
        with packed_convolutions(self.fast):
            latents = own._denoise(table, latents, wanted, unwanted, generator, guidance_rescale, cross_attention_kwargs,
                                   callback_on_step_end, callback_on_step_end_tensor_inputs)
            if output_type == "latent":
                pictures, flagged = latents, None
            else:
                pictures, flagged = self._check_safety(self.decode_latents(latents), output_type)
        return StableDiffusionPipelineOutput(pictures, flagged) if return_dict else (pictures, flagged)

    def _denoise(
        self, table: Table, latents: Tensor, wanted: Tensor, unwanted: Tensor | None, generator: Generators, rescale: float,
        cross_attention_kwargs: Mapping[str, Any] | None, callback: OnStepEnd | None, tensors: Sequence[str],
    ) -> Tensor:
        condition = None
        if self.unet.config.time_cond_proj_dim is not None:
            condition = embed_guidance_scale(
                self._guidance_scale, self.unet.config.time_cond_proj_dim, latents.dtype, latents.device)
        timesteps = table.timesteps.to(latents.device)
        moments = self.unet.moments(timesteps, timestep_cond=condition)
        text = wanted if unwanted is None else torch.cat([unwanted, wanted])
        kept = self.unet.keep(text)

        def predict(row: int, sample: Tensor) -> Tensor:
            twice = len(text) == 2 * len(sample)
            output = self.unet(torch.cat([sample] * 2) if twice else sample, moments[row], kept,
                               cross_attention_kwargs=cross_attention_kwargs, return_dict=False)[0]
            return guide(output, self._guidance_scale, rescale) if twice else output

        with self.progress_bar(total=len(table)) as bar:

            def after_step(row: int, sample: Tensor) -> Tensor | None:
                nonlocal text, kept, unwanted
                if callback is not None:
                    held = {"latents": sample, "prompt_embeds": text, "negative_prompt_embeds": unwanted}
                    given = {name: held[name] for name in tensors}
                    changed = callback(self, row, timesteps[row], given) or {}  # type: ignore[arg-type]
                    sample = changed.get("latents", sample)
                    unwanted = changed.get("negative_prompt_embeds", unwanted)
                    if (new := changed.get("prompt_embeds", text)) is not text:
                        text, kept = new, self.unet.keep(new)
                bar.update()
                return None if self._interrupt else sample

            return denoise(table, latents, predict, generator, after_step)

    def _check_safety(self, pictures: Tensor, output_type: str) -> tuple[Any, list[bool] | None]:
        """The pictures as asked for, unsafe ones black, and which are; only where there is a safety checker."""
        if self.safety_checker is None:
            return postprocess(pictures, output_type), None
        seen = self.feature_extractor(postprocess(pictures, "pil"), return_tensors="pt").pixel_values
        pictures, flagged = self.safety_checker(images=pictures, clip_input=seen.to(self.unet.device, self.unet.dtype))
        if flagged is not None:  # what is put in an unsafe picture's place, zeros by default, is in [0, 1]
            hidden = torch.tensor(flagged, device=pictures.device)[:, None, None, None]
            pictures = torch.where(hidden, 2 * pictures - 1, pictures)
        return postprocess(pictures, output_type), flagged

    def picture_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels of what a call with these arguments makes."""
        size = self.unet.config.sample_size
        sizes = (size, size) if isinstance(size, int) else tuple(size or (64, 64))
        height = sizes[0] * self.vae_scale_factor if height is None else height
        width = sizes[1] * self.vae_scale_factor if width is None else width
        for name, value in (("height", height), ("width", width)):
            if value < 1 or value % self.vae_scale_factor:
                raise ValueError(f"{name} is {value}, but must be a multiple of {self.vae_scale_factor}")
        return height, width

    # -- more calls that scripts make ---------------------------------------------------------------------------------------

    def enable_vae_slicing(self) -> None:
        """Decode one picture at a time: less memory for large batches."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Undo `enable_vae_slicing`."""
        self.vae.disable_slicing()


def _arguments() -> list[str]:
    return [name for name in inspect.signature(StableDiffusionPipeline.__call__).parameters if name not in ("self", "unknown")]


def _check_inputs(
    prompt: Prompt, negative_prompt: Prompt, prompt_embeds: Tensor | None, negative_prompt_embeds: Tensor | None,
    output_type: str, tensors: Sequence[str], images_per_prompt: int,
) -> None:
    check_choice("output_type", output_type, OUTPUT_TYPES)
    for name in tensors:
        check_choice("a callback tensor", name, CALLBACK_TENSORS)
    if images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt is {images_per_prompt}, but must be at least 1")
    for what, text, embeds in (("prompt", prompt, prompt_embeds), ("negative_prompt", negative_prompt, negative_prompt_embeds)):
        if text is not None and embeds is not None:
            raise ValueError(f"give {what} or {what}_embeds, not both")
        several = isinstance(text, list) and all(isinstance(one, str) for one in text)
        if text is not None and not isinstance(text, str) and not several:
            raise TypeError(f"{what} is text or a list of texts, and this is {text!r:.80}")
        if text == []:
            raise ValueError(f"{what} is an empty list")
    if prompt is None and prompt_embeds is None:
        raise ValueError("give a prompt, or prompt_embeds")
    if prompt_embeds is not None and negative_prompt_embeds is not None and prompt_embeds.shape != negative_prompt_embeds.shape:
        raise ValueError(f"prompt_embeds are {list(prompt_embeds.shape)} and negative_prompt_embeds "
                         f"{list(negative_prompt_embeds.shape)}: they must have one shape")
