"""Seeded noise, drawn in the order, shape, dtype and device that give the pictures people know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arguments import finite, refuse, tensor

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
    check_generators(generator, shape[0] if shape else 1, device)
    if isinstance(generator, (list, tuple)):
        return torch.cat([randn((1, *shape[1:]), one, device, dtype) for one in generator])
    drawn_on = generator.device if generator is not None else device
    noise = torch.randn(tuple(shape), generator=generator, device=drawn_on, dtype=dtype)
    return noise.to(device)


def check_generators(generator: Any, size: int, device: torch.device) -> None:
    """Raise a `ValueError` unless these generators can draw `size` samples on `device`."""
    several = isinstance(generator, (list, tuple))
    if several and len(generator) != size:
        raise ValueError(f"{len(generator)} generators for a batch of {size}; give one, or one for each sample")
    for one in generator if several else (generator,):
        if one is not None and not isinstance(one, torch.Generator):
            refuse("generator", generator, "a torch.Generator, or a list of them, one for each sample")
        if one is not None and one.device.type not in ("cpu", device.type):
            raise ValueError(
                f"the generator is on {one.device}, and the samples are on {device}; make it on either 'cpu' or that")


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
    check_generators(generator, shape[0], torch.device(device or "cpu"))  # they will draw in steps, perhaps
    tensor("latents", latents, *("batch", "channels", "height", "width")[:len(shape)], values=False)
    if tuple(latents.shape) != tuple(shape):
        raise ValueError(f"latents have the shape {list(latents.shape)}, and this call makes {list(shape)}")
    return finite("latents", latents).to(device, dtype)
