"""Pictures out of nothing, by the scheduler's own sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..images import OUTPUT_TYPES, postprocess
from ..randomness import Generators, randn
from ..runtime.packed import packed_convolutions
from ..words import check_choice
from .base import DiffusionPipeline, ImagePipelineOutput
from .loop import denoise


class UnconditionalPipeline(DiffusionPipeline):
    """A UNet of pixels and a scheduler."""

    unet: Any
    scheduler: Any

    def __init__(self, unet: Any, scheduler: Any):
        self.register_modules(unet=unet, scheduler=scheduler)

    def _sample(
        self, batch_size: int, generator: Generators, steps: int, output_type: str, return_dict: bool, **options: Any
    ) -> Any:
        check_choice("output_type", output_type, OUTPUT_TYPES)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
        table = self.scheduler.table(steps, **options)
        size = self.unet.config.sample_size
        if size is None:
            raise ValueError("the UNet's config has no sample_size: it does not say how large its pictures are")
        shape = (batch_size, self.unet.config.in_channels, *((size, size) if isinstance(size, int) else size))
        device = self.unet.device
        noise = randn(shape, generator, device, self.unet.dtype) * table.init_noise_sigma
        moments = self.unet.moments(table.timesteps.to(device))
        with self.progress_bar(total=len(table)) as bar, packed_convolutions(self.fast):

            def predict(row: int, sample: Tensor) -> Tensor:
                bar.update()
                return self.unet(sample, moments[row], return_dict=False)[0]

            pictures = postprocess(denoise(table, noise, predict, generator), output_type)
        return ImagePipelineOutput(pictures) if return_dict else (pictures,)


class DDPMPipeline(UnconditionalPipeline):
    """Unconditional generation by ancestral sampling (Ho et al. 2020), or by whichever scheduler is put in.

    Args:
        unet: `UNet2DModel`. scheduler: any scheduler.
    """

    @torch.no_grad()
    def __call__(
        self, batch_size: int = 1, generator: Generators = None, num_inference_steps: int = 1000,
        output_type: str = "pil", return_dict: bool = True,
    ) -> Any:
        """Make `batch_size` pictures.

        Args:
            generator: one, or one for each picture (each is then what it would be alone).
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"` (as the model has them, in [-1, 1]).

        Returns:
            `ImagePipelineOutput`, or a tuple without `return_dict`.
        """
        return self._sample(batch_size, generator, num_inference_steps, output_type, return_dict)
