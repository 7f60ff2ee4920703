"""Group norm with SiLU in training on the CPU, for samples that lie channels-last, with its gradient.

PyTorch's group norm goes through that layout slowly, and keeps the norm's result for the SiLU beside its input. Here everything
is sums over positions, and one scale and one shift for each channel; only the input is kept. The gradient is that of Wu & He 2018
(with z = a x + b for each sample and channel, and silu'(z) from z, which is computed again).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .differentiable import trains_plainly


def norm(layer: nn.GroupNorm, x: Tensor, shift: Tensor | None, silu: bool) -> Tensor | None:
    """layer(x + shift), and its SiLU, of `x` [B, C, H, W] and `shift` [B or 1, C]; `None` where this does not fit or not pay."""
    if x.ndim != 4 or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last) or layer.weight is None:
        return None
    same = shift is None or (type(shift) is Tensor and shift.dtype is x.dtype and shift.shape in (x.shape[:2], (1, x.shape[1])))
    if not same or x.shape[1] != layer.num_channels or layer.bias is None or not trains_plainly(layer, x):
        return None
    return _Norm.apply(x, shift, layer.weight, layer.bias, layer.num_groups, layer.eps, silu)


def _plain(x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    normed = F.group_norm(x if shift is None else x + shift[..., None, None], groups, weight, bias, eps)
    return F.silu(normed) if silu else normed


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor | None, weight: Tensor, bias: Tensor, *options: Any) -> Tensor:
        groups, eps, silu = options
        rows = x.permute(0, 2, 3, 1).flatten(1, 2)  # [B, N, C]
        means = rows.mean(1)  # of channels; then nothing cancels where a mean is large
        centred = rows - means[:, None]
        squares = centred.square_().mean(1)
        shifted = means if shift is None else means + shift
        mean = _grouped(shifted, groups).mean(2, keepdim=True)
        apart = _grouped(shifted, groups) - mean
        rstd = torch.rsqrt((_grouped(squares, groups) + apart.square()).mean(2, keepdim=True) + eps)  # [B, groups, 1]
        scale = (rstd * weight.view(groups, -1)).flatten(1)  # [B, C]
        offset = torch.addcmul(bias, (apart * rstd).flatten(1), weight) - scale * means
        made = torch.addcmul(offset[:, None], rows, scale[:, None], out=centred)
        if silu:
            made = F.silu(made, inplace=True)
        ctx.save_for_backward(x, shift, weight, bias, means, apart, rstd, scale, offset)
        ctx.options = options
        return made.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, shift, weight, bias, means, apart, rstd, scale, offset = ctx.saved_tensors
        groups, _, silu = ctx.options
        if torch.is_grad_enabled():  # somebody wants gradients of these gradients
            given = [x, shift, weight, bias]
            wanted = [one for one, wants in zip(given, ctx.needs_input_grad, strict=False) if wants]
            found = iter(torch.autograd.grad(_plain(x, shift, weight, bias, *ctx.options), wanted, gradient, create_graph=True))
            return *(next(found) if wants else None for wants in ctx.needs_input_grad[:4]), None, None, None
        rows, arriving = (one.permute(0, 2, 3, 1).flatten(1, 2) for one in (x, gradient))
        count = rows.shape[1]
        if silu:
            arriving = torch.ops.aten.silu_backward(arriving, torch.addcmul(offset[:, None], rows, scale[:, None]))
        sums = arriving.sum(1)  # [B, C] of dz, and of dz times the centred x
        products = (rows - means[:, None]).mul_(arriving).sum(1)
        # x̂ = (x - mean of the channel) rstd + apart rstd
        normed = torch.addcmul(products * rstd.expand_as(apart).flatten(1), sums, (apart * rstd).flatten(1))  # Σ dz x̂
        size = count * apart.shape[2]
        first = _grouped(sums * weight, groups).sum(2, keepdim=True) / size
        second = _grouped(normed * weight, groups).sum(2, keepdim=True) / size
        # dx = rstd (w dz - first - x̂ second) = scale dz - slope (x - mean of the channel) - level
        slope = (rstd.square() * second).expand_as(apart).flatten(1)
        level = (rstd * (first + apart * rstd * second)).flatten(1)
        of_x = torch.addcmul((slope * means - level)[:, None], rows, -slope[:, None])
        of_x.addcmul_(arriving, scale[:, None])
        of_shift = None
        if ctx.needs_input_grad[1]:  # Σ dx: the centred x sums up to nothing
            of_shift = (scale * sums - count * level).sum_to_size(shift.shape)
        return (of_x.view(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2) if ctx.needs_input_grad[0] else None, of_shift,
                normed.sum(0), sums.sum(0), None, None, None)


def _grouped(channels: Tensor, groups: int) -> Tensor:
    """[B, groups, C / groups] of [B, C]."""
    return channels.unflatten(1, (groups, -1))
