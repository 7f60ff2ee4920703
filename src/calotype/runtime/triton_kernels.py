"""Kernels for the GPU in Triton (Tillet et al. 2019): group norm with SiLU, gated GELU, a sum and its layer norm.

PyTorch runs each of these as several passes over memory, and memory is what they wait for. All arithmetic here is in
float32 and rounded once, at the end. Nothing is added by atomics, and how the work is divided does not depend on the batch:
the same sample gives the same bits, whatever runs beside it.

Moments are never taken from Σx and Σx², whose difference cancels where the mean is large. What is held in registers is
centred first and squared then, by the corrected two-pass algorithm of Chan, Golub & LeVeque 1983; blocks are combined as
(count, mean, sum of squared deviations) by the pairwise formula of the same paper.

Offsets are 64 bits wide where they say which block, and 32 bits within a block: pictures may have more than 2³¹ values.

This module imports Triton, so it is imported only where a kernel is wanted. `fused` decides that and checks the arguments.
"""

# no `from __future__ import annotations`: Triton reads the annotations of kernels

import torch
import triton
import triton.language as tl
from torch import Tensor

WHOLE_GROUP = 32768
"""The largest group, in values, that one program normalizes alone: so many fit in the registers of 16 warps."""

_PROGRAMS = 2048  # take the moments of one sample, at most: enough for every processor of a large GPU, few to combine


@triton.jit
def _centred(x, mask, per_count):
    """`x`, which is 0 outside the mask, less its mean, and its variance."""
    rest = tl.where(mask, x - tl.sum(x) * per_count, 0.0)
    left = tl.sum(rest) * per_count  # of the mean, by rounding
    return rest - left, tl.sum(rest * rest) * per_count - left * left


