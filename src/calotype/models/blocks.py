"""The levels of a UNet or autoencoder: residual blocks, attention between them, and a change of size.

One class goes down, one goes up, one is the middle; what the configs call `CrossAttnDownBlock2D`, `AttnUpBlock2D` and so
on are options of these. `skip_blocks.py` has the two that differ in kind (NCSN++).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..words import check_choice
from .attention import JointSpatialAttention, SpatialAttention, SpatialTransformer
from .conditioning import Context, Kept, Moment, repeated
from .layers import Downsample, Upsample, mean_of_pixels, repeat_pixels
from .resnet import ResnetBlock
from .spatial_norm import SpatialNormAttention, SpatialNormResnetBlock

Time = Tensor | Kept | Moment | None
Seen = Context | Tensor | None  # what attention looks at: a context, or the latents that norms look at
Run = Callable[..., Any]  # calls a block; under gradient checkpointing, keeps nothing of it
AttentionKind = Literal["none", "self", "cross", "joint"]


@dataclass(frozen=True)
class BlockOptions:
    """What the blocks of one level have in common.

    Attributes:
        time_channels: of the time embedding; `None` without time.
        layers: how many residual blocks going down (one more going up).
        attention: after each residual block: none, among positions, a transformer that looks at the context, or one
            attention to positions and context at once.
        head_channels, heads: the size of self-attention's heads; the number of the transformer's.
        context_channels, transformer_layers, linear_projection, only_cross, upcast: of the transformer.
        context_channels, only_cross, norm_context: of the attention to both.
        attention_groups: of self-attention's norm; `None` for no norm.
        resize: change the size by a convolution (of `downsample_padding`) or in a residual block.
        scale: what the sums of residual blocks and self-attention are divided by.
        latent_channels: of the latents that all norms look at (`spatial_norm.py`), given as time and as context.
    """

    time_channels: int | None
    layers: int = 1
    groups: int = 32
    eps: float = 1e-5
    act: str = "silu"
    dropout: float = 0.0
    time_scale_shift: str = "default"
    skip_time_act: bool = False
    scale: float = 1.0
    attention: AttentionKind = "none"
    attention_groups: int | None = 32
    head_channels: int | None = None
    heads: int = 1
    context_channels: int | None = None
    transformer_layers: int | tuple[int, ...] = 1
    linear_projection: bool = False
    only_cross: bool = False
    norm_context: bool = False
    upcast: bool = False
    resize: Literal["conv", "resnet"] = "conv"
    downsample_padding: int = 1
    latent_channels: int | None = None

    def resnet(self, channels: int, out: int, resample: Callable[[Tensor], Tensor] | None = None) -> ResnetBlock:
        if self.latent_channels is not None:
            return SpatialNormResnetBlock(channels, out, self.latent_channels, self.act)
        return ResnetBlock(
            channels, out, self.time_channels, self.groups, eps=self.eps, dropout=self.dropout, act=self.act,
            time_scale_shift=self.time_scale_shift, skip_time_act=self.skip_time_act, output_scale=self.scale,
            resample=resample,
        )

    def attentions(self, channels: int, count: int) -> nn.ModuleList | None:
        """`count` attentions of this level's kind, or `None`."""
        if self.attention == "none":
            return None
        if self.attention == "self" and self.latent_channels is not None:
            return nn.ModuleList(SpatialNormAttention(channels, self.latent_channels) for _ in range(count))
        if self.attention == "self":
            made = (SpatialAttention(channels, self.head_channels, self.attention_groups, self.eps, self.scale)
                    for _ in range(count))
            return nn.ModuleList(made)
        if self.attention == "joint":
            joint = (JointSpatialAttention(channels, self.head_channels, self.context_channels, self.groups, self.only_cross,
                                           self.norm_context) for _ in range(count))
            return nn.ModuleList(joint)
        depths = self.transformer_layers
        depths = (depths,) * count if isinstance(depths, int) else depths
        return nn.ModuleList(
            SpatialTransformer(channels, self.heads, self.context_channels, depth, self.groups, self.linear_projection,
                               self.dropout, self.only_cross, self.upcast)
            for depth in depths
        )


_LOOKING = (SpatialTransformer, JointSpatialAttention, SpatialNormAttention)  # at more than the sample


class Level(nn.Module):
    """Residual blocks, each followed by its attention where the level has one."""

    resnets: nn.ModuleList
    attentions: nn.ModuleList | None

    def layer(self, i: int, x: Tensor, time: Time, context: Seen) -> Tensor:
        """Residual block `i` and its attention."""
        return self.attend(i, self.resnets[i](x, time), context)

    def attend(self, i: int, x: Tensor, context: Seen) -> Tensor:
        """Attention `i`, where the level has attention."""
        if self.attentions is None:
            return x
        attention = self.attentions[i]
        return attention(x, context) if isinstance(attention, _LOOKING) else attention(x)


