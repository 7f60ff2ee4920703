"""CLIP's picture encoder, a vision transformer (Radford et al. 2021, arXiv:2103.00020, 2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import register_to_config
from ..outputs import Output
from .clip import CLIPEncoder


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
