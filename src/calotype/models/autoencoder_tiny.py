"""TAESD, the tiny autoencoder (madebyollin/taesd): previews and fast pictures, in the latents of Stable Diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import register_to_config
from ..outputs import Output
from ..randomness import Generators
from ..words import check_choice
from . import tiles
from .autoencoder import Autoencoder
from .autoencoder_kl import DecoderOutput
from .blocks import Run
from .layers import Conv2d, activation

_LIMIT = 3.0  # the decoder bends latents into (-3, 3), whatever their magnitude is said to be


@dataclass
class AutoencoderTinyOutput(Output):
    """`latents` [B, latent_channels, h, w]."""

    latents: Tensor


class AutoencoderTiny(Autoencoder):
    """An autoencoder of plain convolutions that was distilled from a large one; its latents have no distribution.

    Args:
        in_channels, out_channels: of the pictures. latent_channels: of the latents.
        encoder_block_out_channels, decoder_block_out_channels: one a level; all must be equal, since nothing changes them.
        num_encoder_blocks, num_decoder_blocks: residual blocks, one number a level; all levels but one change the size.
        act_fn: between convolutions.
        upsample_fn, upsampling_scaling_factor: how and by how much the decoder enlarges.
        latent_magnitude, latent_shift: latents in ±magnitude become [0, 1] by `latents / (2 * magnitude) + shift`.
        force_upcast: the decoder overflows in float16 and must run in float32.
        scaling_factor, shift_factor: latents for diffusion are `(latents - shift_factor) * scaling_factor`.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 3, out_channels: int = 3, encoder_block_out_channels: Sequence[int] = (64, 64, 64, 64),
        decoder_block_out_channels: Sequence[int] = (64, 64, 64, 64), act_fn: str = "relu", upsample_fn: str = "nearest",
        latent_channels: int = 4, upsampling_scaling_factor: int = 2, num_encoder_blocks: Sequence[int] = (1, 3, 3, 3),
        num_decoder_blocks: Sequence[int] = (3, 3, 3, 1), latent_magnitude: float = 3, latent_shift: float = 0.5,
        force_upcast: bool = False, scaling_factor: float = 1.0, shift_factor: float = 0.0,
    ):
        super().__init__()
        check_choice("upsample_fn", upsample_fn, ("nearest", "nearest-exact", "bilinear", "bicubic"))
        down = _width("encoder_block_out_channels", encoder_block_out_channels, num_encoder_blocks)
        up = _width("decoder_block_out_channels", decoder_block_out_channels, num_decoder_blocks)

        layers: list[nn.Module] = [Conv2d(in_channels, down, 3, padding=1)]
        for level, blocks in enumerate(num_encoder_blocks):
            if level:
                layers.append(Conv2d(down, down, 3, stride=2, padding=1, bias=False))
            layers += [TinyBlock(down, act_fn) for _ in range(blocks)]
        self.encoder = TinyEncoder([*layers, Conv2d(down, latent_channels, 3, padding=1)])

        layers = [Conv2d(latent_channels, up, 3, padding=1), activation(act_fn)]
        for level, blocks in enumerate(num_decoder_blocks):
            if level:
                layers += [nn.Upsample(scale_factor=upsampling_scaling_factor, mode=upsample_fn),
                           Conv2d(up, up, 3, padding=1, bias=False)]
            layers += [TinyBlock(up, act_fn) for _ in range(blocks)]
        self.decoder = TinyDecoder([*layers, Conv2d(up, out_channels, 3, padding=1)])

        self._set_tiles(512, 2 ** (len(num_encoder_blocks) - 1), overlap=0.125)
        self.register_to_config(block_out_channels=tuple(decoder_block_out_channels))  # where pipelines read the factor

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Latents of pictures `x` [B, in_channels, H, W] in [-1, 1]."""
        latents = self._encode_in_parts(self.encoder, x)
        return AutoencoderTinyOutput(latents) if return_dict else (latents,)

    def decode(self, x: Tensor, generator: Generators = None, return_dict: bool = True) -> Any:
        """Pictures [B, out_channels, H, W] from latents `x` (unscaled). `generator` is not used: decoding is deterministic."""
        sample = self._decode_in_parts(self.decoder, x)
        return DecoderOutput(sample) if return_dict else (sample,)

    def scale_latents(self, x: Tensor) -> Tensor:
        """Raw latents to [0, 1]."""
        return (x / (2 * self.config.latent_magnitude) + self.config.latent_shift).clamp(0, 1)

    def unscale_latents(self, x: Tensor) -> Tensor:
        """[0, 1] to raw latents."""
        return (x - self.config.latent_shift) * (2 * self.config.latent_magnitude)

    def forward(self, sample: Tensor, return_dict: bool = True) -> Any:
        """Encode and decode, by way of latents of eight bits, as they would be stored in a picture file."""
        stored = self.scale_latents(self.encode(sample).latents).mul(255).round()
        return self.decode(self.unscale_latents(stored / 255), return_dict=return_dict)

    def _by_tiles(self, network: tiles.Network, x: Tensor, size: int, step: int) -> Tensor:
        return tiles.laid_over(network, x, size, step)

    @classmethod
    def _known_elsewhere(cls) -> set[str]:
        return {"block_out_channels"}


class TinyBlock(nn.Module):
    """Three convolutions and the input added."""

    def __init__(self, channels: int, act: str):
        super().__init__()
        self.conv = nn.Sequential(
            Conv2d(channels, channels, 3, padding=1), activation(act), Conv2d(channels, channels, 3, padding=1),
            activation(act), Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class _TinyNetwork(nn.Module):
    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def _through(self, x: Tensor, run: Run) -> Tensor:
        for layer in self.layers:
            x = run(layer, x)
        return x


class TinyEncoder(_TinyNetwork):
    """From pictures in [-1, 1] to raw latents."""

    def forward(self, x: Tensor, run: Run) -> Tensor:
        return self._through((x + 1) / 2, run)


class TinyDecoder(_TinyNetwork):
    """From raw latents to pictures in [-1, 1]."""

    def forward(self, x: Tensor, run: Run) -> Tensor:
        return self._through(torch.tanh(x / _LIMIT) * _LIMIT, run) * 2 - 1


def _width(name: str, widths: Sequence[int], blocks: Sequence[int]) -> int:
    if len(widths) != len(blocks):
        raise ValueError(f"{name} has {len(widths)} entries, and there are numbers of blocks for {len(blocks)} levels")
    if len(set(widths)) != 1:
        raise ValueError(f"{name} is {tuple(widths)}, but no layer changes the width: all must be equal")
    return widths[0]
