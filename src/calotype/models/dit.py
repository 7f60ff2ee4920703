"""The diffusion transformer (DiT) of Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", arXiv:2212.09748."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import register_to_config
from ..outputs import Output
from ..words import check_choice
from .attention import Attention, FeedForward
from .base import Model
from .embeddings import TimestepEmbedding, plane_sines, sinusoidal
from .layers import Conv2d, Linear
from .unet import whole_batch

_SINES = 256  # channels in which a timestep enters
_EPS = 1e-6  # of the norms that come without weights
_DROPPED = 0.1  # how many of the labels training replaces by the null class
_Self = TypeVar("_Self", bound="DiTTransformer2DModel")


@dataclass
class Transformer2DModelOutput(Output):
    """`sample` [B, out_channels, H, W]: the prediction."""

    sample: Tensor


class TimeAndClass(nn.Module):
    """[B, channels] from timesteps [B] and labels [B]; the label after the last class is the null class."""

    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(_SINES, channels)
        self.class_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, channels)})

    def forward(self, timesteps: Tensor, labels: Tensor) -> Tensor:
        named = self.class_embedder["embedding_table"](labels)
        sines = sinusoidal(timesteps, _SINES, flip_sin_to_cos=True, freq_shift=1)
        return self.timestep_embedder(sines.to(named.dtype)) + named


class AdaptiveNormZero(nn.Module):
    """adaLN-Zero (section 3.2): what shifts, scales and gates the two parts of a block. Zero before training."""

    def __init__(self, classes: int, channels: int):
        super().__init__()
        self.emb = TimeAndClass(classes, channels)
        self.linear = _zero(Linear(channels, 6 * channels))

    def forward(self, timesteps: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Six tensors [B, 1, channels]: shift, scale and gate of the attention, then of the feed-forward part."""
        return self.linear(F.silu(self.emb(timesteps, labels)))[:, None].chunk(6, dim=-1)


