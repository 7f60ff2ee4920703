"""Pictures out of nothing, by pseudo numerical methods."""

from __future__ import annotations

from typing import Any

from ..randomness import Generators
from ..schedulers.pndm import PNDMScheduler
from .call_arguments import takes_arguments
from .ddpm import UnconditionalPipeline


class PNDMPipeline(UnconditionalPipeline):
    """Unconditional generation by PNDM (Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds").

    Args:
        unet: `UNet2DModel`. scheduler: any scheduler's config is taken over into a `PNDMScheduler`.
    """

    def __init__(self, unet: Any, scheduler: Any):
        super().__init__(unet, PNDMScheduler.from_config(scheduler.config))

    @takes_arguments
    def __call__(
        self, batch_size: int = 1, num_inference_steps: int = 50, generator: Generators = None, output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Make `batch_size` pictures; the arguments and the result are those of `DDPMPipeline`."""
        return self._sample(batch_size, generator, num_inference_steps, output_type, return_dict)
