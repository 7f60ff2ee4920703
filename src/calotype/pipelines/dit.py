"""Pictures of classes by a transformer on latents (Peebles & Xie 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..randomness import Generators
from ..words import check_choice
from .call_arguments import takes_arguments
from .class_labels import ClassLabels, class_numbers
from .ddpm import UnconditionalPipeline
from .guidance import guide


class DiTPipeline(UnconditionalPipeline):
    """Class-conditional generation.

    Args:
        transformer: `DiTTransformer2DModel`. vae: `AutoencoderKL`, or another autoencoder. scheduler: any scheduler; what the
            transformer says of variances is only heeded by those whose `variance_type` is a learned one.
        id2label: the classes' names: `{0: "tench, Tinca tinca", …}`, several for a class between commas.

    Attributes:
        labels: the number of the class of each name, by name in the order of the alphabet.
    """

    transformer: Any
    vae: Any

    def __init__(self, transformer: Any, vae: Any, scheduler: Any, id2label: Mapping[Any, str] | None = None):
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(id2label=None if id2label is None else {str(n): names for n, names in id2label.items()})
        named = {name.strip(): int(number) for number, names in (id2label or {}).items() for name in names.split(",")}
        self.labels: dict[str, int] = dict(sorted(named.items()))

    @property
    def _network(self) -> Any:
        return self.transformer

    @property
    def _autoencoder(self) -> Any:
        return self.vae

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """The numbers of classes by their names, to be given as `class_labels`.

        Raises:
            ValueError: there is no such name; names the nearest.
        """
        names = [label] if isinstance(label, str) else list(label)
        if not self.labels:
            raise ValueError("this pipeline knows no names of classes: it was made without id2label")
        for name in names:
            check_choice("a label", name, self.labels)
        return [self.labels[name] for name in names]

    @takes_arguments
    def __call__(
        self, class_labels: ClassLabels, guidance_scale: float = 4.0, generator: Generators = None,
        num_inference_steps: int = 50, output_type: str = "pil", return_dict: bool = True,
    ) -> Any:
        """Make a picture of each class.

        Args:
            class_labels: one number or several, from 0; that after the last class is none of them.
            guidance_scale: how much more the class counts than in the training data; up to 1 not at all, which is faster.
            generator: one, or one for each picture (each is then what it would be alone).
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"` (the scaled latents).

        Returns:
            `ImagePipelineOutput`, or a tuple without `return_dict`.

        Raises:
            FloatingPointError: latents or pictures are not finite.
        """
        config, device = self.transformer.config, self.transformer.device
        labels = class_numbers(class_labels, config.num_embeds_ada_norm, device)
        guided = guidance_scale > 1
        told = torch.cat([torch.full_like(labels, config.num_embeds_ada_norm), labels]) if guided else labels
        table = self.scheduler.table(num_inference_steps)
        timesteps = table.timesteps.to(device)
        learned = str(self.scheduler.config.get("variance_type")).startswith("learned")

        def predict(row: int, sample: Tensor) -> Tensor:
            copies = sample.repeat(len(told) // len(sample), 1, 1, 1)
            output = self.transformer(copies, timesteps[row], told, return_dict=False)[0]
            mean, variance = output[:, : sample.shape[1]], output[-len(sample) :, sample.shape[1] :]
            mean = guide(mean, guidance_scale) if guided else mean
            return torch.cat([mean, variance], dim=1) if learned else mean

        noise = self._noise(len(labels), generator) * table.init_noise_sigma
        return self._run(table, noise, predict, generator, output_type, return_dict)
