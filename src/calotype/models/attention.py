"""Attention, the transformer block around it, and the transformer on a picture's positions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.attention import attend
from ..runtime.fused import add_norm, gated, group_norm
from ..runtime.packed import is_plain
from ..runtime.structure import called_plainly
from ..words import check_choice
from .conditioning import Context, Kept, through
from .layers import Conv2d, Linear


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017) of tokens on themselves or on a context.

    Args:
        channels: of the tokens.
        heads: how many heads of `channels / heads` channels.
        context_channels: of what is looked at; the tokens themselves by default.
        bias: whether the query, key and value projections have one.
        upcast: compute scores in float32.
        dropout: of the result.
        norm_context: put the context through a layer norm first.

    Attributes:
        backend: of `runtime.attention.BACKENDS`; `model.set_attention_backend` sets it everywhere.
    """

    backend = "auto"

    def __init__(
        self, channels: int, heads: int, context_channels: int | None = None, bias: bool = False, upcast: bool = False,
        dropout: float = 0.0, norm_context: bool = False,
    ):
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be divided among {heads} attention heads")
        self.heads, self.upcast = heads, upcast
        self.norm_cross = nn.LayerNorm(context_channels or channels) if norm_context else None
        self.to_q = Linear(channels, channels, bias=bias)
        self.to_k = Linear(context_channels or channels, channels, bias=bias)
        self.to_v = Linear(context_channels or channels, channels, bias=bias)
        self.to_out = nn.Sequential(Linear(channels, channels), *([nn.Dropout(dropout)] if dropout else []))

    def forward(self, x: Tensor, context: Tensor | Kept | None = None, mask: Tensor | None = None) -> Tensor:
        """[B, N, channels] from tokens `x` and, in its place for keys and values, `context` [B, L, context_channels]."""
        return self._look(x, *through(x if context is None else context, self, self._keys_and_values), mask)

    def _look(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        query, kind = self._heads(self.to_q(x)), value.dtype
        if self.upcast:
            query, key, value = query.float(), key.float(), value.float()
        seen = attend(query, key, value, mask, self.backend)
        return self.to_out(seen.transpose(1, 2).flatten(2).to(kind))

    def _keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        if self.norm_cross is not None:
            context = self.norm_cross(context)
        return self._heads(self.to_k(context)), self._heads(self.to_v(context))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, N, C] as [B, heads, N, C / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class SpatialAttention(Attention):
    """Self-attention among the positions of a picture [B, C, H, W], as DDPM and the autoencoders have it."""

    def __init__(self, channels: int, head_channels: int | None, groups: int | None, eps: float, output_scale: float = 1.0):
        super().__init__(channels, channels // (head_channels or channels), bias=True)
        self.group_norm = nn.GroupNorm(groups, channels, eps) if groups else None
        self.output_scale = output_scale

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        tokens = (x if self.group_norm is None else group_norm(self.group_norm, x)).flatten(2)
        seen = super().forward(tokens.transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        return (seen + x) / self.output_scale


class JointSpatialAttention(Attention):
    """Attention of a picture's places [B, C, H, W] to the context and to themselves at once (GLIDE, Nichol et al. 2021,
    section 3): keys and values of the context stand beside theirs, or alone with `only_cross`.

    With `norm_context`, the context goes through a norm of 32 groups, each over all of its tokens.
    """

    def __init__(
        self, channels: int, head_channels: int | None, context_channels: int | None, groups: int, only_cross: bool = False,
        norm_context: bool = False,
    ):
        context_channels = context_channels or channels
        super().__init__(channels, heads_of(channels, head_channels), bias=True)
        self.group_norm = nn.GroupNorm(groups, channels)
        self.norm_cross = nn.GroupNorm(32, context_channels) if norm_context else None  # type: ignore[assignment]
        self.add_k_proj = Linear(context_channels, channels)
        self.add_v_proj = Linear(context_channels, channels)
        self.only_cross = only_cross
        if only_cross:
            del self.to_k, self.to_v

    def forward(self, x: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        if context.states is None:
            raise ValueError("these blocks look at a context: give encoder_hidden_states")
        x = context.for_each_text(x)
        tokens = group_norm(self.group_norm, x).flatten(2).transpose(1, 2)
        key, value = through(context.states, self, self._of_context)
        mask = context.mask
        if not self.only_cross:
            if mask is not None or context.self_mask is not None:
                masks = (mask, key), (context.self_mask, tokens)
                mask = torch.cat([key.new_zeros(len(x), 1, 1, seen.shape[-2]) if given is None else given
                                  for given, seen in masks], dim=-1)
            key = torch.cat([key, self._heads(self.to_k(tokens))], dim=2)
            value = torch.cat([value, self._heads(self.to_v(tokens))], dim=2)
        return x + self._look(tokens, key, value, mask).transpose(1, 2).unflatten(2, x.shape[2:])

    def _of_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        if self.norm_cross is not None:
            context = self.norm_cross(context.transpose(1, 2)).transpose(1, 2)
        return self._heads(self.add_k_proj(context)), self._heads(self.add_v_proj(context))


def heads_of(channels: int, head_channels: int | None) -> int:
    """How many heads of `head_channels` (by default one, of all) `channels` make; a `ValueError` where they make none."""
    head_channels = head_channels or channels
    if channels % head_channels:
        raise ValueError(f"{channels} channels cannot be divided into attention heads of {head_channels} channels")
    return channels // head_channels


FEED_FORWARD_ACTIVATIONS: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "geglu": (True, F.gelu), "swiglu": (True, F.silu), "gelu": (False, F.gelu), "linear-silu": (False, F.silu),
    "gelu-approximate": (False, partial(F.gelu, approximate="tanh")),
    "geglu-approximate": (False, lambda x: x * torch.sigmoid(1.702 * x)),
}
"""What configs call the inside of a feed-forward part: whether half of it gates the other half (Shazeer 2020), and by what
function. The names are the format's, also the last, which has no gate."""


class Widen(nn.Module):
    """A projection and its activation; where there is a gate, half of the projection is activated and scales the other."""

    def __init__(self, channels: int, out: int, act: str):
        super().__init__()
        check_choice("the activation of feed-forward parts", act, FEED_FORWARD_ACTIVATIONS)
        self.gated, self.function = FEED_FORWARD_ACTIVATIONS[act]
        self.proj = Linear(channels, 2 * out if self.gated else out)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.function(self.proj(x))
        if self.function is F.gelu:
            return gated(self.proj(x))
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * self.function(gate)


class FeedForward(nn.Module):
    """Four times as wide, activated, and back."""

    def __init__(self, channels: int, dropout: float = 0.0, act: str = "geglu"):
        super().__init__()
        self.net = nn.Sequential(Widen(channels, 4 * channels, act), nn.Dropout(dropout), Linear(4 * channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context, feed-forward: each on normed tokens and added to them.

    With `only_cross`, the first attention looks at the context too.
    """

    def __init__(
        self, channels: int, heads: int, context_channels: int | None, dropout: float = 0.0, only_cross: bool = False,
        upcast: bool = False,
    ):
        super().__init__()
        self.only_cross = only_cross
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads, context_channels if only_cross else None, upcast=upcast)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, context_channels, upcast=upcast)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.only_cross:
            x = context.for_each_text(x)
            x, h = add_norm(x, self.attn1(self.norm1(x), context.states, context.mask), self.norm2)
        else:
            x, h = add_norm(x, self.attn1(self.norm1(x), mask=context.self_mask), self.norm2)
            x, h = context.for_each_text(x), context.for_each_text(h)
        x, h = add_norm(x, self.attn2(h, context.states, context.mask), self.norm3)
        return x + self.ff(h)


class SpatialTransformer(nn.Module):
    """Transformer blocks on the positions of a picture [B, C, H, W] (Rombach et al. 2022, appendix E.2.1)."""

    def __init__(
        self, channels: int, heads: int, context_channels: int | None, layers: int = 1, groups: int = 32,
        linear_projection: bool = False, dropout: float = 0.0, only_cross: bool = False, upcast: bool = False,
    ):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        # two spellings of one operation, and checkpoints have either
        self.proj_in = Linear(channels, channels) if linear_projection else Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_channels, dropout, only_cross, upcast) for _ in range(layers)
        )
        self.proj_out = Linear(channels, channels) if linear_projection else Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        tokens = _project(self.proj_in, group_norm(self.norm, x).flatten(2).transpose(1, 2))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return context.for_each_text(x) + _project(self.proj_out, tokens).transpose(1, 2).unflatten(2, x.shape[2:])


def _project(layer: nn.Module, tokens: Tensor) -> Tensor:
    """A linear layer or convolution of one pixel on tokens [B, N, C]."""
    if type(layer) is Conv2d and called_plainly(layer) and is_plain(layer):
        return F.linear(tokens, layer.weight.flatten(1), layer.bias)
    if layer.weight.ndim == 2:
        return layer(tokens)
    return layer(tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
