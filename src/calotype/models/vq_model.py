"""The vector-quantised autoencoder: latents that are entries of a codebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import register_to_config
from ..outputs import Output
from ..randomness import Generators
from ..words import check_choice
from .autoencoder import Autoencoder
from .autoencoder_kl import Decoder, DecoderOutput, Encoder, autoencoder_options
from .blocks import Run
from .layers import Conv2d
from .unet import check_lengths

_POSITIONS = 4096  # compared with the codebook at a time, which bounds the memory


@dataclass
class VQEncoderOutput(Output):
    """`latents` [B, vq_embed_dim, h, w]: not yet quantised."""

    latents: Tensor


class VectorQuantizer(nn.Module):
    """The nearest entry of a codebook (van den Oord et al. 2017, section 3.1)."""

    def __init__(self, entries: int, channels: int, beta: float = 0.25):
        super().__init__()
        self.beta = beta
        self.embedding = nn.Embedding(entries, channels)
        nn.init.uniform_(self.embedding.weight, -1 / entries, 1 / entries)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """The nearest entries to `z` [B, C, h, w], with the gradient of `z`; the loss; and `(None, None, numbers [B·h·w])`.

        The loss pulls latents to their entries with weight 1 and entries to their latents with weight `beta`: the paper
        has it the other way round (its equation 3), the published models were trained so (Esser et al. 2021).
        """
        positions = z.permute(0, 2, 3, 1).flatten(0, 2)
        kind = torch.promote_types(z.dtype, torch.float32)  # half precision cannot tell near entries apart
        entries = self.embedding.weight.to(kind)
        indices = torch.cat([torch.cdist(some.to(kind), entries).argmin(dim=1) for some in positions.split(_POSITIONS)])
        nearest = self.embedding(indices).view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)
        loss = F.mse_loss(z, nearest.detach()) + self.beta * F.mse_loss(nearest, z.detach())
        return (z + (nearest - z).detach()).contiguous(), loss, (None, None, indices)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """The entries that are so numbered: [B, C, h, w] for a `shape` (B, h, w, C) or `indices` [B, h, w], else [..., C]."""
        entries = self.embedding(indices)
        if shape is not None:
            entries = entries.view(*shape)
        return entries.permute(0, 3, 1, 2).contiguous() if entries.ndim == 4 else entries


class VQModel(Autoencoder):
    """An autoencoder whose latents are drawn from a codebook (VQGAN, Esser et al. 2021; Rombach et al. 2022; MoVQ).

    Args:
        in_channels, out_channels, down_block_types, up_block_types, block_out_channels, layers_per_block, act_fn,
            latent_channels, norm_num_groups, sample_size, scaling_factor, mid_block_add_attention: as of `AutoencoderKL`.
        num_vq_embeddings: entries of the codebook. vq_embed_dim: their channels; `latent_channels` by default.
        norm_type: `"group"`, or `"spatial"`: the decoder's norms look at the quantised latents (MoVQ).
        lookup_from_codebook: what `decode` does not quantise are numbers of entries.
        force_upcast: the decoder overflows in float16 and must run in float32.
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 3, out_channels: int = 3, down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",), block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1, act_fn: str = "silu", latent_channels: int = 3, sample_size: int = 32,
        num_vq_embeddings: int = 256, norm_num_groups: int = 32, vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215, norm_type: str = "group", mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = False, force_upcast: bool = False,
    ):
        super().__init__()
        check_choice("norm_type", norm_type, ("group", "spatial"))
        widths = check_lengths(block_out_channels, down_block_types=down_block_types, up_block_types=up_block_types)
        entry_channels = latent_channels if vq_embed_dim is None else vq_embed_dim
        options = autoencoder_options(layers_per_block, norm_num_groups, act_fn)
        self.encoder = Encoder(in_channels, latent_channels, down_block_types, widths, options, mid_block_add_attention)
        self.quant_conv = Conv2d(latent_channels, entry_channels, 1)
        self.quantize = VectorQuantizer(num_vq_embeddings, entry_channels)
        self.post_quant_conv = Conv2d(entry_channels, latent_channels, 1)
        if norm_type == "spatial":
            options = replace(options, latent_channels=entry_channels)
        self.decoder = Decoder(latent_channels, out_channels, up_block_types, widths, options, mid_block_add_attention)
        self._set_tiles(sample_size, 2 ** (len(widths) - 1), overlap=0.25)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Latents of pictures `x` [B, in_channels, H, W] in [-1, 1], not yet quantised; H, W multiples of the factor."""
        latents = self.quant_conv(self._encode_in_parts(self.encoder, x))
        return VQEncoderOutput(latents) if return_dict else (latents,)

    def decode(
        self, h: Tensor, force_not_quantize: bool = False, return_dict: bool = True, shape: Sequence[int] | None = None,
        generator: Generators = None,
    ) -> Any:
        """Pictures and the commitment loss from latents.

        Args:
            h: [B, vq_embed_dim, h, w] latents (unscaled). With `force_not_quantize` and the config's
                `lookup_from_codebook`: numbers of entries, [B, h, w] or of any form that suits `shape`.
            force_not_quantize: take the latents as they are; the loss is then 0 for each picture.
            shape: (B, h, w, vq_embed_dim) of the entries that are looked up.
            generator: not used: decoding is deterministic. All autoencoders take one.

        Raises:
            ValueError: latents where numbers of entries are wanted, or the other way round.
        """
        lookup = force_not_quantize and self.config.lookup_from_codebook
        if lookup == h.is_floating_point():
            raise ValueError(
                f"decode was given a tensor of {h.dtype}, but wants " + ("numbers of codebook entries" if lookup else
                "latents; numbers of entries are looked up with force_not_quantize where the config has lookup_from_codebook"))
        if lookup:
            latents = self.quantize.get_codebook_entry(h, shape)
            if latents.ndim != 4:
                raise ValueError(f"numbers of entries of shape {tuple(h.shape)} say nothing of the picture's; "
                                 "give shape=(batch, height, width, channels)")
        else:
            latents = h
        loss = latents.new_zeros(len(latents))
        if not force_not_quantize:
            latents, loss, _ = self.quantize(latents)
        x = self.post_quant_conv(latents)
        if self.config.norm_type == "spatial":
            sample = self._decode_in_parts(self._decode_with_latents, torch.cat([x, latents], dim=1))
        else:
            sample = self._decode_in_parts(self.decoder, x)
        return DecoderOutput(sample, loss) if return_dict else (sample, loss)

    def forward(self, sample: Tensor, return_dict: bool = True) -> Any:
        """Encode, quantise and decode."""
        return self.decode(self.encode(sample).latents, return_dict=return_dict)

    def _decode_with_latents(self, both: Tensor, run: Run) -> Tensor:
        channels = self.config.latent_channels
        return self.decoder(both[:, :channels], run, both[:, channels:])
