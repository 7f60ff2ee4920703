"""The autoencoder of latent diffusion: pictures to a distribution of latents, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import register_to_config
from ..outputs import Output
from ..randomness import Generators, randn
from ..words import check_choice
from . import strips
from .autoencoder import Autoencoder, Network
from .blocks import AttentionKind, BlockOptions, DownBlock, MidBlock, Run, UpBlock
from .layers import Conv2d, normed
from .spatial_norm import SpatialNorm
from .unet import check_lengths


class DiagonalGaussianDistribution:
    """A normal distribution of latents, each number by itself (Kingma & Welling 2014).

    Args:
        parameters: [B, 2C, H, W] the means, and the logarithms of the variances (limited to [-30, 20]).
        deterministic: have no variance.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False):
        self.parameters, self.deterministic = parameters, deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.var = torch.zeros_like(self.mean) if deterministic else self.logvar.exp()
        self.std = torch.zeros_like(self.mean) if deterministic else (0.5 * self.logvar).exp()

    def sample(self, generator: Generators = None) -> Tensor:
        """[B, C, H, W] one draw."""
        return self.mean + self.std * randn(self.mean.shape, generator, self.mean.device, self.mean.dtype)

    def mode(self) -> Tensor:
        """[B, C, H, W] the likeliest latents: the means."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """[B] the divergence from `other`, by default from the standard normal."""
        if self.deterministic:
            return torch.zeros(1)
        if other is None:
            each = self.mean**2 + self.var - 1 - self.logvar
        else:
            each = ((self.mean - other.mean) ** 2 + self.var) / other.var - 1 - self.logvar + other.logvar
        return 0.5 * each.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """[B] the negative logarithm of the density at `sample`."""
        if self.deterministic:
            return torch.zeros(1)
        each = torch.log(torch.tensor(2 * torch.pi)) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * each.sum(dim=tuple(dims))


@dataclass
class AutoencoderKLOutput(Output):
    """`latent_dist`: the distribution of a picture's latents."""

    latent_dist: DiagonalGaussianDistribution


@dataclass
class DecoderOutput(Output):
    """`sample` [B, out_channels, H, W]: the pictures, in [-1, 1]. `commit_loss`: of a vector-quantised autoencoder."""

    sample: Tensor
    commit_loss: Tensor | None = None


class AutoencoderKL(Autoencoder):
    """A variational autoencoder whose latents are small pictures (Rombach et al. 2022, section 3.1).

    With `enable_tiling`, large pictures need less memory and stay as they are; `seamless` says whether that is so.

    Args:
        in_channels, out_channels: of the pictures.
        down_block_types, up_block_types: `"DownEncoderBlock2D"` and `"UpDecoderBlock2D"`, or with attention
            `"AttnDownEncoderBlock2D"` and `"AttnUpDecoderBlock2D"`, one a level.
        block_out_channels: one a level; all but one halve the size. layers_per_block: residual blocks a level.
        act_fn, norm_num_groups: of the residual blocks. latent_channels: of the latents.
        sample_size: height and width of the pictures it was trained on.
        scaling_factor, shift_factor: latents for diffusion are `(latents - shift_factor) * scaling_factor`.
        latents_mean, latents_std: the same, a channel at a time, for pipelines that know of it.
        force_upcast: the decoder overflows in float16 and must run in float32.
        use_quant_conv, use_post_quant_conv: a 1 x 1 convolution on either side of the latents.
        mid_block_add_attention: attention in the middle.
    """

    seamless: bool = True

    @register_to_config
    def __init__(
        self, in_channels: int = 3, out_channels: int = 3, down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",), block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1, act_fn: str = "silu", latent_channels: int = 4, norm_num_groups: int = 32,
        sample_size: int = 32, scaling_factor: float = 0.18215, shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None, latents_std: Sequence[float] | None = None, force_upcast: bool = True,
        use_quant_conv: bool = True, use_post_quant_conv: bool = True, mid_block_add_attention: bool = True,
    ):
        super().__init__()
        widths = check_lengths(block_out_channels, down_block_types=down_block_types, up_block_types=up_block_types)
        options = autoencoder_options(layers_per_block, norm_num_groups, act_fn)
        self.encoder = Encoder(
            in_channels, 2 * latent_channels, down_block_types, widths, options, mid_block_add_attention)
        self.decoder = Decoder(latent_channels, out_channels, up_block_types, widths, options, mid_block_add_attention)
        self.quant_conv = Conv2d(2 * latent_channels, 2 * latent_channels, 1) if use_quant_conv else None
        self.post_quant_conv = Conv2d(latent_channels, latent_channels, 1) if use_post_quant_conv else None
        self._set_tiles(sample_size, 2 ** (len(widths) - 1), overlap=0.25)

    def enable_tiling(self, use_tiling: bool = True, seamless: bool = True) -> None:
        """Encode and decode with the memory of one layer's input and output, and of a strip of what is between them.

        The result is that of the plain way, up to rounding. Where gradients are recorded, it is the plain way itself.

        Args:
            use_tiling: `False` undoes it.
            seamless: `False` works tile by tile instead, with the memory of a tile: for pictures whose widest layer (768
                bytes a pixel in half precision, in Stable Diffusion) does not fit. Tiles differ from the whole a little,
                since none sees the others; the attributes `tile_…` say how large they are.
        """
        self.use_tiling, self.seamless = use_tiling, seamless

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """The distribution of the latents of pictures `x` [B, in_channels, H, W] in [-1, 1]; H, W multiples of the factor."""
        moments = self._encode_in_parts(self.encoder, x)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: Generators = None) -> Any:
        """Pictures [B, out_channels, H, W] from latents `z` (unscaled). `generator` is not used: decoding is deterministic."""
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        sample = self._decode_in_parts(self.decoder, z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def _in_parts(self, network: Network, x: Tensor, latents: int, unit: int) -> Tensor:
        if not (self.use_tiling and self.seamless):
            return super()._in_parts(network, x, latents, unit)
        recorded = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))
        if recorded or not len(x):
            return network(x, self.run)
        return strips.encode(network, x) if isinstance(network, Encoder) else strips.decode(self.decoder, x)

    def forward(
        self, sample: Tensor, sample_posterior: bool = False, return_dict: bool = True, generator: Generators = None
    ) -> Any:
        """Encode and decode: through the mode of the latents, or through a draw."""
        posterior = self.encode(sample).latent_dist
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode(), return_dict)


