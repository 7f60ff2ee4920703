"""Inpainting by a model of whole pictures that knows nothing of it (Lugmayr et al. 2022, "RePaint")."""

from __future__ import annotations

from typing import Any

import torch

from ..images.masks import prepare_mask
from ..images.vae_processor import VaeImageProcessor
from ..randomness import Generators, randn
from ..schedulers.repaint import RePaintScheduler
from .call_arguments import takes_arguments
from .ddpm import UnconditionalPipeline
from .ldm import picture_tensor


class RePaintPipeline(UnconditionalPipeline):
    """Parts of pictures made anew, in harmony with the rest.

    Args:
        unet: `UNet2DModel`. scheduler: any scheduler's config is taken over into a `RePaintScheduler`.
    """

    def __init__(self, unet: Any, scheduler: Any):
        super().__init__(unet, RePaintScheduler.from_config(scheduler.config))

    @takes_arguments
    def __call__(
        self, image: Any, mask_image: Any, num_inference_steps: int = 250, eta: float = 0.0, jump_length: int = 10,
        jump_n_sample: int = 10, generator: Generators = None, output_type: str = "pil", return_dict: bool = True,
    ) -> Any:
        """Make a part of pictures anew.

        Args:
            image: a PIL image, an array or a list of them, cut down to multiples of 8 pixels by resizing; or a tensor
                [B, 3, H, W] in [-1, 1], taken as it is.
            mask_image: white where the picture is kept and black where it is made anew (the other way round than in
                `StableDiffusionInpaintPipeline`), one or one for each picture; or a tensor [B, 1, H, W] in [0, 1], which may be
                soft.
            eta: 0 is deterministic but for the way up, 1 has the noise of DDPM.
            jump_length: how many levels are gone back up, and how far jumps are apart.
            jump_n_sample: how often each stretch is gone down; 1 never jumps.
            generator: one, or one for each picture (each is then what it would be alone).
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"` (as the model has them, in [-1, 1]).

        Returns:
            `ImagePipelineOutput`, or a tuple without `return_dict`.
        """
        original = picture_tensor(image, 8).to(self.unet.device, self.unet.dtype)
        soft = isinstance(mask_image, torch.Tensor) and mask_image.is_floating_point()
        processor = VaeImageProcessor(
            vae_scale_factor=1, resample="nearest", do_normalize=False, do_binarize=not soft, do_convert_grayscale=True)
        height, width = original.shape[2:]
        mask = prepare_mask(mask_image, height, width, processor).to(original)
        if len(mask) not in (1, len(original)):
            raise ValueError(f"{len(mask)} masks for {len(original)} pictures: give one, or one for each")
        table = self.scheduler.inpainting_table(num_inference_steps, original, mask, jump_length, jump_n_sample, eta)
        noise = randn(original.shape, generator, original.device, original.dtype)
        return self._run(table, noise, self._told_only_time(table), generator, output_type, return_dict)