@triton.jit
def _whole_groups(
    x, out, shift, weight, bias, positions, channels, groups, stride_s, stride_c, shift_b, shift_c, per_count, eps,
    WIDTH: tl.constexpr, SHIFT: tl.constexpr, AFFINE: tl.constexpr, SILU: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """Group norm where a group fits in registers: one program a group, which reads it once."""
    sample, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    s, d = tl.arange(0, BLOCK_S)[:, None], tl.arange(0, BLOCK_D)[None, :]
    mask = (s < positions) & (d < WIDTH)
    start = sample.to(tl.int64) * positions * channels + group.to(tl.int64) * WIDTH * stride_c
    offsets = s * stride_s + d * stride_c
    values = tl.load(x + start + offsets, mask=mask, other=0.0).to(tl.float32)
    c = group * WIDTH + d
    if SHIFT:
        shifts = tl.load(shift + sample * shift_b + c * shift_c, mask=d < WIDTH, other=0.0).to(tl.float32)
        values = tl.where(mask, values + shifts, 0.0)
    rest, variance = _centred(values, mask, per_count)
    result = rest * tl.rsqrt(variance + eps)
    if AFFINE:
        result = result * tl.load(weight + c, mask=d < WIDTH, other=0.0).to(tl.float32)
        result += tl.load(bias + c, mask=d < WIDTH, other=0.0).to(tl.float32)
    if SILU:
        result *= tl.sigmoid(result)
    tl.store(out + start + offsets, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _channel_moments(
    x, means, squares, positions, channels, chunks, stride_s, stride_c,
    TILES: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """Of each channel in a chunk of positions (`TILES` blocks), the mean and the sum of squared deviations: [B, chunks, C]."""
    sample, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    first = tl.program_id(1) * BLOCK_C
    s, c = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_C)
    inside = first + c < channels
    offsets = s[:, None] * stride_s + c[None, :] * stride_c
    origin = sample.to(tl.int64) * positions * channels + first.to(tl.int64) * stride_c
    count = tl.zeros([BLOCK_C], tl.float32)
    mean = tl.zeros([BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(TILES):
        start = (chunk.to(tl.int64) * TILES + tile) * BLOCK_S
        rows = tl.minimum(tl.maximum(positions - start, 0), BLOCK_S).to(tl.int32)
        mask = (s < rows)[:, None] & inside[None, :]
        values = tl.load(x + origin + start * stride_s + offsets, mask=mask, other=0.0).to(tl.float32)
        tile_count = rows.to(tl.float32)
        per_count = 1.0 / tl.maximum(tile_count, 1.0)
        middle = tl.sum(values, 0) * per_count
        rest = tl.where(mask, values - middle[None, :], 0.0)
        left = tl.sum(rest, 0) * per_count
        total = count + tile_count
        share = tile_count / tl.maximum(total, 1.0)
        apart = middle + left - mean
        mean += apart * share
        square += tl.sum(rest * rest, 0) - left * left * tile_count + apart * apart * count * share
        count = total
    place = tl.program_id(0).to(tl.int64) * channels + first + c
    tl.store(means + place, mean, mask=inside)
    tl.store(squares + place, square, mask=inside)


@triton.jit
def _combine_moments(
    means, squares, centre, scale, shift, weight, positions, channels, groups, chunks, chunk, shift_b, shift_c, per_count, eps,
    WIDTH: tl.constexpr, SHIFT: tl.constexpr, AFFINE: tl.constexpr,
    STEPS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """One program a group: what is to be subtracted from its channels, and then multiplied with, [B, C] each."""
    sample, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    k, d = tl.arange(0, BLOCK_K)[:, None], tl.arange(0, BLOCK_D)[None, :]  # chunks, and channels of the group
    c, inside = group * WIDTH + d, d < WIDTH
    shifts = tl.zeros([1, BLOCK_D], tl.float32)
    if SHIFT:
        shifts += tl.load(shift + sample * shift_b + c * shift_c, mask=inside, other=0.0).to(tl.float32)
    origin = sample.to(tl.int64) * chunks * channels
    total = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for step in range(STEPS):
        first = step * BLOCK_K
        mask = (first + k < chunks) & inside
        share = tl.minimum(positions - (first + k).to(tl.int64) * chunk, chunk).to(tl.float32) * per_count
        mean = tl.load(means + origin + (first + k) * channels + c, mask=mask, other=0.0) + shifts
        total += tl.where(mask, mean * share, 0.0)
    middle = tl.sum(total)
    left = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    spread = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for step in range(STEPS):
        first = step * BLOCK_K
        mask = (first + k < chunks) & inside
        share = tl.minimum(positions - (first + k).to(tl.int64) * chunk, chunk).to(tl.float32) * per_count
        place = origin + (first + k) * channels + c
        apart = tl.where(mask, tl.load(means + place, mask=mask, other=0.0) + shifts - middle, 0.0)
        left += apart * share
        spread += tl.load(squares + place, mask=mask, other=0.0) * per_count + apart * apart * share
    rounding = tl.sum(left)
    factor = tl.rsqrt(tl.sum(spread) - rounding * rounding + eps) + tl.zeros([1, BLOCK_D], tl.float32)
    if AFFINE:
        factor *= tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(centre + sample * channels + c, middle + rounding - shifts, mask=inside)
    tl.store(scale + sample * channels + c, factor, mask=inside)


@triton.jit
def _apply(
    x, out, centre, scale, bias, positions, channels, blocks, stride_s, stride_c,
    AFFINE: tl.constexpr, SILU: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """(x - centre) · scale + bias, activated, for one block of positions and channels."""
    sample, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    s, c = tl.arange(0, BLOCK_S)[:, None], tl.arange(0, BLOCK_C)[None, :]
    first, start = tl.program_id(1) * BLOCK_C, block.to(tl.int64) * BLOCK_S
    inside = first + c < channels
    mask = (start + s < positions) & inside
    origin = sample.to(tl.int64) * positions * channels + first.to(tl.int64) * stride_c + start * stride_s
    offsets = s * stride_s + c * stride_c
    result = tl.load(x + origin + offsets, mask=mask, other=0.0).to(tl.float32)
    place = sample * channels + first + c
    result = (result - tl.load(centre + place, mask=inside, other=0.0)) * tl.load(scale + place, mask=inside, other=0.0)
    if AFFINE:
        result += tl.load(bias + first + c, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        result *= tl.sigmoid(result)
    tl.store(out + origin + offsets, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _gated(wide, out, rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """value · gelu(gate), the halves of each row of `wide`; GELU by the error function (Hendrycks & Gimpel 2016)."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    r = tl.arange(0, BLOCK_R)[:, None]
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    mask = (first + r < rows) & (c < channels)
    halves = wide + first * channels * 2 + r * channels * 2 + c
    value = tl.load(halves, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(halves + channels, mask=mask, other=0.0).to(tl.float32)
    result = value * (0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)))
    tl.store(out + first * channels + r * channels + c, result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _add_norm(
    x, delta, total, out, weight, bias, channels, per_count, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK_C: tl.constexpr,
):
    """One row: the sum, and its layer norm (Ba et al. 2016)."""
    start = tl.program_id(0).to(tl.int64) * channels
    c = tl.arange(0, BLOCK_C)
    mask = c < channels
    summed = tl.load(x + start + c, mask=mask, other=0.0).to(tl.float32)
    summed += tl.load(delta + start + c, mask=mask, other=0.0).to(tl.float32)
    tl.store(total + start + c, summed.to(total.dtype.element_ty), mask=mask)
    rest, variance = _centred(summed, mask, per_count)
    result = rest * tl.rsqrt(variance + eps)
    if WEIGHT:
        result *= tl.load(weight + c, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        result += tl.load(bias + c, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + start + c, result.to(out.dtype.element_ty), mask=mask)


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, shift: Tensor | None = None,
    silu: bool = False,
) -> Tensor:
    """Group norm (Wu & He 2018) of `x` [B, C, ...] plus `shift` [B or 1, C], activated if asked for, in the layout of `x`.

    `x` is dense with channels second or last in memory; `weight` and `bias` [C] are both there or both not.

    Small groups are normalized by one program each. With larger ones 32 groups a sample are too few programs for a GPU, and
    with channels last each would read a few bytes of every row; so whole rows are read in three steps: moments of each
    channel in chunks of positions, their combination to groups, and the norm itself.
    """
    batch, channels = x.shape[:2]
    positions = x.numel() // (batch * channels)
    stride_s, stride_c = (1, positions) if x.is_contiguous() else (channels, 1)
    shift_b, shift_c = (0, 0) if shift is None else (shift.stride(0) if len(shift) > 1 else 0, shift.stride(1))
    width = channels // groups
    per_count = 1 / (width * positions)
    block_s, block_d = triton.next_power_of_2(positions), triton.next_power_of_2(width)
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        if block_s * block_d <= WHOLE_GROUP:
            _whole_groups[batch * groups,](
                x, out, shift, weight, bias, positions, channels, groups, stride_s, stride_c, shift_b, shift_c, per_count, eps,
                WIDTH=width, SHIFT=shift is not None, AFFINE=weight is not None, SILU=silu, BLOCK_S=block_s, BLOCK_D=block_d,
                num_warps=_warps(block_s * block_d, 1024, 16))
            return out
        size_s, size_c = (512, 8) if stride_s == 1 else (64, 64)  # what is side by side in memory is read together
        blocks, columns = triton.cdiv(positions, size_s), triton.cdiv(channels, size_c)
        tiles = triton.next_power_of_2(triton.cdiv(blocks * columns, _PROGRAMS))  # each number is compiled by itself
        chunks = triton.cdiv(blocks, tiles)
        step = min(triton.next_power_of_2(chunks), max(1, 4096 // block_d))
        means, squares = x.new_empty((2, batch, chunks, channels), dtype=torch.float32)
        centre, scale = x.new_empty((2, batch, channels), dtype=torch.float32)
        _channel_moments[batch * chunks, columns](
            x, means, squares, positions, channels, chunks, stride_s, stride_c, TILES=tiles, BLOCK_S=size_s, BLOCK_C=size_c)
        _combine_moments[batch * groups,](
            means, squares, centre, scale, shift, weight, positions, channels, groups, chunks, tiles * size_s, shift_b, shift_c,
            per_count, eps, WIDTH=width, SHIFT=shift is not None, AFFINE=weight is not None,
            STEPS=triton.cdiv(chunks, step), BLOCK_K=step, BLOCK_D=block_d)
        _apply[batch * blocks, columns](
            x, out, centre, scale, bias, positions, channels, blocks, stride_s, stride_c,
            AFFINE=bias is not None, SILU=silu, BLOCK_S=size_s, BLOCK_C=size_c)
    return out


def gated(wide: Tensor) -> Tensor:
    """value · gelu(gate) [..., C] of the halves of a contiguous `wide` [..., 2C]."""
    channels = wide.shape[-1] // 2
    out = wide.new_empty((*wide.shape[:-1], channels))
    rows = out.numel() // channels
    with torch.cuda.device_of(wide):
        _gated[triton.cdiv(rows, 8), triton.cdiv(channels, 256)](wide, out, rows, channels, BLOCK_R=8, BLOCK_C=256)
    return out


def add_norm(x: Tensor, delta: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of two contiguous tensors [..., C], and its layer norm over C."""
    channels = x.shape[-1]
    block = triton.next_power_of_2(channels)
    total, out = torch.empty_like(x), torch.empty_like(x)
    with torch.cuda.device_of(x):
        _add_norm[x.numel() // channels,](
            x, delta, total, out, weight, bias, channels, 1 / channels, eps,
            WEIGHT=weight is not None, BIAS=bias is not None, BLOCK_C=block, num_warps=_warps(block, 256, 16))
    return total, out


def _warps(values: int, each: int, most: int) -> int:
    """How many warps share a block: a power of two, as blocks are."""
    return max(1, min(most, values // each))
