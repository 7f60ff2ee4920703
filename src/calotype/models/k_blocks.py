"""The levels of k-diffusion's UNets, as the latent upscaler has them: every norm is scaled and shifted by the time.

A design of Katherine Crowson (`k-diffusion`, 2022). A level passes one sample on, not one a layer, and the way up narrows
in its last layer.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..words import listing
from .attention import Attention, heads_of
from .blocks import KINDS, BlockOptions, Run, Time, _join
from .conditioning import Context, for_all, through
from .layers import Conv2d, Linear, activation, smooth_down, smooth_up

K_KINDS = {"KDownBlock2D": False, "KCrossAttnDownBlock2D": True, "KUpBlock2D": False, "KCrossAttnUpBlock2D": True}
"""The names in configs, and whether such a level looks at the context."""
_GROUP = 32  # channels normed together


class AdaptiveGroupNorm(nn.Module):
    """A group norm whose scale and shift are computed from the time (Dhariwal & Nichol 2021, section 3)."""

    def __init__(self, channels: int, time_channels: int, eps: float = 1e-5, groups: int | None = None):
        super().__init__()
        self.groups, self.eps = groups or max(1, channels // _GROUP), eps
        self.linear = Linear(time_channels, 2 * channels)

    def forward(self, x: Tensor, time: Time) -> Tensor:
        """[B, C, H, W] from `x` of that shape and `time` [B or 1, time_channels]."""
        told = for_all(through(time, self, self.linear), x)  # type: ignore[arg-type]
        scale, shift = told[..., None, None].chunk(2, dim=1)
        return F.group_norm(x, self.groups, eps=self.eps) * (1 + scale) + shift


class AdaptiveResnet(nn.Module):
    """Adaptive norm, activation, convolution, twice, and the input added. `width` is the level's number of channels."""

    def __init__(self, channels: int, middle: int, out: int, width: int, time_channels: int, options: BlockOptions):
        super().__init__()
        self.norm1 = AdaptiveGroupNorm(channels, time_channels, options.eps)
        self.conv1 = Conv2d(channels, middle, 3, padding=1)
        self.norm2 = AdaptiveGroupNorm(middle, time_channels, options.eps, max(1, width // _GROUP))
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = Conv2d(middle, out, 3, padding=1)
        self.act = activation(options.act)
        self.conv_shortcut = Conv2d(channels, out, 1, bias=False) if channels != out else None

    def forward(self, x: Tensor, time: Time) -> Tensor:
        h = self.conv1(self.act(self.norm1(x, time)))
        h = self.conv2(self.dropout(self.act(self.norm2(h, time))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class AdaptiveAttention(nn.Module):
    """Attention of a picture's places on themselves, where wanted, and on the context; each adaptively normed and added."""

    def __init__(self, channels: int, time_channels: int, options: BlockOptions, self_attention: bool):
        super().__init__()
        heads = heads_of(channels, options.head_channels)
        self.norm1 = AdaptiveGroupNorm(channels, time_channels) if self_attention else None
        self.attn1 = Attention(channels, heads, bias=True) if self_attention else None
        self.norm2 = AdaptiveGroupNorm(channels, time_channels)
        self.attn2 = Attention(channels, heads, options.context_channels, bias=True, norm_context=True)

    def forward(self, x: Tensor, time: Time, context: Context) -> Tensor:
        if self.norm1 is not None and self.attn1 is not None:
            x = x + _on_places(self.attn1, self.norm1(x, time), Context(None, context.self_mask))
        x = context.for_each_text(x)
        return x + _on_places(self.attn2, self.norm2(x, time), context)


def _on_places(attention: Attention, x: Tensor, context: Context) -> Tensor:
    seen = attention(x.flatten(2).transpose(1, 2), context.states, context.mask)
    return seen.transpose(1, 2).unflatten(2, x.shape[2:])


class _Level(nn.Module):
    """Residual blocks, each followed by its attention where the level has one."""

    def __init__(
        self, width: int, shapes: list[tuple[int, int, int]], options: BlockOptions, cross: bool, self_attention: bool
    ):
        super().__init__()
        time_channels = options.time_channels or 0
        self.resnets = nn.ModuleList(AdaptiveResnet(*shape, width, time_channels, options) for shape in shapes)
        self.attentions = nn.ModuleList(
            AdaptiveAttention(out, time_channels, options, self_attention) for *_, out in shapes) if cross else None

    def layer(self, i: int, x: Tensor, time: Time, context: Context) -> Tensor:
        x = self.resnets[i](x, time)
        return x if self.attentions is None else self.attentions[i](x, time, context)


class KDownBlock(_Level):
    """Residual blocks and attention, then half the size unless it is the last, which has self-attention too."""

    def __init__(self, channels: int, out: int, options: BlockOptions, cross: bool, last: bool):
        shapes = [(channels if i == 0 else out, out, out) for i in range(options.layers)]
        super().__init__(out, shapes, options, cross, self_attention=last)
        self.last = last

    def forward(self, x: Tensor, time: Time, context: Context, run: Run) -> tuple[Tensor, list[Tensor]]:
        """The result, and what the way up will want: the sample before the change of size."""
        for i in range(len(self.resnets)):
            x = run(self.layer, i, x, time, context)
        return x if self.last else smooth_down(x), [x]


class KUpBlock(_Level):
    """Residual blocks and attention, the last of them to the next level's channels; then twice the size unless the last.

    The first level to look at the context begins with the sample alone, and has self-attention. The others take in what
    their counterpart passed on.
    """

    def __init__(self, channels: int, out: int, options: BlockOptions, cross: bool, first: bool, last: bool):
        alone = first and cross
        shapes = [(channels, channels, channels)] * options.layers
        shapes[0] = (channels if alone else 2 * channels, channels, channels)
        # with attention, it is only the second convolution of the last residual block that narrows
        shapes[-1] = (shapes[-1][0], channels if cross else out, out)
        super().__init__(channels, shapes, options, cross, self_attention=alone)
        self.alone, self.last = alone, last

    def forward(self, x: Tensor, passed: list[Tensor], time: Time, context: Context, run: Run) -> Tensor:
        """Takes its part off the end of `passed`."""
        joined = _join(x, passed)
        x = x if self.alone else joined
        for i in range(len(self.resnets)):
            x = run(self.layer, i, x, time, context)
        return x if self.last else smooth_up(x)


def check_unmixed(kinds: list[str], middle: str | None, groups: int | None) -> None:
    """Raise where k-diffusion's blocks, which pass on one sample a level, stand among blocks that pass on one a layer."""
    own = sorted({kind for kind in kinds if kind in K_KINDS})
    other = sorted({kind for kind in kinds if kind in KINDS})
    if own and other:
        raise ValueError(f"{listing(own)} cannot be in one model with {listing(other)}")
    if groups is None and (other or middle):
        raise ValueError(f"norm_num_groups is None, which is only for models wholly of {listing(K_KINDS)}")
