"""Stable Diffusion's safety checker, and what it sees with: CLIP's picture encoder, a vision transformer.

Rando et al. 2022, "Red-Teaming the Stable Diffusion Safety Filter", arXiv:2210.04610, describe the rule; the encoder is
of Radford et al. 2021, arXiv:2103.00020, 2.4.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import register_to_config
from ..outputs import Output
from .base import Model
from .clip import CLIPEncoder, config_to_save

_log = logging.getLogger(__name__)


@dataclass
class CLIPVisionOutput(Output):
    """What the encoder says of B pictures of N patches: in D channels, and in P once projected. `None` is not given.

    Args:
        image_embeds: `[B, P]`, the pooled state in the space that CLIP's texts and pictures share, not normalised.
        last_hidden_state: `[B, 1 + N, D]`: the class token, then the patches, row by row; without a final norm.
        pooler_output: `[B, D]`, the class token's last state, normalised.
        hidden_states: each `[B, 1 + N, D]`: the normalised embeddings, then every layer's.
    """

    image_embeds: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class Patches(nn.Module):
    """A class token and the patches of a picture, each with its position's embedding."""

    def __init__(self, channels: int, colours: int, patch_size: int, count: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(channels))
        self.patch_embedding = nn.Conv2d(colours, channels, patch_size, patch_size, bias=False)
        self.position_embedding = nn.Embedding(1 + count, channels)

    def forward(self, pictures: Tensor) -> Tensor:
        patches = self.patch_embedding(pictures).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class CLIPVisionModel(CLIPEncoder):
    """CLIP's picture encoder. Loads and saves the format of transformers' class of this name, old and new.

    Args:
        image_size, patch_size: the sides of a picture and of its square patches, in pixels.
        num_channels: a picture's colours.
        hidden_size, projection_dim and the others: as for `CLIPTextModel`.

    Raises:
        ValueError: `hidden_act` is unknown, or the heads do not divide `hidden_size`.
    """

    reads = "vision"

    @register_to_config
    def __init__(
        self, hidden_size: int = 768, intermediate_size: int = 3072, projection_dim: int = 512, num_hidden_layers: int = 12,
        num_attention_heads: int = 12, num_channels: int = 3, image_size: int = 224, patch_size: int = 32,
        hidden_act: str = "quick_gelu", layer_norm_eps: float = 1e-5, attention_dropout: float = 0.0,
        initializer_range: float = 0.02, initializer_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.vision_model = nn.ModuleDict({
            "embeddings": Patches(hidden_size, num_channels, patch_size, (image_size // patch_size) ** 2),
            "pre_layrnorm": nn.LayerNorm(hidden_size, layer_norm_eps),  # the format's spelling
            "encoder": self._layers(causal=False),
            "post_layernorm": nn.LayerNorm(hidden_size, layer_norm_eps),
        })
        if self.projects:
            self.visual_projection = nn.Linear(hidden_size, projection_dim, bias=False)
        self._initialise()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = False, return_dict: bool | None = True
    ) -> Any:
        """Encode pictures `[B, num_channels, image_size, image_size]`, as `CLIPImageProcessor` prepares them.

        Raises:
            ValueError: `pixel_values` has another shape.
        """
        vision_model: Any = self.vision_model
        right = [self.config.num_channels, self.config.image_size, self.config.image_size]
        if list(pixel_values.shape[1:]) != right:
            raise ValueError(f"pixel_values is {list(pixel_values.shape)}, but must be [B, {', '.join(map(str, right))}]")
        states = [vision_model.pre_layrnorm(vision_model.embeddings(pixel_values))]
        for layer in vision_model.encoder.layers:
            states.append(self.run(layer, states[-1]))
        last, pooled = states[-1], vision_model.post_layernorm(states[-1][:, 0])
        shown = tuple(states) if output_hidden_states else None
        output = (CLIPVisionOutput(self.visual_projection(pooled), last, None, shown) if self.projects
                  else CLIPVisionOutput(None, last, pooled, shown))
        return output if return_dict is not False else output.to_tuple()


class CLIPVisionModelWithProjection(CLIPVisionModel):
    """CLIP's picture encoder and its projection: gives `image_embeds` for `pooler_output`."""

    projects = True


class StableDiffusionSafetyChecker(Model):
    """Withholds pictures that look like one of 17 concepts, which files hold only as CLIP embeddings.

    A picture is unsafe if the cosine between its embedding and a concept's exceeds that concept's threshold. If it
    exceeds that of one of three "special care" concepts, the other thresholds are lower by 0.01 (Rando et al., 2.1).
    The rule rounds what is over to three decimals, so it takes half a thousandth. A fresh checker has no concepts yet.

    Args:
        vision_config: the config of its `CLIPVisionModel`.
        projection_dim: the channels of the embeddings.
        text_config, logit_scale_init_value, initializer_factor: for the record, as files have them.
    """

    weights_stem = "model"

    @register_to_config
    def __init__(
        self, vision_config: Mapping[str, Any] | None = None, projection_dim: int = 512,
        text_config: Mapping[str, Any] | None = None, logit_scale_init_value: float = 2.6592, initializer_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel.from_config({"vision_config": vision_config or {}})
        self.visual_projection = nn.Linear(self.vision_model.config.hidden_size, projection_dim, bias=False)
        self.concept_embeds, self.special_care_embeds, self.concept_embeds_weights, self.special_care_embeds_weights = (
            nn.Parameter(torch.ones(shape), requires_grad=False)
            for shape in ((17, projection_dim), (3, projection_dim), (17,), (3,)))

    @torch.no_grad()
    def is_unsafe(self, clip_input: Tensor) -> list[bool]:
        """Whether each of the pictures `[B, 3, H, W]` is unsafe; in the size and scale of `CLIPImageProcessor`."""
        pooled = self.vision_model(clip_input.to(self.device, self.dtype)).pooler_output
        seen = F.normalize(self.visual_projection(pooled).float())

        def over(concepts: Tensor, thresholds: Tensor) -> Tensor:
            return seen @ F.normalize(concepts.float()).T - thresholds.float()

        care = (over(self.special_care_embeds, self.special_care_embeds_weights) >= 0.0005).any(1, keepdim=True)
        excess = over(self.concept_embeds, self.concept_embeds_weights) + 0.01 * care
        return (excess >= 0.0005).any(1).tolist()

    def forward(self, clip_input: Tensor, images: Any) -> tuple[Any, list[bool]]:
        """Check pictures.

        Args:
            clip_input: `[B, 3, H, W]`, the pictures as `CLIPImageProcessor` prepares them.
            images: the same B pictures as a tensor or array (or a list of arrays), B first.

        Returns:
            A copy of `images` in which unsafe pictures are zeros (black where pixels begin at 0), and which are.

        Raises:
            ValueError: not as many pictures in `images` as in `clip_input`.
        """
        if len(images) != len(clip_input):
            raise ValueError(f"there are {len(images)} images, but {len(clip_input)} pictures in clip_input")
        unsafe = self.is_unsafe(clip_input)
        images = images.clone() if isinstance(images, Tensor) else np.array(images)
        images[np.flatnonzero(unsafe)] = 0
        if any(unsafe):
            _log.warning("%d of %d pictures are withheld, and black: the safety checker finds them unsafe; try another "
                         "prompt or seed", sum(unsafe), len(unsafe))
        return images, unsafe

    # -- the file format ----------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As `Configured.from_config`; old files' `vision_config_dict` goes before `vision_config`."""
        if not isinstance(config, Mapping):
            config, kwargs = cls.load_config(config, return_unused_kwargs=True, **kwargs)
        parts = {name: config[f"{name}_dict"] for name in ("vision_config", "text_config") if config.get(f"{name}_dict")}
        kept = {name: value for name, value in config.items() if not name.endswith("_config_dict")}
        return super().from_config(kept | parts, return_unused_kwargs, **kwargs)

    @classmethod
    def _known_elsewhere(cls) -> set[str]:
        return CLIPVisionModel._known_elsewhere()

    def _config_to_save(self) -> dict[str, Any]:
        return config_to_save(self, "clip")

    @classmethod
    def current_name(cls, name: str) -> str:
        inner = name.removeprefix("vision_model.")
        return name if inner == name else f"vision_model.{CLIPVisionModel.current_name(inner)}"

    @classmethod
    def is_stale(cls, name: str) -> bool:
        return CLIPVisionModel.is_stale(name.removeprefix("vision_model."))
