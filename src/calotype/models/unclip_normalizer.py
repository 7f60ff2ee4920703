"""What brings CLIP's picture embeddings to mean 0 and deviation 1, so that noise can be added to them (Stable unCLIP)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import register_to_config
from .base import Model


class StableUnCLIPImageNormalizer(Model):
    """The mean and standard deviation of CLIP embeddings over the training pictures, `mean` and `std` [1, embedding_dim].

    Args:
        embedding_dim: channels of an embedding.
    """

    @register_to_config
    def __init__(self, embedding_dim: int = 768):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1, embedding_dim))
        self.std = nn.Parameter(torch.ones(1, embedding_dim))

    def scale(self, embeds: Tensor) -> Tensor:
        """Embeddings [B, embedding_dim] with mean 0 and deviation 1."""
        return (embeds - self.mean) / self.std

    def unscale(self, embeds: Tensor) -> Tensor:
        """The opposite of `scale`."""
        return embeds * self.std + self.mean
