"""Pictures out of nothing, by the reverse of an SDE whose variance explodes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..images.conversion import normalized
from ..randomness import Generators
from .call_arguments import takes_arguments
from .ddpm import UnconditionalPipeline


class ScoreSdeVePipeline(UnconditionalPipeline):
    """Unconditional generation by predictor and corrector (Song et al. 2021, algorithm 2).

    Args:
        unet: `UNet2DModel` that says the score of pictures in [0, 1] (NCSN++). scheduler: `ScoreSdeVeScheduler`.
    """

    def _decode(self, sample: Tensor, generator: Generators) -> Tensor:
        return normalized(sample)

    @takes_arguments
    def __call__(
        self, batch_size: int = 1, num_inference_steps: int = 2000, generator: Generators = None, output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Make `batch_size` pictures.

        Args:
            num_inference_steps: how many levels; at each the model is asked `correct_steps + 1` times.
            generator: one, with which the corrector's steps are as long as suits the batch as a whole; or one for each
                picture, which is then what it would be alone.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"` (as the model has them, in [0, 1]).

        Returns:
            `ImagePipelineOutput`, or a tuple without `return_dict`.
        """
        return self._sample(batch_size, generator, num_inference_steps, output_type, return_dict)
