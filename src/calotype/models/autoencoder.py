"""What the autoencoders share: work one picture at a time, or tile by tile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import tiles
from .base import Model
from .blocks import Run
from .unet import old_attention_name

Network = Callable[[Tensor, Run], Tensor]


class Autoencoder(Model):
    """A model that makes latents of pictures and pictures of latents, in parts where asked to.

    Attributes:
        use_slicing: one picture of a batch at a time.
        use_tiling: pictures larger than `tile_sample_min_size` (pixels) and latents larger than `tile_latent_min_size` in
            tiles of that size, which overlap by `tile_overlap_factor` of it. All three may be set.
    """

    use_slicing: bool = False
    use_tiling: bool = False
    tile_sample_min_size: int
    tile_latent_min_size: int
    tile_overlap_factor: float

    def enable_slicing(self) -> None:
        """Encode and decode one picture at a time: less memory for large batches."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Undo `enable_slicing`."""
        self.use_slicing = False

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Encode and decode large pictures tile by tile: their memory stays that of a tile.

        The result differs a little from that without tiles, since no tile sees the whole picture.
        """
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Undo `enable_tiling`."""
        self.use_tiling = False

    def _set_tiles(self, sample_size: int, factor: int, overlap: float) -> None:
        """Tiles of `sample_size` pixels; `factor` pixels to a latent."""
        self.tile_sample_min_size, self.tile_latent_min_size = sample_size, sample_size // factor
        self.tile_overlap_factor, self._factor = overlap, factor

    def _encode_in_parts(self, network: Network, x: Tensor) -> Tensor:
        return self._in_parts(network, x, self.tile_sample_min_size // self._factor, self._factor)

    def _decode_in_parts(self, network: Network, z: Tensor) -> Tensor:
        return self._in_parts(network, z, self.tile_latent_min_size, 1)

    def _in_parts(self, network: Network, x: Tensor, latents: int, unit: int) -> Tensor:
        """Through `network` in slices and tiles of `latents` latents, each `unit` long in `x`."""
        if self.use_slicing and len(x) > 1:
            return torch.cat([self._in_parts(network, one, latents, unit) for one in x.split(1)])
        if not self.use_tiling or max(x.shape[2:]) <= latents * unit:
            return network(x, self.run)
        step = int(latents * (1 - self.tile_overlap_factor))
        if not 1 <= step <= latents:
            raise ValueError(f"tiles of {latents} latents that overlap by tile_overlap_factor = {self.tile_overlap_factor} "
                             "do not get on; it must be at least 0 and leave one latent or more")
        return self._by_tiles(lambda part: network(part, self.run), x, latents * unit, step * unit)

    def _by_tiles(self, network: tiles.Network, x: Tensor, size: int, step: int) -> Tensor:
        return tiles.faded_into_neighbours(network, x, size, step)

    @classmethod
    def current_name(cls, name: str) -> str:
        return old_attention_name(name)
