"""Latents and hidden states made once, before training, and read in place of pictures and captions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..images.conversion import check_finite
from ..models.autoencoder_kl import DiagonalGaussianDistribution
from ..randomness import Generators
from ..words import check_choice
from .batches import Draw
from .pictures import Pictures
from .shards import Shards, described_model, digest_of_values

Progress = Callable[[int, int], None]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_Job = tuple[int, bool]  # a picture's number, and whether it is mirrored


def sample_moments(moments: Tensor, generator: Generators = None) -> Tensor:
    """Latents drawn from cached moments, as `vae.encode(pictures).latent_dist.sample(generator)` draws them.

    Args:
        moments: [B, 2C, h, w] or [2C, h, w]: means, then logarithms of the variances. They are read as float32.

    Returns:
        [B, C, h, w] or [C, h, w] of float32, not scaled by the autoencoder's `scaling_factor`.

    Raises:
        ValueError: moments of another shape.
    """
    if moments.ndim not in (3, 4) or moments.shape[-3] % 2:
        raise ValueError(f"moments are {list(moments.shape)}, but must be [B, 2C, h, w] or [2C, h, w]")
    batch = moments.float() if moments.ndim == 4 else moments.float()[None]
    latents = DiagonalGaussianDistribution(batch).sample(generator)
    return latents if moments.ndim == 4 else latents[0]


class LatentCache(Dataset[dict[str, Any]]):
    """The latents' distributions of pictures: `cache[Draw(index, ticket)]` in place of `pictures[Draw(index, ticket)]`.

    An item is a dict of `moments` [2C, h, w], `caption` and `index`. The caption, and whether it is the mirrored picture's
    moments, are what `pictures` would have drawn for this ticket. `sample_moments` draws latents. Make it with `build`.
    """

    takes_draws = True

    def __init__(self, pictures: Pictures, shards: Shards) -> None:
        self.pictures, self._shards = pictures, shards

    @classmethod
    def build(
        cls, pictures: Pictures, vae: Any, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32,
        batch_size: int = 8, num_workers: int = 0, per_shard: int = 256, progress: Progress | None = None,
    ) -> LatentCache:
        """Encode every picture once, and where pictures are mirrored at random its mirror image too; or find that it was done.

        What was made is used again if it was made of the same files (by path, length and time; pictures in memory by their
        values), framed in the same way, by an autoencoder of the same config and weights. A build that was ended goes on
        after the last file of `per_shard` pictures that it finished. Of several processes one builds, and then the others.

        Args:
            vae: its `encode(x).latent_dist` has `parameters` [B, 2C, h, w], as of `AutoencoderKL`. It works on its own
                device, in its own dtype.
            folder: for this and other caches.
            dtype: what moments are kept in; in float16 a mean is rounded to 1 part in 2000.
            batch_size: pictures encoded at once.
            num_workers: processes that read pictures.
            progress: called with how many pictures are encoded, and how many there are.

        Raises:
            ValueError: crops are random, so there is nothing fixed to keep; a picture cannot be read; a dtype of no use.
            TypeError: the autoencoder has no distribution of latents.
            FloatingPointError: moments are not finite.
        """
        if not pictures.framing.center_crop:
            raise ValueError("a cache keeps one crop of each picture, and these are cropped at random: give Pictures "
                             "center_crop=True (with buckets=True, little is cut off), or train without a cache")
        check_choice("dtype", dtype, DTYPES)
        _check_batch_size(batch_size)
        flips = (False, True) if pictures.framing.random_flip else (False,)
        shards = Shards(folder, {
            "autoencoder": described_model(vae) | {"tiling": getattr(vae, "use_tiling", False)},
            "framing": asdict(pictures.framing), "dtype": dtype,
            "pictures": digest_of_values([pictures.entries[i].stamp(), pictures.sizes[i]] for i in range(len(pictures))),
        }, [tuple(_name((index, flipped)) for flipped in flips) for index in range(len(pictures))], per_shard)
        missing = shards.missing()
        done = len(pictures) - sum(len(shards.items(shard)) for shard in missing)
        plan = [(shard, jobs) for shard in missing for jobs in _batches(pictures, shards.items(shard), flips, batch_size)]
        loader = DataLoader(_Framed(pictures), batch_sampler=[jobs for _, jobs in plan], num_workers=num_workers if plan else 0,
                            generator=torch.Generator())  # else a loader draws from everybody's
        made: dict[str, Tensor] = {}
        for i, (values, (shard, jobs)) in enumerate(zip(loader, plan, strict=True)):
            moments = _moments(vae, values).to(dtype)
            check_finite(moments)
            made |= {_name(job): one for job, one in zip(jobs, moments, strict=True)}
            if i + 1 == len(plan) or plan[i + 1][0] != shard:
                shards.write(shard, {name: tensor.cpu() for name, tensor in made.items()})
                made = {}
                done += len(shards.items(shard))
            if progress is not None:
                progress(done + len(made) // len(flips), len(pictures))
        return cls(pictures, shards)

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def groups(self) -> list[list[int]]:
        """The pictures of each size, for `Batches`."""
        return self.pictures.groups

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        index, chance, caption = self.pictures.drawn(draw)
        moments = self._shards.read(index, _name((index, self.pictures.framing.flips(chance))))
        return {"moments": moments, "caption": caption, "index": index}


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")


class _Framed(Dataset[Tensor]):
    """The pixel values of pictures by number, mirrored or not."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures

    def __getitem__(self, job: _Job) -> Tensor:
        return self._pictures.framed(job[0], flipped=job[1]).pixel_values


