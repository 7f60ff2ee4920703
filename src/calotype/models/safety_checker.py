"""Stable Diffusion's safety checker: it looks at pictures with CLIP, and withholds some.

The rule is described by Rando et al. 2022, "Red-Teaming the Stable Diffusion Safety Filter", arXiv:2210.04610.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import register_to_config
from .base import Model
from .clip import config_to_save
from .clip_vision import CLIPVisionModel

_log = logging.getLogger(__name__)


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