class DiTBlock(nn.Module):
    """Self-attention and feed-forward part of the paper's figure 3; time and class say how much of each there is."""

    def __init__(
        self, channels: int, heads: int, classes: int, dropout: float, bias: bool, upcast: bool, act: str, affine: bool,
        eps: float,
    ):
        super().__init__()
        self.norm1 = AdaptiveNormZero(classes, channels)
        self.attn1 = Attention(channels, heads, bias=bias, upcast=upcast, dropout=dropout)
        self.norm3 = nn.LayerNorm(channels, eps, affine)
        self.ff = FeedForward(channels, dropout, act)

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor) -> Tensor:
        """[B, N, channels] from tokens `x`, timesteps [B] and labels [B]."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = self.norm1(timesteps, labels)
        x = x + gate * self.attn1(_normed(x) * (1 + scale) + shift)
        return x + gate_ff * self.ff(self.norm3(x) * (1 + scale_ff) + shift_ff)


class DiTTransformer2DModel(Model):
    """A transformer on patches of latents that knows the timestep and a class (arXiv:2212.09748).

    In training, a label in ten becomes the null class, once for the whole network as in the paper (sections 3.1 and 4;
    Diffusers draws anew for every block, so that hardly any sample is ever without its class).

    Args:
        num_attention_heads, attention_head_dim: heads, and channels of a head; their product is the width, a multiple of 4.
        in_channels, out_channels: of the latents and of the prediction, which has twice as many where the variance is
            learned; by default as many.
        num_layers: how many blocks. dropout: of attention and feed-forward parts.
        norm_num_groups: for the record; nothing depends on it.
        attention_bias: whether queries, keys and values have one. upcast_attention: compute scores in float32.
        sample_size: height and width of the latents it was trained on; others are laid over the same plane.
        patch_size: height and width of a token.
        activation_fn: of the feed-forward parts, a name in `attention.FEED_FORWARD_ACTIVATIONS`.
        num_embeds_ada_norm: how many classes; the next number is the null class.
        norm_type: `"ada_norm_zero"`.
        norm_elementwise_affine, norm_eps: of the norm before the feed-forward part.

    Raises:
        ValueError: an unknown name, no number of classes, or a width that is no multiple of 4.
    """

    @register_to_config
    def __init__(
        self, num_attention_heads: int = 16, attention_head_dim: int = 72, in_channels: int = 4,
        out_channels: int | None = None, num_layers: int = 28, dropout: float = 0.0, norm_num_groups: int = 32,
        attention_bias: bool = True, sample_size: int = 32, patch_size: int = 2, activation_fn: str = "gelu-approximate",
        num_embeds_ada_norm: int | None = 1000, upcast_attention: bool = False, norm_type: str = "ada_norm_zero",
        norm_elementwise_affine: bool = False, norm_eps: float = 1e-5,
    ):
        super().__init__()
        check_choice("norm_type", norm_type, ("ada_norm_zero",))
        if num_embeds_ada_norm is None:
            raise ValueError("num_embeds_ada_norm is None, but must be the number of classes")
        width = num_attention_heads * attention_head_dim
        if width % 4:
            raise ValueError(f"{num_attention_heads} heads of {attention_head_dim} channels make a width of {width}, "
                             "but it must be a multiple of 4")
        self.pos_embed = nn.ModuleDict({"proj": Conv2d(in_channels, width, patch_size, stride=patch_size)})
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(width, num_attention_heads, num_embeds_ada_norm, dropout, attention_bias, upcast_attention,
                     activation_fn, norm_elementwise_affine, norm_eps)
            for _ in range(num_layers)
        )
        self.proj_out_1 = _zero(Linear(width, 2 * width))
        self.proj_out_2 = _zero(Linear(width, patch_size**2 * (out_channels or in_channels)))

    def forward(
        self, hidden_states: Tensor, timestep: Tensor | float | None = None, class_labels: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None, return_dict: bool = True,
    ) -> Any:
        """Predict for noisy latents.

        Args:
            hidden_states: [B, in_channels, H, W], both sizes multiples of `patch_size`.
            timestep: one, or [B].
            class_labels: [B] integers from 0 to `num_embeds_ada_norm`, which is the null class.

        Returns:
            `Transformer2DModelOutput`, or a tuple without `return_dict`.

        Raises:
            ValueError: time or class is missing, or the latents cannot be divided into patches.
        """
        if cross_attention_kwargs:
            raise ValueError(f"cross_attention_kwargs takes nothing here, and got {', '.join(cross_attention_kwargs)}")
        if timestep is None or class_labels is None:
            raise ValueError("this model is conditioned on time and class: give timestep and class_labels")
        patch = self.config.patch_size
        if hidden_states.ndim != 4 or hidden_states.shape[2] % patch or hidden_states.shape[3] % patch:
            raise ValueError(f"hidden_states are {list(hidden_states.shape)}, but must be [B, channels, H, W] with height "
                             f"and width that are multiples of {patch}")
        timesteps, labels = whole_batch(timestep, hidden_states), self._drop(whole_batch(class_labels, hidden_states))

        x = self.pos_embed["proj"](hidden_states)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        x = x + plane_sines(height, width, x.shape[-1], self.config.sample_size // patch, like=x)
        for block in self.transformer_blocks:
            x = self.run(block, x, timesteps, labels)
        first: Any = self.transformer_blocks[0]  # the last norm has no embedding of its own
        shift, scale = self.proj_out_1(F.silu(first.norm1.emb(timesteps, labels)))[:, None].chunk(2, dim=-1)
        x = self.proj_out_2(_normed(x) * (1 + scale) + shift)
        x = x.unflatten(-1, (patch, patch, -1)).unflatten(1, (height, width))
        x = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return Transformer2DModelOutput(x) if return_dict else (x,)

    def _drop(self, labels: Tensor) -> Tensor:
        """In training, some of the labels [B] become the null class."""
        if not self.training:
            return labels
        dropped = torch.rand(len(labels), device=labels.device) < _DROPPED
        return labels.masked_fill(dropped, self.config.num_embeds_ada_norm)

    # -- files from before the class had its name ---------------------------------------------------------------------

    @classmethod
    def from_config(
        cls: type[_Self], config: Mapping[str, Any] | str | os.PathLike[str], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """As `Model.from_config`; a config of the older `Transformer2DModel` is taken where it describes this network."""
        if isinstance(config, (str, os.PathLike)):
            config, kwargs = cls.load_config(config, return_unused_kwargs=True, **kwargs)
        if isinstance(config, Mapping) and config.get("_class_name") == "Transformer2DModel":
            kind = config.get("norm_type", "layer_norm")
            if kind != "ada_norm_zero":
                raise ValueError(f"this is a Transformer2DModel of norm_type {kind!r}; of that class only those of norm_type "
                                 "'ada_norm_zero' can be loaded, which are DiTTransformer2DModel")
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def _known_elsewhere(cls) -> set[str]:
        return super()._known_elsewhere() | {
            "attention_type", "caption_channels", "cross_attention_dim", "double_self_attention", "interpolation_scale",
            "num_vector_embeds", "only_cross_attention", "use_additional_conditions", "use_linear_projection"}

    @classmethod
    def is_stale(cls, name: str) -> bool:
        return name == "pos_embed.pos_embed"  # the sines of each place, which are computed


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=_EPS)


def _zero(layer: nn.Linear) -> nn.Linear:
    """`layer` with zeros for weights: blocks begin as the identity, and the network by predicting zero (section 4)."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