def _name(job: _Job) -> str:
    return f"{job[0]}.mirrored" if job[1] else str(job[0])


def _batches(pictures: Pictures, items: Iterable[int], flips: Sequence[bool], batch_size: int) -> Iterator[list[_Job]]:
    """What is encoded together: of one size, and at most `batch_size`."""
    by_size: dict[tuple[int, int], list[_Job]] = {}
    for index in items:
        by_size.setdefault(pictures.sizes[index], []).extend((index, flipped) for flipped in flips)
    for jobs in by_size.values():
        yield from (jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size))


@torch.no_grad()
def _moments(vae: Any, values: Tensor) -> Tensor:
    weights = next(vae.parameters())
    encoded = vae.encode(values.to(weights.device, weights.dtype))
    if not hasattr(getattr(encoded, "latent_dist", None), "parameters"):
        raise TypeError(f"a {type(vae).__name__} gives no distribution of latents to keep; an AutoencoderKL does")
    return encoded.latent_dist.parameters


class TextCache:
    """Hidden states of captions: `cache["a cat"]` is [L, D], `cache.stacked(["a cat", ""])` [2, L, D]. Make it with `build`."""

    def __init__(self, captions: Sequence[str], shards: Shards) -> None:
        self._numbers = {caption: number for number, caption in enumerate(captions)}
        self._shards = shards

    @classmethod
    def build(
        cls, captions: Iterable[str], encode: Callable[[list[str]], Tensor], folder: str | os.PathLike[str], *,
        text_encoder: nn.Module, settings: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None,
        batch_size: int = 32, per_shard: int = 256, progress: Progress | None = None,
    ) -> TextCache:
        """Encode each distinct caption once, and the empty one; or find that it was done, as `LatentCache.build` does.

        Args:
            captions: `Pictures.distinct_captions()`, say.
            encode: gives the hidden states [B, L, D] of B captions; it is called without gradients.
            text_encoder, settings: what `encode` depends on: a model, of which config and weights count, and anything else
                that JSON knows (the tokenizer's name, the longest length, layers skipped).
            dtype: what hidden states are kept in; by default what `encode` gives.
            batch_size: captions encoded at once.
            progress: called with how many captions are encoded, and how many there are.

        Raises:
            ValueError: `encode` gives something else; a dtype of no use.
            FloatingPointError: hidden states are not finite.
        """
        check_choice("dtype", dtype, (None, *DTYPES))
        _check_batch_size(batch_size)
        distinct = sorted({*captions, ""})
        shards = Shards(folder, {
            "text_encoder": described_model(text_encoder), "settings": dict(settings or {}), "dtype": dtype,
            "captions": digest_of_values(iter(distinct)),
        }, [(str(number),) for number in range(len(distinct))], per_shard)
        missing = shards.missing()
        done = len(distinct) - sum(len(shards.items(shard)) for shard in missing)
        for shard in missing:
            made: dict[str, Tensor] = {}
            items = shards.items(shard)
            for few in (items[i : i + batch_size] for i in range(0, len(items), batch_size)):
                made |= zip(map(str, few), _hidden_states(encode, [distinct[number] for number in few], dtype), strict=True)
                done += len(few)
                if progress is not None and len(made) < len(items):
                    progress(done, len(distinct))
            shards.write(shard, made)
            if progress is not None:
                progress(done, len(distinct))
        return cls(distinct, shards)

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, caption: object) -> bool:
        return caption in self._numbers

    def __getitem__(self, caption: str) -> Tensor:
        """[L, D] of one caption.

        Raises:
            KeyError: it was not encoded.
        """
        if caption not in self._numbers:
            raise KeyError(f"the caption {caption!r} was not encoded; {len(self)} others were")
        number = self._numbers[caption]
        return self._shards.read(number, str(number))

    def stacked(self, captions: Sequence[str]) -> Tensor:
        """[B, L, D] of several captions."""
        return torch.stack([self[caption] for caption in captions])


@torch.no_grad()
def _hidden_states(encode: Callable[[list[str]], Tensor], captions: list[str], dtype: torch.dtype | None) -> Tensor:
    states = encode(captions)
    if not isinstance(states, Tensor) or states.ndim != 3 or len(states) != len(captions):
        given = list(states.shape) if isinstance(states, Tensor) else type(states).__name__
        raise ValueError(f"encode gives {given} for {len(captions)} captions, but must give a tensor [{len(captions)}, L, D]")
    states = states.to(dtype or states.dtype).cpu()
    check_finite(states)
    return states
