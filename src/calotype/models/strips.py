"""Large pictures in horizontal strips: the very result, in little more memory than the input and output of one layer.

A convolution needs only the rows next to those that it makes, and a group norm whose mean and variance are known is each
number's own affair. So every layer takes its input strip by strip, with a halo of one row, and the statistics of a norm are
gathered over all strips before the first is normed. Unlike tiles, strips leave no seams. Attention looks at the whole
picture, as it must: that is where the picture is smallest, and PyTorch's never holds all scores at once.

At its widest, Stable Diffusion's decoder holds a residual block's input, 256 channels at the size of the picture, and the 128
that the block makes of them: 3 GiB for 2048 x 2048 pixels in half precision, and a few strips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..runtime.offload import let_in
from ..runtime.scope import fast_path
from .resnet import ResnetBlock

if TYPE_CHECKING:
    from .autoencoder_kl import Decoder, Encoder
    from .blocks import Level, MidBlock

Layer = Callable[..., Tensor]

_NUMBERS = 2**25  # in a strip where it is widest: 64 MiB in half precision, enough to keep any GPU busy


def encode(encoder: Encoder, x: Tensor) -> Tensor:
    """What `encoder` makes of pictures [B, C, H, W], one picture after the other; nothing is recorded for gradients."""
    return _through(lambda: _encoder(encoder), x)


def decode(decoder: Decoder, z: Tensor) -> Tensor:
    """What `decoder` makes of latents [B, C, h, w], one picture after the other; nothing is recorded for gradients."""
    return _through(lambda: _decoder(decoder), z)


def _through(layers: Callable[[], Iterator[Layer]], x: Tensor) -> Tensor:
    """One flat loop, so that nothing else holds what a layer was given."""
    if len(x) > 1:
        return torch.cat([_through(layers, one) for one in x.split(1)])
    with torch.no_grad(), fast_path(False):  # layouts for three heights of strips would cost memory, and save no time
        for layer in layers():
            x = layer(x)
    return x


def _encoder(encoder: Encoder) -> Iterator[Layer]:
    yield partial(_by_strips, encoder.conv_in, widest=encoder.conv_in.out_channels)
    for block in encoder.down_blocks:
        yield from _level(block)  # type: ignore[arg-type]
        for layer in block.downsamplers or ():  # type: ignore[union-attr]
            yield partial(_by_strips, layer, widest=layer.conv.in_channels, scale=0.5)
    yield from _middle(encoder.mid_block)
    yield partial(_last, encoder)


def _decoder(decoder: Decoder) -> Iterator[Layer]:
    yield partial(_by_strips, decoder.conv_in, widest=decoder.conv_in.out_channels)
    yield from _middle(decoder.mid_block)
    for block in decoder.up_blocks:
        yield from _level(block)  # type: ignore[arg-type]
        for layer in block.upsamplers or ():  # type: ignore[union-attr]
            yield partial(_by_strips, layer, widest=4 * layer.conv.in_channels, scale=2)
    yield partial(_last, decoder)


# -- the layers ----------------------------------------------------------------------------------------------------------


def _level(level: Level) -> Iterator[Layer]:
    for i, block in enumerate(level.resnets):
        yield partial(_residual, block)  # type: ignore[arg-type]
        yield partial(_attend, level, i)


def _middle(level: MidBlock) -> Iterator[Layer]:
    for i, block in enumerate(level.resnets):
        if i:
            yield partial(_attend, level, i - 1)
        yield partial(_residual, block)  # type: ignore[arg-type]


def _attend(level: Level, i: int, x: Tensor) -> Tensor:
    return level.attend(i, x, None).contiguous(memory_format=_layout(x))


def _residual(block: ResnetBlock, x: Tensor) -> Tensor:
    """A residual block without time. Its second half is written over what its first made, and the way around added."""
    let_in(block)  # its norms are read, and it is not called as a whole
    widest = max(block.conv1.in_channels, block.conv1.out_channels)
    norm = _known(block.norm1, x)
    h = _by_strips(lambda strip: block.conv1(block.act(norm(strip))), x, widest)
    norm = _known(block.norm2, h)
    h = _by_strips(lambda strip: block.conv2(block.act(norm(strip))), h, widest, in_place=True)
    if block.conv_shortcut is None:
        return h.add_(x)
    for top, bottom in _strips(x, widest):
        h[:, :, top:bottom] += block.conv_shortcut(x[:, :, top:bottom])
    return h


def _last(network: Encoder | Decoder, x: Tensor) -> Tensor:
    norm = _known(network.conv_norm_out, x)
    return _by_strips(lambda strip: network.conv_out(network.conv_act(norm(strip))), x, x.shape[1])


def _known(norm: nn.Module, x: Tensor) -> Layer:
    """A group norm with the statistics of all of `x` [1, C, H, W], for strips of it: a batch norm knows them in advance.

    Means and variances of strips become those of the whole as in Chan, Golub & LeVeque 1979: no large numbers are subtracted.
    """
    assert isinstance(norm, nn.GroupNorm)
    kind, strips = torch.promote_types(x.dtype, torch.float32), _strips(x, x.shape[1])
    found = []
    for top, bottom in strips:
        groups = x[0, :, top:bottom].to(kind).unflatten(0, (norm.num_groups, -1))
        found.append(torch.var_mean(groups, dim=(1, 2, 3), correction=0))
    share = torch.tensor([(bottom - top) / x.shape[2] for top, bottom in strips], dtype=kind, device=x.device)[:, None]
    variances, means = (torch.stack(each) for each in zip(*found, strict=True))
    mean = (share * means).sum(dim=0)
    variance = (share * (variances + (means - mean) ** 2)).sum(dim=0)
    mean, variance = (known.repeat_interleave(x.shape[1] // norm.num_groups) for known in (mean, variance))
    return partial(F.batch_norm, running_mean=mean, running_var=variance, weight=norm.weight.to(kind),
                   bias=norm.bias.to(kind), eps=norm.eps)


# -- the strips ----------------------------------------------------------------------------------------------------------


def _by_strips(layer: Layer, x: Tensor, widest: int, scale: float = 1, in_place: bool = False) -> Tensor:
    """`layer(x)`, of which each row depends on the same one of `x` and on the rows next to it.

    Args:
        layer: makes [1, C', scale·h, scale·w] of any [1, C, h, w]; what halves the size (the convolution of `Downsample`)
            makes a row of two rows and of the one below them.
        x: [1, C, H, W].
        widest: how many numbers the layer has for each position of `x`.
        in_place: the result may be written over `x`.
    """
    halves = scale < 1
    strips = _strips(x, widest, unit=2 if halves else 1)
    if len(strips) < 2:
        return layer(x)

    def each() -> Iterator[tuple[int, Tensor]]:
        for top, bottom in strips:
            first = top if halves else max(top - 1, 0)
            made = layer(x[:, :, first : bottom + 1])
            yield int(top * scale), made[:, :, int((top - first) * scale) : int((bottom - first) * scale)]

    made = each()
    place, strip = next(made)
    if in_place:
        out = x
    else:
        shape = (1, strip.shape[1], int(strips[-1][1] * scale), strip.shape[3])
        out = torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=_layout(strip))
    for next_place, next_strip in made:  # one behind, so that in place the next strip has seen the row that this one changes
        out[:, :, place : place + strip.shape[2]] = strip
        place, strip = next_place, next_strip
    out[:, :, place : place + strip.shape[2]] = strip
    return out


def _strips(x: Tensor, widest: int, unit: int = 1) -> list[tuple[int, int]]:
    """First and last row (not included) of each strip of `x`; their heights are multiples of `unit`, and an odd row is left."""
    height = x.shape[2] // unit * unit
    rows = max(_NUMBERS // (widest * x.shape[3]) // unit, 1) * unit
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
