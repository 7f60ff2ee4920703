"""The unconditional UNet of DDPM, ADM and NCSN++."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import register_to_config
from ..outputs import Output
from ..words import check_choice, listing
from .base import Model
from .blocks import BlockOptions, DownBlock, MidBlock, UpBlock, named
from .conditioning import Kept, Moment
from .embeddings import FourierFeatures, TimestepEmbedding, sinusoidal
from .layers import Conv2d, normed
from .skip_blocks import SkipDownBlock, SkipUpBlock, groups_for
from .unet import check_lengths, old_attention_name, skip_channels, whole_batch

_SKIP = {"SkipDownBlock2D": "none", "AttnSkipDownBlock2D": "self", "SkipUpBlock2D": "none", "AttnSkipUpBlock2D": "self"}


@dataclass
class UNet2DOutput(Output):
    """`sample` [B, out_channels, H, W]: the prediction."""

    sample: Tensor


class UNet2DModel(Model):
    """A UNet that denoises pictures (Ho et al. 2020; Dhariwal & Nichol 2021; Song et al. 2021).

    Args:
        sample_size: height and width of the pictures it was trained on.
        in_channels, out_channels: of the pictures; the output has twice as many where the variance is learned.
        center_input_sample: map input from [0, 1] to [-1, 1].
        time_embedding_type: `"positional"` (sines), `"fourier"` (of the noise level's logarithm; the output is divided by
            the level) or `"learned"` (a table of `num_train_timesteps`).
        time_embedding_dim, freq_shift, flip_sin_to_cos: its size, and the sines' details; see `embeddings.sinusoidal`.
        down_block_types, up_block_types: one a level: `"DownBlock2D"`, `"AttnDownBlock2D"`, `"ResnetDownsampleBlock2D"`,
            `"SkipDownBlock2D"`, `"AttnSkipDownBlock2D"`, and the same going up.
        mid_block_type: `"UNetMidBlock2D"` or `None`.
        block_out_channels: one a level. layers_per_block: residual blocks a level.
        mid_block_scale_factor: what sums in the middle are divided by.
        downsample_type, upsample_type: `"conv"` or `"resnet"`, of levels with attention. downsample_padding: of the former.
        dropout, act_fn, norm_num_groups, norm_eps, resnet_time_scale_shift: of the residual blocks.
            `norm_num_groups` may be `None` in NCSN++, whose norms have groups of 4 channels, but never more than 32 groups.
        attention_head_dim: channels of a head. attn_norm_num_groups, add_attention: of the attention in the middle.
        class_embed_type, num_class_embeds: condition on class labels: `None` with `num_class_embeds`, `"timestep"` or
            `"identity"`.
    """

    @register_to_config
    def __init__(
        self, sample_size: int | tuple[int, int] | None = None, in_channels: int = 3, out_channels: int = 3,
        center_input_sample: bool = False, time_embedding_type: str = "positional", time_embedding_dim: int | None = None,
        freq_shift: int = 0, flip_sin_to_cos: bool = True,
        down_block_types: Sequence[str] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: Sequence[str] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels: Sequence[int] = (224, 448, 672, 896), layers_per_block: int = 2,
        mid_block_scale_factor: float = 1, downsample_padding: int = 1, downsample_type: str = "conv",
        upsample_type: str = "conv", dropout: float = 0.0, act_fn: str = "silu", attention_head_dim: int | None = 8,
        norm_num_groups: int | None = 32, attn_norm_num_groups: int | None = None, norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default", add_attention: bool = True, class_embed_type: str | None = None,
        num_class_embeds: int | None = None, num_train_timesteps: int | None = None,
    ):
        super().__init__()
        widths = check_lengths(block_out_channels, down_block_types=down_block_types, up_block_types=up_block_types)
        time_channels = time_embedding_dim or widths[0] * 4
        self.conv_in = Conv2d(in_channels, widths[0], 3, padding=1)

        check_choice("time_embedding_type", time_embedding_type, ("positional", "fourier", "learned"))
        time_in = 2 * widths[0] if time_embedding_type == "fourier" else widths[0]
        self.time_proj: nn.Module | None = None
        if time_embedding_type == "fourier":
            self.time_proj = FourierFeatures(widths[0])
        elif time_embedding_type == "learned":
            self.time_proj = nn.Embedding(num_train_timesteps or 1000, widths[0])
        self.time_embedding = TimestepEmbedding(time_in, time_channels)
        check_choice("class_embed_type", class_embed_type, (None, "timestep", "identity"))
        self.class_embedding: nn.Module | None = None
        if class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(time_in, time_channels)
        elif class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        elif num_class_embeds is not None:
            self.class_embedding = nn.Embedding(num_class_embeds, time_channels)

        options = BlockOptions(
            time_channels, layers_per_block, norm_num_groups or 32, norm_eps, act_fn, dropout, resnet_time_scale_shift,
            attention_groups=norm_num_groups, head_channels=attention_head_dim, downsample_padding=downsample_padding,
        )
        plain = sorted({*down_block_types, *up_block_types} - _SKIP.keys())
        if norm_num_groups is None and plain:
            raise ValueError(f"norm_num_groups is None, which is only for models wholly of {listing(_SKIP)}: beside "
                             f"{listing(plain)}, it must be a number of groups")
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for i, (kind, width) in enumerate(zip(down_block_types, widths, strict=True)):
            last = i == len(widths) - 1
            level = replace(options, resize=downsample_type)  # type: ignore[arg-type]
            if kind in _SKIP:
                self.down_blocks.append(
                    SkipDownBlock(before, width, replace(level, attention=_SKIP[kind]), not last))  # type: ignore[arg-type]
            else:
                self.down_blocks.append(DownBlock(before, width, named(kind, level, "Down"), not last))
            before = width

        check_choice("mid_block_type", mid_block_type, ("UNetMidBlock2D", None))
        inner_groups = groups_for(before) if norm_num_groups is None else norm_num_groups
        mid_groups = inner_groups if resnet_time_scale_shift == "default" else None
        self.mid_block = None if mid_block_type is None else MidBlock(before, replace(
            options, groups=inner_groups, scale=mid_block_scale_factor, attention="self" if add_attention else "none",
            attention_groups=attn_norm_num_groups if attn_norm_num_groups is not None else mid_groups))

        skips = skip_channels(widths, [layers_per_block] * len(widths))
        for i, (kind, width) in enumerate(zip(up_block_types, widths[::-1], strict=True)):
            last = i == len(widths) - 1
            level = replace(options, resize=upsample_type)  # type: ignore[arg-type]
            taken = [skips.pop() for _ in range(layers_per_block + 1)]
            if kind in _SKIP:
                self.up_blocks.append(
                    SkipUpBlock(before, taken, width, replace(level, attention=_SKIP[kind]), not last))  # type: ignore[arg-type]
            else:
                self.up_blocks.append(UpBlock(before, taken, width, named(kind, level, "Up"), not last))
            before = width

        out_groups = groups_for(widths[0]) if norm_num_groups is None else norm_num_groups
        self.conv_norm_out = nn.GroupNorm(out_groups, widths[0], norm_eps)
        self.conv_act = nn.SiLU()
        self.conv_out = Conv2d(widths[0], out_channels, 3, padding=1)

    def forward(
        self, sample: Tensor, timestep: Tensor | float | Moment, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        """Predict for noisy pictures.

        Args:
            sample: [B, in_channels, H, W].
            timestep: one, or [B]; or one of `moments(…)`.
            class_labels: [B], where the config asks for them.

        Returns:
            `UNet2DOutput`, or a tuple without `return_dict`.
        """
        time = timestep if isinstance(timestep, Moment) else self._embed(
            whole_batch(timestep, sample), class_labels, sample.dtype)
        if self.config.center_input_sample:
            sample = 2 * sample - 1.0
        x, picture = self.conv_in(sample), sample
        passed = [x]
        for block in self.down_blocks:
            if isinstance(block, SkipDownBlock):
                x, made, picture = block(x, time, picture, self.run)
            else:
                x, made = block(x, time, None, self.run)
            passed += made
        if self.mid_block is not None:
            x = self.mid_block(x, time, None, self.run)
        skip: Tensor | None = None
        for block in self.up_blocks:
            if isinstance(block, SkipUpBlock):
                x, skip = block(x, passed, time, skip, self.run)
            else:
                x = block(x, passed, time, None, self.run)
        x = self.conv_out(normed(self.conv_norm_out, self.conv_act, x))
        if skip is not None:
            x = x + skip
        if self.config.time_embedding_type == "fourier":
            x = x / self._noise_level(timestep, sample)
        return UNet2DOutput(x) if return_dict else (x,)

    def moments(self, timesteps: Tensor, class_labels: Tensor | None = None) -> list[Moment | Tensor]:
        """Embeddings of all `timesteps` [n] of a generation at once, to be given to `forward` one by one."""
        if self.config.time_embedding_type == "fourier" or class_labels is not None:
            return list(timesteps)
        kept = Kept(self._embed(timesteps.to(self.device), None, self.dtype)[:, None])
        return [Moment(kept, row) for row in range(len(timesteps))]

    def _embed(self, timesteps: Tensor, class_labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        time = self.time_embedding(self._project(timesteps).to(dtype))
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("this model is conditioned on classes: give class_labels")
            labels = class_labels
            if self.config.class_embed_type == "timestep":
                labels = self._project(labels).to(dtype)
            time = time + self.class_embedding(labels).to(dtype)
        elif class_labels is not None:
            raise ValueError("this model is not conditioned on classes: leave class_labels out")
        return time

    def _project(self, values: Tensor) -> Tensor:
        if self.time_proj is None:
            width = self.config.block_out_channels[0]
            return sinusoidal(values, width, self.config.flip_sin_to_cos, self.config.freq_shift)
        return self.time_proj(values)

    def _noise_level(self, timestep: Any, sample: Tensor) -> Tensor:
        return whole_batch(timestep, sample).to(sample.dtype).view(-1, 1, 1, 1)

    @classmethod
    def current_name(cls, name: str) -> str:
        return old_attention_name(name)