class DownBlock(Level):
    """Residual blocks and attention, then half the size unless it is the last."""

    def __init__(self, channels: int, out: int, options: BlockOptions, downsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList(options.resnet(channels if i == 0 else out, out) for i in range(options.layers))
        self.attentions = options.attentions(out, options.layers)
        if not downsample:
            self.downsamplers = None
        elif options.resize == "conv":
            self.downsamplers = nn.ModuleList([Downsample(out, options.downsample_padding)])
        else:
            self.downsamplers = nn.ModuleList([options.resnet(out, out, mean_of_pixels)])

    def forward(self, x: Tensor, time: Time, context: Seen, run: Run) -> tuple[Tensor, list[Tensor]]:
        """The result, and what the way up will want: the sample after every layer and after the change of size."""
        passed = []
        for i in range(len(self.resnets)):
            x = run(self.layer, i, x, time, context)
            passed.append(x)
        if self.downsamplers is not None:
            x = _resize(self.downsamplers[0], x, time)
            passed.append(x)
        return x, passed


class UpBlock(Level):
    """Residual blocks that take in what the way down passed on, and attention; then twice the size unless the last.

    `skips` are the channels that the way down passes on, the last first.
    """

    def __init__(self, channels: int, skips: list[int], out: int, options: BlockOptions, upsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList(
            options.resnet((channels if i == 0 else out) + skip, out) for i, skip in enumerate(skips)
        )
        self.attentions = options.attentions(out, len(skips))
        if not upsample:
            self.upsamplers = None
        elif options.resize == "conv":
            self.upsamplers = nn.ModuleList([Upsample(out)])
        else:
            self.upsamplers = nn.ModuleList([options.resnet(out, out, repeat_pixels)])

    def forward(
        self, x: Tensor, passed: list[Tensor] | None, time: Time, context: Seen, run: Run
    ) -> Tensor:
        """Takes its part off the end of `passed`, if anything was passed on."""
        for i in range(len(self.resnets)):
            x = run(self.layer, i, _join(x, passed), time, context)
        if self.upsamplers is None:
            return x
        # halving an odd size lost a row: what the next level will join says how many there were
        size = (passed[-1].shape[2], passed[-1].shape[3]) if passed else None
        return _resize(self.upsamplers[0], x, time, size)


class MidBlock(Level):
    """A residual block, then attention and a residual block, `attentions` times."""

    def __init__(self, channels: int, options: BlockOptions, attentions: int = 1):
        super().__init__()
        self.resnets = nn.ModuleList(options.resnet(channels, channels) for _ in range(attentions + 1))
        self.attentions = options.attentions(channels, attentions)

    def forward(self, x: Tensor, time: Time, context: Seen, run: Run) -> Tensor:
        x = self.resnets[0](x, time)
        for i in range(1, len(self.resnets)):
            x = run(self._attend_then_resnet, i, x, time, context)
        return x

    def _attend_then_resnet(self, i: int, x: Tensor, time: Time, context: Seen) -> Tensor:
        return self.resnets[i](self.attend(i - 1, x, context), time)


def _join(x: Tensor, passed: list[Tensor] | None) -> Tensor:
    return x if passed is None else torch.cat([x, repeated(passed.pop(), len(x))], dim=1)


def _resize(layer: nn.Module, x: Tensor, time: Time, size: tuple[int, int] | None = None) -> Tensor:
    if isinstance(layer, ResnetBlock):
        return layer(x, time)
    return layer(x, size) if isinstance(layer, Upsample) else layer(x)


# -- the names in configs ----------------------------------------------------------------------------------------------

_RESNET: Mapping[str, Any] = {"resize": "resnet"}
KINDS: dict[str, Mapping[str, Any]] = {
    "DownBlock2D": {"resize": "conv"}, "UpBlock2D": {"resize": "conv"},
    "ResnetDownsampleBlock2D": _RESNET, "ResnetUpsampleBlock2D": _RESNET,
    "AttnDownBlock2D": {"attention": "self"}, "AttnUpBlock2D": {"attention": "self"},
    "CrossAttnDownBlock2D": {"attention": "cross", "resize": "conv"},
    "CrossAttnUpBlock2D": {"attention": "cross", "resize": "conv"},
    "SimpleCrossAttnDownBlock2D": {"attention": "joint", **_RESNET},
    "SimpleCrossAttnUpBlock2D": {"attention": "joint", **_RESNET},
}
"""What each block name in a config means."""


def named(kind: str, options: BlockOptions, direction: str, others: Iterable[str] = ()) -> BlockOptions:
    """`options` with what the block name `kind` means.

    Raises:
        ValueError: there is no such block going `direction` (`"Down"` or `"Up"`); names those there are, and the `others`
            that the model has besides.
    """
    check_choice(f"{direction.lower()} block type", kind, [name for name in (*KINDS, *others) if direction in name])
    return replace(options, **KINDS[kind])
