"""What pipelines share that work on the latents of an autoencoder: pictures to latents, latents to checked pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import tensor, whole_number
from ..images import postprocess
from ..images.reading import are_latents
from ..images.vae_processor import VaeImageProcessor
from ..models.latent_space import scaled, unscaled
from ..models.merging import at_scale
from ..prompts.encode import Prompt, encode_pair
from ..prompts.remembered import remembering
from ..randomness import Generators
from ..schedulers.table import Table
from .base import DiffusionPipeline, ImagePipelineOutput
from .decoding import decoded
from .guided import GuidedGeneration
from .lora import LoraAdapters
from .old_configs import right_scheduler, right_size
from .request import Request


@dataclass
class StableDiffusionPipelineOutput(ImagePipelineOutput):
    """`images`, and `nsfw_content_detected`: for each picture, whether the safety checker withheld it (`None` without one)."""

    nsfw_content_detected: list[bool] | None = None


@dataclass(frozen=True)
class GivenImages:
    """What a call begins with: `values` are pictures [n, 3, H, W] in [-1, 1], or [n, C, h, w] latents already."""

    values: Tensor
    latents: bool

    def __len__(self) -> int:
        return len(self.values)


class LatentPipeline(LoraAdapters, DiffusionPipeline):
    """Base of text-guided pipelines with a `vae`, a `unet`, a `tokenizer`, a `text_encoder` and a `scheduler`."""

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    safety_checker: Any = None
    feature_extractor: Any = None

    _right_entries: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    _right_size: ClassVar[bool] = False
    """What is put right in old configs: see `old_configs`."""

    def register_modules(self, **components: Any) -> None:
        """Make `components` attributes of the pipeline; when it is made, old ones are put right where this class does so."""
        if not self._names and "scheduler" in components:
            components["scheduler"] = right_scheduler(components["scheduler"], self._right_entries)
        if not self._names and self._right_size and "unet" in components:
            right_size(components["unet"])
        super().register_modules(**components)

    _callback_tensor_inputs: tuple[str, ...] = ("latents", "prompt_embeds", "negative_prompt_embeds")
    _resample = "lanczos"  # how the pictures of calls are resized

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a latent, each way."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @cached_property
    def image_processor(self) -> VaeImageProcessor:
        """Pictures to tensors and back."""
        return VaeImageProcessor(
            vae_scale_factor=self.vae_scale_factor, vae_latent_channels=self.vae.config.latent_channels,
            resample=self._resample, do_convert_rgb=True)

    # -- one generation's own --------------------------------------------------------------------------------------------

    _guidance_scale: float = 7.5
    num_timesteps: int = 0

    @property
    def guidance_scale(self) -> float:
        """The scale of the generation whose callback this pipeline was given to; `_guidance_scale` may be set there."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether predictions are guided: the scale is over 1, and is not an input of the model."""
        return self._guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None

    def _begin(self, request: Request, guidance_scale: float, prompt: Prompt) -> GuidedGeneration:
        request.check(prompt, self._callback_tensor_inputs)
        return GuidedGeneration(self, request, guidance_scale)

    # -- the parts -------------------------------------------------------------------------------------------------------

    def encode_prompt(
        self, prompt: Prompt, device: torch.device | str | None = None, num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True, negative_prompt: Prompt = None, prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None, lora_scale: float | None = None, clip_skip: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states for what is wanted, and for what is not: `prompts.encode.encode_pair`, whose `options` are taken too.

        `lora_scale`: how much adapters of the text encoder count here, beside what `set_adapters` said.
        """
        for name, given in (("prompt_embeds", prompt_embeds), ("negative_prompt_embeds", negative_prompt_embeds)):
            if given is not None:
                self._check_embeds(name, given)
        adapted = nullcontext() if lora_scale is None else at_scale([self.text_encoder], lora_scale)
        with torch.no_grad(), adapted, remembering(self.fast):
            wanted, unwanted = encode_pair(
                self.tokenizer, self.text_encoder, prompt, negative_prompt, num_images_per_prompt,
                do_classifier_free_guidance, prompt_embeds, negative_prompt_embeds, clip_skip, self.unet.dtype, **options)
        device = device or self.unet.device
        return wanted.to(device), None if unwanted is None else unwanted.to(device)

    def _check_embeds(self, name: str, given: Tensor) -> None:
        """Refuse hidden states of texts that this UNet cannot look at."""
        channels = self.unet.config.get("encoder_hid_dim") or self.unet.config.get("cross_attention_dim")
        one_width = isinstance(channels, int)  # not where levels of the UNet look at different parts
        tensor(name, given, "batch", "tokens", channels if one_width else "channels",
               because="as this UNet's cross_attention_dim says" if one_width else "")

    def encode_pictures(self, pictures: Tensor, generator: Generators = None) -> Tensor:
        """[B, C, H / f, W / f] scaled latents of pictures [B, 3, H, W] in [-1, 1], drawn from the encoder's distribution.

        A list of generators draws each picture's from its own.
        """
        pictures = pictures.to(self.vae.device, self.vae.dtype)
        if isinstance(generator, (list, tuple)):
            return torch.cat([self.encode_pictures(one, own) for one, own in zip(pictures.split(1), generator, strict=True)])
        encoded = self.vae.encode(pictures)
        latents = encoded.latent_dist.sample(generator) if hasattr(encoded, "latent_dist") else encoded.latents
        return scaled(self.vae, latents).to(self.unet.dtype)

    def given_images(self, image: Any, **how: Any) -> GivenImages:
        """The `image` of a call, prepared by the image processor, which is told `how`; `are_latents` tells what it is.

        Raises:
            ValueError: it is neither pictures nor latents, or nothing.
        """
        if image is None:
            raise ValueError("image is None, but must be a PIL image, an array, a tensor or a list of them")
        latents = are_latents(image, self.vae.config.latent_channels)
        return GivenImages(self.image_processor.preprocess(image, **how), latents)

    def starting_latents(self, generation: GuidedGeneration, given: GivenImages) -> Tensor:
        """[B, C, h, w] clean latents of the pictures that a generation begins with, each for its share of B."""
        if given.latents:
            return generation.for_each(given.values.to(generation.device, generation.dtype), lambda latents: latents)
        return generation.for_each(given.values, lambda each: self.encode_pictures(each, generation.request.generator))

    def noised_latents(self, generation: GuidedGeneration, table: Table, given: GivenImages) -> Tensor:
        """[B, C, h, w] the `starting_latents`, noised to the level at which `table` begins."""
        clean = self.starting_latents(generation, given)
        return table.noised(clean, generation.noise(*clean.shape[1:]))

    def initial_noise(
        self, generation: GuidedGeneration, table: Table, height: int, width: int, latents: Tensor | None = None
    ) -> Tensor:
        """[B, C, h, w] noise for pictures of `height` x `width` pixels at the table's top level; or of the caller's `latents`."""
        factor = self.vae_scale_factor
        noise = generation.noise(self.vae.config.latent_channels, height // factor, width // factor, latents)
        return noise * table.init_noise_sigma

    def decode_latents(self, latents: Tensor, **options: Any) -> Tensor:
        """[B, 3, H, W] in [-1, 1] from scaled latents; `options` go to the autoencoder. See `decoding.decoded`."""
        return decoded(self.vae, unscaled(self.vae, latents), **options)

    def _develop(
        self, request: Request, paste: Callable[[list[Any]], list[Any]] | None = None, **decoding: Any
    ) -> Callable[[Tensor], Any]:
        """Latents to the call's output: decoded, checked, and as `request` wants them.

        `paste` does something more to PIL images.
        """

        def develop(latents: Tensor) -> Any:
            pictures: Any = latents
            flagged = None
            if request.output_type != "latent":
                made = self.decode_latents(latents, generator=request.generator, **decoding)
                checked, flagged = self._check_safety(made)
                pictures = postprocess(checked, request.output_type)
                pictures = paste(pictures) if paste else pictures
            return StableDiffusionPipelineOutput(pictures, flagged) if request.return_dict else (pictures, flagged)

        return develop

    def _check_safety(self, pictures: Tensor) -> tuple[Tensor, list[bool] | None]:
        """The pictures, unsafe ones black, and which are; only where there is a safety checker."""
        if self.safety_checker is None:
            return pictures, None
        seen = self.feature_extractor(postprocess(pictures, "pil"), return_tensors="pt").pixel_values
        pictures, flagged = self.safety_checker(images=pictures, clip_input=seen.to(self.unet.device, self.unet.dtype))
        if flagged is not None:  # what is put in an unsafe picture's place, zeros by default, is in [0, 1]
            hidden = torch.tensor(flagged, device=pictures.device)[:, None, None, None]
            pictures = torch.where(hidden, 2 * pictures - 1, pictures)
        return pictures, flagged

    def picture_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels of what a call with these arguments makes."""
        size = self.unet.config.sample_size
        sizes = (size, size) if isinstance(size, int) else tuple(size or (64, 64))
        height = sizes[0] * self.vae_scale_factor if height is None else height
        width = sizes[1] * self.vae_scale_factor if width is None else width
        return self._side("height", height), self._side("width", width)

    def _side(self, name: str, given: Any) -> int:
        side, factor = whole_number(name, given, least=None, floats=True), self.vae_scale_factor
        if side < 1 or side % factor:
            raise ValueError(f"{name} is {side}, but must be a multiple of {factor}, from {factor} on")
        return side

    # -- more calls that scripts make ---------------------------------------------------------------------------------------

    def enable_vae_slicing(self) -> None:
        """Decode one picture at a time: less memory for large batches."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Undo `enable_vae_slicing`."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode and encode large pictures in parts, with less memory: see `enable_tiling` of the autoencoder."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Undo `enable_vae_tiling`."""
        self.vae.disable_tiling()
