"""Pictures out of nothing, in few steps."""

from __future__ import annotations

from typing import Any

from ..randomness import Generators
from ..schedulers.ddim import DDIMScheduler
from .call_arguments import takes_arguments
from .ddpm import UnconditionalPipeline


class DDIMPipeline(UnconditionalPipeline):
    """Unconditional generation by DDIM (Song et al. 2021).

    Args:
        unet: `UNet2DModel`. scheduler: any scheduler's config is taken over into a `DDIMScheduler`.
    """

    def __init__(self, unet: Any, scheduler: Any):
        super().__init__(unet, DDIMScheduler.from_config(scheduler.config))

    @takes_arguments
    def __call__(
        self, batch_size: int = 1, generator: Generators = None, eta: float = 0.0, num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None, output_type: str = "pil", return_dict: bool = True,
    ) -> Any:
        """Make `batch_size` pictures.

        Args:
            generator: one, or one for each picture (each is then what it would be alone).
            eta: 0 is deterministic, 1 has the noise of DDPM.
            use_clipped_model_output: take the noise from the clipped clean sample instead of the model's output.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"` (as the model has them, in [-1, 1]).

        Returns:
            `ImagePipelineOutput`, or a tuple without `return_dict`.
        """
        return self._sample(batch_size, generator, num_inference_steps, output_type, return_dict,
                            eta=eta, use_clipped_model_output=bool(use_clipped_model_output))
