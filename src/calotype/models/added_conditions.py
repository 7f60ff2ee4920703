"""What texts and pictures become before a UNet sees them: a vector beside the time, or tokens beside the text.

DeepFloyd IF pools its text, Kandinsky 2.1 adds CLIP's text and picture embeddings, 2.2 a picture's, and its ControlNet a
picture of hints besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import FrozenConfig
from ..words import check_choice, listing
from .embeddings import TimestepEmbedding
from .layers import Conv2d, Linear

NEEDED: dict[str, tuple[str, ...]] = {
    "text_time": ("text_embeds", "time_ids"), "text": (), "text_image": ("text_embeds", "image_embeds"),
    "image": ("image_embeds",), "image_hint": ("image_embeds",),
}
"""What each `addition_embed_type` embeds of `added_cond_kwargs`."""
_HINT_WIDTHS = (16, 32, 96, 256)


def given(added: Mapping[str, Tensor] | None, names: Sequence[str]) -> list[Tensor]:
    """The conditions of those names; a `ValueError` that asks for them where they are not all there."""
    added = added or {}
    if not set(names) <= set(added):
        asked = listing(names).replace(" or ", " and ")
        raise ValueError(f"this model is conditioned on more than time and text: give added_cond_kwargs with {asked}")
    return [added[name] for name in names]


class AttentionPooling(nn.Module):
    """[B, C] from tokens [B, L, C]: what their mean, with an embedding of its place, sees in itself and them."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be divided among addition_embed_type_num_heads={heads}")
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1, channels) / channels**0.5)
        self.k_proj, self.q_proj, self.v_proj = (Linear(channels, channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True) + self.positional_embedding
        x = torch.cat([mean, x], 1)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q_proj(mean), self.k_proj(x), self.v_proj(x)))
        return F.scaled_dot_product_attention(query, key, value).flatten(1)


class PooledText(nn.Module):
    """A vector [B, out] of a text's hidden states [B, L, channels] (DeepFloyd IF)."""

    def __init__(self, channels: int, out: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.pool = AttentionPooling(channels, heads)
        self.proj = Linear(channels, out)
        self.norm2 = nn.LayerNorm(out)

    def forward(self, text: Tensor) -> Tensor:
        return self.norm2(self.proj(self.pool(self.norm1(text))))


class TextAndImage(nn.Module):
    """A vector [B, out] of CLIP's embeddings of a text and a picture, [B, channels] each (Kandinsky 2.1)."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.text_proj = Linear(channels, out)
        self.text_norm = nn.LayerNorm(out)
        self.image_proj = Linear(channels, out)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.text_norm(self.text_proj(text)) + self.image_proj(image)


class Image(nn.Module):
    """A vector [B, out] of CLIP's embedding of a picture [B, channels] (Kandinsky 2.2).

    With `hint_channels`, `input_hint_block` makes latents [B, hint_channels, H, W] of a picture [B, 3, 8 · H, 8 · W].
    """

    def __init__(self, channels: int, out: int, hint_channels: int | None = None):
        super().__init__()
        self.image_proj = Linear(channels, out)
        self.image_norm = nn.LayerNorm(out)
        if hint_channels is not None:
            layers: list[nn.Module] = [Conv2d(3, _HINT_WIDTHS[0], 3, padding=1), nn.SiLU()]
            for width, wider in pairwise(_HINT_WIDTHS):
                layers += [Conv2d(width, width, 3, padding=1), nn.SiLU()]
                layers += [Conv2d(width, wider, 3, stride=2, padding=1), nn.SiLU()]
            self.input_hint_block = nn.Sequential(*layers, Conv2d(_HINT_WIDTHS[-1], hint_channels, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        return self.image_norm(self.image_proj(image))


class ImageTokens(nn.Module):
    """[B, tokens, out] of CLIP's embedding of a picture [B, channels] (Kandinsky 2.2)."""

    def __init__(self, channels: int, out: int, tokens: int = 32):
        super().__init__()
        self.tokens = tokens
        self.image_embeds = Linear(channels, tokens * out)
        self.norm = nn.LayerNorm(out)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.image_embeds(image).unflatten(-1, (self.tokens, -1)))


class TextAndImageTokens(nn.Module):
    """A picture's embedding [B, image_channels] as tokens, before a text's [B, L, channels] (Kandinsky 2.1)."""

    def __init__(self, channels: int, image_channels: int, out: int, tokens: int = 10):
        super().__init__()
        self.tokens = tokens
        self.image_embeds = Linear(image_channels, tokens * out)
        self.text_proj = Linear(channels, out)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return torch.cat([self.image_embeds(image).unflatten(-1, (self.tokens, -1)), self.text_proj(text)], 1)


def projection(config: FrozenConfig, out: int) -> nn.Module | None:
    """What makes the `out` channels that attention looks at of those that are given, as a UNet's config has it."""
    kind, entering = config.encoder_hid_dim_type, config.encoder_hid_dim
    check_choice("encoder_hid_dim_type", kind, (None, "text_proj", "text_image_proj", "image_proj"))
    if entering is None:
        if kind is not None:
            raise ValueError(f"the config needs encoder_hid_dim, the channels that {kind!r} takes")
        return None
    if kind == "image_proj":
        return ImageTokens(entering, out)
    return TextAndImageTokens(entering, out, out) if kind == "text_image_proj" else Linear(entering, out)


def added_embedding(config: FrozenConfig, context: int, out: int) -> nn.Module | None:
    """What makes a vector of `out` channels of the added conditions, as a UNet's config has it; `context` is the text's."""
    kind, hidden = config.addition_embed_type, config.encoder_hid_dim
    check_choice("addition_embed_type", kind, (None, *NEEDED))
    if kind is None:
        return None
    if kind == "text_time":
        return TimestepEmbedding(config.projection_class_embeddings_input_dim, out)
    if kind == "text":
        return PooledText(hidden or context, out, config.addition_embed_type_num_heads)
    if kind == "text_image":
        return TextAndImage(context, out)
    if hidden is None:
        raise ValueError("the config needs encoder_hid_dim, the channels of the pictures' embeddings")
    return Image(hidden, out, 4 if kind == "image_hint" else None)
