"""The consistency decoder (openai/consistencydecoder): a UNet that draws the picture in two steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, sqrt
from typing import Any

import torch
from torch import Tensor

from ..config import register_to_config
from ..randomness import Generators, randn
from ..words import check_choice
from .autoencoder import Autoencoder
from .autoencoder_kl import AutoencoderKLOutput, DecoderOutput, DiagonalGaussianDistribution, Encoder, autoencoder_options
from .latent_space import scaled
from .layers import Conv2d, repeat_pixels
from .unet_2d import UNet2DModel

_LEVELS, _STEPS = 1024, (1008, 512)  # the levels of noise, and those at which the published model is asked
_DATA = 0.5  # standard deviation of pictures
_MEANS, _STDS = (0.38862467, 0.02253063, 0.07381133, -0.0171294), (0.9654121, 1.0440036, 0.76147926, 0.77022034)
"""Of the four channels of Stable Diffusion's latents (scaled), by which the published model knows them."""

_RESNET_DOWN, _RESNET_UP = ("ResnetDownsampleBlock2D",) * 4, ("ResnetUpsampleBlock2D",) * 4


class ConsistencyDecoderVAE(Autoencoder):
    """The encoder of `AutoencoderKL`, and a consistency model (Song et al. 2023) conditioned on the latents as decoder.

    Args:
        scaling_factor: latents for diffusion are latents times this. latent_channels: of the latents; must be 4.
        sample_size: height and width of the pictures it was trained on.
        encoder_act_fn, encoder_block_out_channels, encoder_down_block_types, encoder_in_channels,
            encoder_layers_per_block, encoder_norm_num_groups: of the encoder, as of `AutoencoderKL`.
        encoder_out_channels, encoder_double_z: what it ends in, twice as much with `encoder_double_z`: must be
            twice `latent_channels`.
        decoder_…: of the decoder, the arguments of `UNet2DModel`.
    """

    @register_to_config
    def __init__(
        self, scaling_factor: float = 0.18215, latent_channels: int = 4, sample_size: int = 32, encoder_act_fn: str = "silu",
        encoder_block_out_channels: Sequence[int] = (128, 256, 512, 512), encoder_double_z: bool = True,
        encoder_down_block_types: Sequence[str] = ("DownEncoderBlock2D",) * 4, encoder_in_channels: int = 3,
        encoder_layers_per_block: int = 2, encoder_norm_num_groups: int = 32, encoder_out_channels: int = 4,
        decoder_add_attention: bool = False, decoder_block_out_channels: Sequence[int] = (320, 640, 1024, 1024),
        decoder_down_block_types: Sequence[str] = _RESNET_DOWN, decoder_downsample_padding: int = 1,
        decoder_in_channels: int = 7, decoder_layers_per_block: int = 3, decoder_norm_eps: float = 1e-5,
        decoder_norm_num_groups: int = 32, decoder_num_train_timesteps: int = _LEVELS, decoder_out_channels: int = 6,
        decoder_resnet_time_scale_shift: str = "scale_shift", decoder_time_embedding_type: str = "learned",
        decoder_up_block_types: Sequence[str] = _RESNET_UP,
    ):
        super().__init__()
        check_choice("latent_channels", latent_channels, (len(_MEANS),))
        moments = encoder_out_channels * (2 if encoder_double_z else 1)
        if moments != 2 * latent_channels:
            raise ValueError(f"the encoder ends in {moments} channels by encoder_out_channels = {encoder_out_channels} and "
                             f"encoder_double_z = {encoder_double_z}, but must in {2 * latent_channels}: mean and variance")
        if len(encoder_down_block_types) != len(encoder_block_out_channels):
            raise ValueError(f"encoder_down_block_types has {len(encoder_down_block_types)} entries, and "
                             f"encoder_block_out_channels has {len(encoder_block_out_channels)}: there must be one a level")
        self.encoder = Encoder(
            encoder_in_channels, moments, encoder_down_block_types, list(encoder_block_out_channels),
            autoencoder_options(encoder_layers_per_block, encoder_norm_num_groups, encoder_act_fn))
        self.decoder_unet = UNet2DModel(
            add_attention=decoder_add_attention, block_out_channels=decoder_block_out_channels,
            down_block_types=decoder_down_block_types, downsample_padding=decoder_downsample_padding,
            in_channels=decoder_in_channels, layers_per_block=decoder_layers_per_block, norm_eps=decoder_norm_eps,
            norm_num_groups=decoder_norm_num_groups, num_train_timesteps=decoder_num_train_timesteps,
            out_channels=decoder_out_channels, resnet_time_scale_shift=decoder_resnet_time_scale_shift,
            time_embedding_type=decoder_time_embedding_type, up_block_types=decoder_up_block_types,
        )
        self.quant_conv = Conv2d(moments, moments, 1)
        self._set_tiles(sample_size, 2 ** (len(encoder_block_out_channels) - 1), overlap=0.25)
        # what pipelines read of any autoencoder
        self.register_to_config(block_out_channels=tuple(encoder_block_out_channels), force_upcast=False)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """The distribution of the latents of pictures `x` [B, 3, H, W] in [-1, 1]; H, W multiples of the factor."""
        posterior = DiagonalGaussianDistribution(self.quant_conv(self._encode_in_parts(self.encoder, x)))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(
        self, z: Tensor, generator: Generators = None, return_dict: bool = True, num_inference_steps: int = 2
    ) -> Any:
        """Pictures [B, 3, H, W] from latents `z` [B, 4, h, w] (unscaled), whole: neither sliced nor tiled.

        Args:
            generator: of the noise that it begins from, and of that between the steps.
            num_inference_steps: 2, or 1 for the first step only, which blurs.

        Raises:
            ValueError: another number of steps.
        """
        check_choice("num_inference_steps", num_inference_steps, range(1, len(_STEPS) + 1))
        seen = (scaled(self, z) - z.new_tensor(_MEANS)[:, None, None]) / z.new_tensor(_STDS)[:, None, None]
        seen = repeat_pixels(seen, (z.shape[2] * self._factor, z.shape[3] * self._factor))
        picture = torch.zeros_like(seen[:, :3])
        for step in _STEPS[:num_inference_steps]:
            # Song et al. 2023, algorithm 1: noise up to the level, then straight to the picture
            noise = randn(picture.shape, generator, z.device, z.dtype)
            noisy = sqrt(_signal(step)) * picture + sqrt(1 - _signal(step)) * noise
            skip, out, into = _preconditioning(step)
            made = self.decoder_unet(torch.cat([into * noisy, seen], dim=1), step).sample[:, :3]  # the rest is variance
            picture = out * made + skip * noisy
        return DecoderOutput(picture) if return_dict else (picture,)

    def forward(
        self, sample: Tensor, sample_posterior: bool = False, return_dict: bool = True, generator: Generators = None
    ) -> Any:
        """Encode and decode: through the mode of the latents, or through a draw."""
        posterior = self.encode(sample).latent_dist
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode(), generator, return_dict)

    def enable_gradient_checkpointing(self) -> None:
        super().enable_gradient_checkpointing()
        self.decoder_unet.enable_gradient_checkpointing()

    def disable_gradient_checkpointing(self) -> None:
        super().disable_gradient_checkpointing()
        self.decoder_unet.disable_gradient_checkpointing()

    @classmethod
    def _known_elsewhere(cls) -> set[str]:
        return {"block_out_channels", "force_upcast"}


def _signal(level: int) -> float:
    """The cumulative product of alphas on the cosine schedule (Nichol & Dhariwal 2021, equation 17)."""
    def curve(t: float) -> float:
        return cos((t + 0.008) / 1.008 * pi / 2) ** 2

    return curve((level + 1) / _LEVELS) / curve(0)


def _preconditioning(level: int) -> tuple[float, float, float]:
    """What the noisy picture, the output and the input are multiplied by (Song et al. 2023, appendix C; Karras et al. 2022).

    There the noisy picture is picture + σ·noise; here it is that times the root of the signal.
    """
    signal = _signal(level)
    variance = (1 - signal) / signal
    total = variance + _DATA**2
    return _DATA**2 / total / sqrt(signal), _DATA * sqrt(variance / total), 1 / sqrt(total * signal)
