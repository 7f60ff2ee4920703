"""Pictures out of nothing, by the scheduler's own sampling."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..images import OUTPUT_TYPES, postprocess
from ..models.latent_space import unscaled
from ..randomness import Generators, starting_noise
from ..runtime.recording import call, checked
from ..schedulers.table import Table
from ..words import check_choice
from .base import DiffusionPipeline, ImagePipelineOutput
from .call_arguments import takes_arguments
from .decoding import decoded
from .generation import Generation
from .loop import Predict


class UnconditionalPipeline(DiffusionPipeline):
    """A network and a scheduler, and perhaps an autoencoder: what is told nothing, or a class at most."""

    unet: Any
    scheduler: Any

    def __init__(self, unet: Any, scheduler: Any):
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def _network(self) -> Any:
        return self.unet

    @property
    def _autoencoder(self) -> Any:
        """The autoencoder whose latents are sampled; `None` where pixels are."""
        return None

    def _noise(self, batch_size: int, generator: Generators, latents: Tensor | None = None) -> Tensor:
        """[B, C, H, W] the noise to begin with, of the network's own size; or the caller's `latents`, if they have that shape."""
        network = self._network
        size = network.config.sample_size
        if size is None:
            raise ValueError("the UNet's config has no sample_size: it does not say how large its pictures are")
        shape = (batch_size, network.config.in_channels, *((size, size) if isinstance(size, int) else size))
        return starting_noise(shape, generator, network.device, network.dtype, latents)

    def _decode(self, sample: Tensor, generator: Generators) -> Tensor:
        """Pictures in [-1, 1] from the denoised sample."""
        if self._autoencoder is None:
            return sample
        return decoded(self._autoencoder, unscaled(self._autoencoder, sample), generator=generator)

    def _sample(
        self, batch_size: int, generator: Generators, steps: int | None, output_type: str, return_dict: bool, **options: Any
    ) -> Any:
        """Sample with the network alone; `options` go to the scheduler's table."""
        table = self.scheduler.table(steps, **options)
        noise = self._noise(batch_size, generator) * table.init_noise_sigma
        return self._run(table, noise, self._told_only_time(table), generator, output_type, return_dict)

    def _told_only_time(self, table: Table) -> Predict:
        timesteps, kept = table.timesteps.to(self.unet.device), list[Any]()

        def predict(row: int, sample: Tensor) -> Tensor:
            structure = checked(self.unet) if self.fast else None
            if structure is None:
                return self.unet(sample, timesteps[row], return_dict=False)[0]
            if self._streaming or not kept:  # who streams may have changed the model in between
                kept[:] = self.unet.moments(timesteps)
            return call(self.unet, sample, kept[row], structure=structure)

        return predict

    def _run(
        self, table: Table, sample: Tensor, predict: Predict, generator: Generators, output_type: str, return_dict: bool
    ) -> Any:
        """Run the loop from `sample` on, and return pictures as they are asked for."""
        check_choice("output_type", output_type, OUTPUT_TYPES)

        def pictures(sample: Tensor, kind: str) -> Any:
            return sample if kind == "latent" else postprocess(self._decode(sample, generator), kind)

        def develop(sample: Tensor) -> Any:
            made = pictures(sample, output_type)
            return ImagePipelineOutput(made) if return_dict else (made,)

        looked_at = None if self._autoencoder is not None else lambda sample: pictures(sample, "pil")
        return Generation(self).run(table, sample, predict, develop, generator, None, self._autoencoder, looked_at)


class DDPMPipeline(UnconditionalPipeline):
    """Unconditional generation by ancestral sampling (Ho et al. 2020), or by whichever scheduler is put in.

    Args:
        unet: `UNet2DModel`. scheduler: any scheduler.
    """

    @takes_arguments
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
