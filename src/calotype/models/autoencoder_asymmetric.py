"""An autoencoder with a large decoder that sees what must be preserved (Zhu et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..config import register_to_config
from ..randomness import Generators
from .autoencoder import Autoencoder
from .autoencoder_kl import (
    AutoencoderKLOutput,
    Decoder,
    DecoderOutput,
    DiagonalGaussianDistribution,
    Encoder,
    autoencoder_options,
)
from .blocks import BlockOptions, Run
from .layers import Conv2d


class AsymmetricAutoencoderKL(Autoencoder):
    """`AutoencoderKL` for inpainting: what is outside the mask comes from the picture itself, at every level of the decoder.

    From Zhu et al. 2023, "Designing a Better Asymmetric VQGAN for StableDiffusion", section 3.

    Args:
        down_block_types, down_block_out_channels, layers_per_down_block: of the encoder.
        up_block_types, up_block_out_channels, layers_per_up_block: of the decoder, the widths from the picture inwards.
        in_channels, out_channels, act_fn, latent_channels, norm_num_groups, sample_size, scaling_factor: as of
            `AutoencoderKL`.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 3, out_channels: int = 3, down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        down_block_out_channels: Sequence[int] = (64,), layers_per_down_block: int = 1,
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",), up_block_out_channels: Sequence[int] = (64,),
        layers_per_up_block: int = 1, act_fn: str = "silu", latent_channels: int = 4, norm_num_groups: int = 32,
        sample_size: int = 32, scaling_factor: float = 0.18215,
    ):
        super().__init__()
        _same_length("down", down_block_types, down_block_out_channels)
        _same_length("up", up_block_types, up_block_out_channels)
        self.encoder = Encoder(in_channels, 2 * latent_channels, down_block_types, list(down_block_out_channels),
                               autoencoder_options(layers_per_down_block, norm_num_groups, act_fn))
        self.decoder = MaskConditionDecoder(latent_channels, out_channels, up_block_types, list(up_block_out_channels),
                                            autoencoder_options(layers_per_up_block, norm_num_groups, act_fn))
        self.quant_conv = Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = Conv2d(latent_channels, latent_channels, 1)
        self._set_tiles(sample_size, 2 ** (len(down_block_types) - 1), overlap=0.25)
        # what pipelines read of any autoencoder
        self.register_to_config(block_out_channels=tuple(up_block_out_channels), force_upcast=False)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """The distribution of the latents of pictures `x` [B, in_channels, H, W] in [-1, 1]; H, W multiples of the factor."""
        posterior = DiagonalGaussianDistribution(self.quant_conv(self._encode_in_parts(self.encoder, x)))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(
        self, z: Tensor, generator: Generators = None, image: Tensor | None = None, mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Pictures [B, out_channels, H, W] from latents; with a mask all at once, whatever slices and tiles are enabled.

        Args:
            z: [B, latent_channels, h, w] (unscaled).
            generator: not used: decoding is deterministic.
            image: [B, 3, H, W] in [-1, 1], the picture to preserve where the mask is 0.
            mask: [B, 1, H, W] in [0, 1]; 1 where the picture is new.

        Raises:
            ValueError: an image without a mask or the other way round; or a decoder whose widths do not go with it.
        """
        if (image is None) != (mask is None):
            raise ValueError("image and mask go together: give both to preserve a part of the picture, or neither")
        z = self.post_quant_conv(z)
        sample = self._decode_in_parts(self.decoder, z) if mask is None else self.decoder(z, self.run, image, mask)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(
        self, sample: Tensor, mask: Tensor | None = None, sample_posterior: bool = False, return_dict: bool = True,
        generator: Generators = None,
    ) -> Any:
        """Encode and decode: through the mode of the latents, or through a draw."""
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, None, None if mask is None else sample, mask, return_dict)

    @classmethod
    def _known_elsewhere(cls) -> set[str]:
        return {"block_out_channels", "force_upcast"}


class MaskConditionEncoder(nn.Module):
    """What is to be preserved, at full size in two widths and then at each half; wider by two each time, up to `widest`."""

    def __init__(self, channels: int, first: int, widest: int):
        super().__init__()
        self.widths = [min(first * 2**i, widest) for i in range(5)]
        self.layers = nn.Sequential(*(
            Conv2d(before, width, 3, padding=1) if i < 2 else Conv2d(before, width, 4, stride=2, padding=1)
            for i, (before, width) in enumerate(zip([channels, *self.widths], self.widths, strict=False))))

    def forward(self, x: Tensor, count: int) -> list[Tensor]:
        """What the first `count` layers make of the masked pictures, before it is rectified for the next."""
        made = [self.layers[0](x)]
        for layer in list(self.layers)[1:count]:
            made.append(layer(F.relu(made[-1])))
        return made


class MaskConditionDecoder(Decoder):
    """The decoder, which before each level and at the end takes what is outside the mask from the condition's encoder."""

    def __init__(self, channels: int, out: int, kinds: Sequence[str], widths: list[int], options: BlockOptions):
        super().__init__(channels, out, kinds, widths, options)
        self.condition_encoder = MaskConditionEncoder(out, widths[0], widths[-1])
        self.joined = [*widths, widths[-1]]

    def forward(
        self, x: Tensor, run: Run, image: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        if image is None or mask is None:
            return super().forward(x, run)
        if self.condition_encoder.widths[: len(self.joined)] != self.joined:
            raise ValueError(f"a decoder of widths {self.joined[:-1]} cannot be conditioned on a mask, whose encoder has the "
                             f"widths {self.condition_encoder.widths}")
        kept = self.condition_encoder((1 - mask) * image, len(self.joined))
        x = self.mid_block(self.conv_in(x), None, None, run)
        for block in self.up_blocks:
            x = block(_preserve(x, kept.pop(), mask), None, None, None, run)
        return self.conv_out(self.conv_act(self.conv_norm_out(_preserve(x, kept.pop(), mask))))


def _preserve(x: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
    mask = F.interpolate(mask, size=x.shape[2:], mode="nearest")
    return x * mask + kept * (1 - mask)


def _same_length(direction: str, kinds: Sequence[str], widths: Sequence[int]) -> None:
    if len(kinds) != len(widths):
        raise ValueError(f"{direction}_block_types has {len(kinds)} entries, and {direction}_block_out_channels has "
                         f"{len(widths)}: there must be one for each level")
