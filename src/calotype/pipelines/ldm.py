"""Latent diffusion without a text (Rombach et al. 2022): pictures out of nothing, and larger pictures of small ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..images.reading import pictures_of
from ..images.vae_processor import VaeImageProcessor
from ..randomness import Generators, randn
from .call_arguments import takes_arguments
from .ddpm import UnconditionalPipeline
from .decoding import decoded


class LDMPipeline(UnconditionalPipeline):
    """Unconditional generation in the latents of an autoencoder.

    Args:
        vqvae: `VQModel`, `AutoencoderKL` or another autoencoder. unet: `UNet2DModel` of its latents.
        scheduler: any scheduler.
    """

    vqvae: Any

    def __init__(self, vqvae: Any, unet: Any, scheduler: Any):
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)

    @property
    def _autoencoder(self) -> Any:
        return self.vqvae

    def _step_options(self, eta: float) -> dict[str, float]:
        return {"eta": eta} if "eta" in self.scheduler.step_options() else {}

    @takes_arguments
    def __call__(
        self, batch_size: int = 1, generator: Generators = None, eta: float = 0.0, num_inference_steps: int = 50,
        output_type: str = "pil", return_dict: bool = True,
    ) -> Any:
        """Make `batch_size` pictures.

        Args:
            generator: one, or one for each picture (each is then what it would be alone).
            eta: fresh noise in solvers that take it (`DDIMScheduler`), 0 to 1.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"` (the scaled latents).

        Returns:
            `ImagePipelineOutput`, or a tuple without `return_dict`.

        Raises:
            FloatingPointError: latents or pictures are not finite.
        """
        return self._sample(batch_size, generator, num_inference_steps, output_type, return_dict, **self._step_options(eta))


class LDMSuperResolutionPipeline(LDMPipeline):
    """Small pictures made large (section 4.4): the UNet sees the small picture beside latents of the same height and width.

    Args:
        vqvae: `VQModel`, whose factor is how much larger pictures become; its latents are not scaled.
        unet: `UNet2DModel` with channels for the latents and for the picture. scheduler: any scheduler.
    """

    _autoencoder = None  # previews are decoded, for no scale of the latents is known

    def _decode(self, sample: Tensor, generator: Generators) -> Tensor:
        return decoded(self.vqvae, sample, generator=generator)

    @takes_arguments
    def __call__(  # type: ignore[override]
        self, image: Any = None, batch_size: int = 1, num_inference_steps: int = 100, eta: float = 0.0,
        generator: Generators = None, output_type: str = "pil", return_dict: bool = True,
    ) -> Any:
        """Enlarge pictures.

        Args:
            image: a PIL image, an array or a list of them, cut down to multiples of 32 pixels by resizing; or a tensor
                [B, 3, H, W] in [-1, 1], taken as it is.
            batch_size: how many large pictures are made of one small one; of several, one each.
            num_inference_steps, eta, generator, output_type, return_dict: as in `LDMPipeline`.

        Returns:
            `ImagePipelineOutput`, or a tuple without `return_dict`.
        """
        small = picture_tensor(image, 32).to(self.unet.device, self.unet.dtype)
        if batch_size < 1 or (len(small) > 1 and batch_size not in (1, len(small))):
            raise ValueError(f"batch_size is {batch_size} for {len(small)} pictures, but must be "
                             + (f"1 or {len(small)}" if len(small) > 1 else "at least 1"))
        small = small.expand(max(batch_size, len(small)), -1, -1, -1)
        channels = self.unet.config.in_channels - small.shape[1]
        if channels < 1:
            raise ValueError(f"this UNet has {self.unet.config.in_channels} input channels, none beside the picture's "
                             f"{small.shape[1]}: it is not one for super-resolution")
        table = self.scheduler.table(num_inference_steps, **self._step_options(eta))
        noise = randn((len(small), channels, *small.shape[2:]), generator, small.device, small.dtype) * table.init_noise_sigma
        alone = self._told_only_time(table)

        def predict(row: int, sample: Tensor) -> Tensor:
            return alone(row, torch.cat([sample, small], dim=1))

        return self._run(table, noise, predict, generator, output_type, return_dict)


def picture_tensor(image: Any, factor: int) -> Tensor:
    """[B, 3, H, W] in [-1, 1]: tensors as they are, others resized to the next lower multiples of `factor` pixels."""
    if isinstance(image, Tensor) and image.is_floating_point():
        batch = torch.cat(pictures_of(image))
        if batch.shape[1] != 3:
            raise ValueError(f"a tensor of pictures is {list(batch.shape)}, but must be [B, 3, H, W]")
        return batch
    return VaeImageProcessor(vae_scale_factor=factor, do_convert_rgb=True).preprocess(image)
