"""The two levels of NCSN++ (Song et al. 2021, appendix H): a small picture runs beside the features, down and up."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from .attention import SpatialAttention
from .blocks import BlockOptions, Run, Time, _join
from .layers import Conv2d, fir_down, fir_up
from .resnet import ResnetBlock


def groups_for(channels: int) -> int:
    """How many groups a norm of NCSN++ has: of 4 channels each, and no more than 32."""
    return min(channels // 4, 32)


def _resnet(
    channels: int, out: int, options: BlockOptions, fir: Callable[[Tensor], Tensor] | None = None, groups: int | None = None
) -> ResnetBlock:
    return ResnetBlock(
        channels, out, options.time_channels, min(groups or groups_for(channels), 32), groups_for(out), options.eps,
        options.dropout, options.act, options.time_scale_shift, output_scale=math.sqrt(2), resample=fir,
        shortcut=True if fir else None,
    )


def _attentions(channels: int, options: BlockOptions, count: int) -> nn.ModuleList | None:
    if options.attention == "none":
        return None
    return nn.ModuleList(
        SpatialAttention(channels, options.head_channels, 32, options.eps, math.sqrt(2)) for _ in range(count))


class SkipDownBlock(nn.Module):
    """Residual blocks and attention; then half the size, and the picture at half the size added."""

    def __init__(self, channels: int, out: int, options: BlockOptions, downsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(channels if i == 0 else out, out, options) for i in range(options.layers))
        self.attentions = _attentions(out, options, options.layers)
        self.resnet_down = _resnet(out, out, options, fir_down) if downsample else None
        self.skip_conv = Conv2d(3, out, 1) if downsample else None

    def forward(self, x: Tensor, time: Time, picture: Tensor, run: Run) -> tuple[Tensor, list[Tensor], Tensor]:
        """The result, what the way up will want, and the picture at the new size."""
        passed = []
        for i, resnet in enumerate(self.resnets):
            x = run(resnet, x, time)
            if self.attentions is not None:
                x = run(self.attentions[i], x)
            passed.append(x)
        if self.resnet_down is not None and self.skip_conv is not None:
            picture = fir_down(picture)
            x = self.skip_conv(picture) + self.resnet_down(x, time)
            passed.append(x)
        return x, passed, picture


class SkipUpBlock(nn.Module):
    """Residual blocks that take in what was passed on, one attention; then this level's part of the picture, and twice
    the size."""

    def __init__(self, channels: int, skips: list[int], out: int, options: BlockOptions, upsample: bool):
        super().__init__()
        self.resnets = nn.ModuleList()
        for i, skip in enumerate(skips):
            entering = channels if i == 0 else out
            # with attention, checkpoints divide the first norm otherwise; no difference from 128 channels on
            groups = entering + skip // 4 if options.attention == "self" else None
            self.resnets.append(_resnet(entering + skip, out, options, groups=groups))
        self.attentions = _attentions(out, options, 1)
        self.act = nn.SiLU()
        self.resnet_up = _resnet(out, out, options, fir_up) if upsample else None
        self.skip_conv = Conv2d(out, 3, 3, padding=1) if upsample else None
        self.skip_norm = nn.GroupNorm(groups_for(out), out, options.eps) if upsample else None

    def forward(
        self, x: Tensor, passed: list[Tensor], time: Time, picture: Tensor | None, run: Run
    ) -> tuple[Tensor, Tensor | None]:
        """The result, and the picture so far."""
        for resnet in self.resnets:
            x = run(resnet, _join(x, passed), time)
        if self.attentions is not None:
            x = run(self.attentions[0], x)
        if picture is not None:
            picture = fir_up(picture)
        if self.resnet_up is not None and self.skip_norm is not None and self.skip_conv is not None:
            part = self.skip_conv(F.silu(self.skip_norm(x)))
            picture = part if picture is None else picture + part
            x = self.resnet_up(x, time)
        return x, picture
