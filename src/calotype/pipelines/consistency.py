"""Pictures out of nothing or of a class, in one model call or a few (Song et al. 2023, "Consistency Models")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..randomness import Generators
from .call_arguments import takes_arguments
from .class_labels import ClassLabels, class_numbers
from .ddpm import UnconditionalPipeline


class ConsistencyModelPipeline(UnconditionalPipeline):
    """Generation by a consistency model.

    Args:
        unet: `UNet2DModel`, of classes or not. scheduler: `CMStochasticIterativeScheduler`.
    """

    @takes_arguments
    def __call__(
        self, batch_size: int = 1, class_labels: ClassLabels | None = None, num_inference_steps: int = 1,
        timesteps: Sequence[int] | None = None, generator: Generators = None, latents: Tensor | None = None,
        output_type: str = "pil", return_dict: bool = True,
    ) -> Any:
        """Make `batch_size` pictures.

        Args:
            class_labels: the class of all pictures, or one for each; by default a model of classes draws them at random.
            num_inference_steps: model calls; or `timesteps`, falling places on the scheduler's ramp (`[22, 0]`).
            generator: one, or one for each picture (each is then what it would be alone).
            latents: [B, C, H, W] the noise to begin with, of unit variance.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"` (as the model has them, in [-1, 1]).

        Returns:
            `ImagePipelineOutput`, or a tuple without `return_dict`.

        Raises:
            ValueError: classes for a model that has none, of another number than the pictures, or that there are not.
        """
        table = self.scheduler.table(None if timesteps is not None else num_inference_steps, timesteps=timesteps)
        noise = self._noise(batch_size, generator, latents)
        labels = self._labels(class_labels, batch_size, generator)
        told = table.timesteps.to(self.unet.device)

        def predict(row: int, sample: Tensor) -> Tensor:
            return self.unet(sample, told[row], labels, return_dict=False)[0]

        return self._run(table, noise * table.init_noise_sigma, predict, generator, output_type, return_dict)

    def _labels(self, given: ClassLabels | None, batch_size: int, generator: Generators) -> Tensor | None:
        """[B] classes, drawn where none are given; `None` for a model without classes."""
        classes = self.unet.config.num_class_embeds
        if classes is None:
            if given is not None:
                raise ValueError("this model is not conditioned on classes: leave class_labels out")
            return None
        device = self.unet.device
        if given is None:
            each = generator if isinstance(generator, (list, tuple)) else [generator]
            drawn = [torch.randint(0, classes, (batch_size // len(each),), generator=one,
                                   device=device if one is None else one.device) for one in each]
            return torch.cat(drawn).to(device)
        labels = class_numbers(given, classes - 1, device)
        if len(labels) not in (1, batch_size):
            raise ValueError(f"{len(labels)} class_labels for {batch_size} pictures: give one, or one for each")
        return labels.expand(batch_size)
