"""Seeded noise, drawn in the order, shape, dtype and device that give the pictures people know."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None


def randn(
    shape: Sequence[int], generator: Generators = None,
    device: torch.device | str | None = None, dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal noise of `shape` on `device`.

    A generator on the CPU draws on the CPU, so that a seed means the same picture on every device. A list gives each
    sample of the batch its own generator: sample i of a batch is then what it would be alone.

    Raises:
        ValueError: the list's length is not the batch size, or a generator lives on another accelerator.
    """
    device = torch.device(device or "cpu")
    if isinstance(generator, (list, tuple)):
        if len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}; give one, or one for each sample")
        return torch.cat([randn((1, *shape[1:]), one, device, dtype) for one in generator])
    drawn_on = generator.device if generator is not None else device
    if drawn_on.type not in ("cpu", device.type):
        raise ValueError(f"the generator is on {drawn_on}, and the samples are on {device}; make it on either 'cpu' or that")
    noise = torch.randn(tuple(shape), generator=generator, device=drawn_on, dtype=dtype)
    return noise.to(device)


def starting_noise(
    shape: Sequence[int], generator: Generators = None, device: torch.device | str | None = None,
    dtype: torch.dtype | None = None, latents: Tensor | None = None,
) -> Tensor:
    """What `randn` draws; or, in its place, a caller's `latents`.

    Raises:
        ValueError: `latents` of another shape, or with values that are not finite.
    """
    if latents is None:
        return randn(shape, generator, device, dtype)
    if tuple(latents.shape) != tuple(shape):
        raise ValueError(f"latents have the shape {list(latents.shape)}, and this call makes {list(shape)}")
    if not torch.isfinite(latents).all():
        raise ValueError("latents have values that are not finite")
    return latents.to(device, dtype)