_KINDS: dict[str, AttentionKind] = {
    "DownEncoderBlock2D": "none", "AttnDownEncoderBlock2D": "self",
    "UpDecoderBlock2D": "none", "AttnUpDecoderBlock2D": "self",
}


def autoencoder_options(layers: int, groups: int, act: str) -> BlockOptions:
    """The blocks of all autoencoders: no time, attention of one head."""
    return BlockOptions(
        time_channels=None, layers=layers, groups=groups, eps=1e-6, act=act, attention_groups=groups, downsample_padding=0)


class Encoder(nn.Module):
    """Down to the latents' size, and the middle (with `attention` or without)."""

    def __init__(
        self, channels: int, out: int, kinds: Sequence[str], widths: list[int], options: BlockOptions, attention: bool = True
    ):
        super().__init__()
        self.conv_in = Conv2d(channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(before, width, _of_kind(kind, options, "Down"), downsample=i < len(widths) - 1)
            for i, (kind, before, width) in enumerate(zip(kinds, [widths[0], *widths], widths, strict=False))
        )
        self.mid_block = _middle(widths[-1], options, attention)
        self.conv_norm_out = nn.GroupNorm(options.groups, widths[-1], 1e-6)
        self.conv_act = nn.SiLU()
        self.conv_out = Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: Tensor, run: Run) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x, _ = block(x, None, None, run)
        x = self.mid_block(x, None, None, run)
        return self.conv_out(normed(self.conv_norm_out, self.conv_act, x))


class Decoder(nn.Module):
    """The middle (with `attention` or without), and up to the picture's size."""

    def __init__(
        self, channels: int, out: int, kinds: Sequence[str], widths: list[int], options: BlockOptions, attention: bool = True
    ):
        super().__init__()
        widths = widths[::-1]
        self.conv_in = Conv2d(channels, widths[0], 3, padding=1)
        self.mid_block = _middle(widths[0], options, attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(before, [0] * (options.layers + 1), width, _of_kind(kind, options, "Up"), upsample=i < len(widths) - 1)
            for i, (kind, before, width) in enumerate(zip(kinds, [widths[0], *widths], widths, strict=False))
        )
        self.conv_norm_out: nn.Module
        if options.latent_channels is None:
            self.conv_norm_out = nn.GroupNorm(options.groups, widths[-1], 1e-6)
        else:
            self.conv_norm_out = SpatialNorm(widths[-1], options.latent_channels)
        self.conv_act = nn.SiLU()
        self.conv_out = Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: Tensor, run: Run, latents: Tensor | None = None) -> Tensor:
        """`latents`: what the norms look at, where they look at latents."""
        x = self.mid_block(self.conv_in(x), latents, latents, run)
        for block in self.up_blocks:
            x = block(x, None, latents, latents, run)
        if isinstance(self.conv_norm_out, nn.GroupNorm):
            return self.conv_out(normed(self.conv_norm_out, self.conv_act, x))
        return self.conv_out(self.conv_act(self.conv_norm_out(x, latents)))


def _middle(channels: int, options: BlockOptions, attention: bool) -> MidBlock:
    return MidBlock(channels, replace(options, attention="self" if attention else "none"))


def _of_kind(kind: str, options: BlockOptions, direction: str) -> BlockOptions:
    check_choice(f"{direction.lower()} block type", kind, [name for name in _KINDS if direction in name])
    return replace(options, attention=_KINDS[kind])
