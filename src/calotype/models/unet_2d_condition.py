"""The text-conditioned UNet of Stable Diffusion 1, 2 and XL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import register_to_config
from ..words import check_choice
from .added_conditions import NEEDED, ImageTokens, added_embedding, given, projection
from .base import Model
from .blocks import BlockOptions, DownBlock, MidBlock, UpBlock, named
from .conditioning import Context, Kept, Moment, repeated
from .deep_features import deep_features, outermost_up
from .embeddings import FourierFeatures, TimestepEmbedding, sinusoidal
from .k_blocks import K_KINDS, KDownBlock, KUpBlock, check_unmixed
from .layers import Conv2d, Linear, activation, normed
from .unet import check_lengths, old_attention_name, per_level, skip_channels, whole_batch
from .unet_2d import UNet2DOutput


class UNet2DConditionModel(Model):
    """A UNet whose transformers look at a text (Rombach et al. 2022; Podell et al. 2023).

    Args:
        sample_size: height and width of the latents it was trained on.
        in_channels, out_channels: of the latents. center_input_sample: map input from [0, 1] to [-1, 1].
        flip_sin_to_cos, freq_shift: of the time's sines; see `embeddings.sinusoidal`.
        down_block_types, up_block_types: one a level: `"CrossAttnDownBlock2D"`, `"DownBlock2D"`, `"AttnDownBlock2D"`,
            `"ResnetDownsampleBlock2D"`, `"SimpleCrossAttnDownBlock2D"`, and the same going up; or all of
            `k_blocks.K_KINDS`, with which `norm_num_groups` is `None`.
        mid_block_type: `"UNetMidBlock2DCrossAttn"`, `"UNetMidBlock2DSimpleCrossAttn"`, `"UNetMidBlock2D"` or `None`.
        only_cross_attention: transformers look at the text twice instead of at themselves (one, or one a level; never in
            the middle); where attention is simple, not at themselves.
        mid_block_only_cross_attention: the same for a middle whose attention is simple; by default as all levels, if they
            have one in common.
        cross_attention_norm: `"group_norm"` for the text before simple attention, or `None`.
        block_out_channels: one a level. layers_per_block: residual blocks a level (one, or one a level).
        downsample_padding, mid_block_scale_factor, dropout, act_fn, norm_num_groups, norm_eps, resnet_time_scale_shift,
        resnet_skip_time_act, resnet_out_scale_factor, conv_in_kernel, conv_out_kernel: of the convolutional parts.
        cross_attention_dim: channels of the text (one, or one a level).
        transformer_layers_per_block, reverse_transformer_layers_per_block: transformer blocks a level, down and up.
        attention_head_dim: the *number* of heads (one, or one a level), unless `num_attention_heads` is given; the name is
            the format's. For `AttnDownBlock2D`, simple attention and `K_KINDS` it is the channels of a head, as it says.
        use_linear_projection, upcast_attention: of the transformers.
        encoder_hid_dim, encoder_hid_dim_type: project the text first (`"text_proj"`, the default where there is an
            `encoder_hid_dim`); put a picture's embedding before it (`"text_image_proj"`), or in its place (`"image_proj"`).
        class_embed_type: `None` (with `num_class_embeds`: labels), `"timestep"`, `"identity"`, `"projection"` or
            `"simple_projection"` (of `projection_class_embeddings_input_dim` channels). class_embeddings_concat: beside
            the time instead of added to it.
        addition_embed_type: `"text_time"` (SDXL: pooled text and sizes, `addition_time_embed_dim` channels each,
            `projection_class_embeddings_input_dim` in all), `"text"` (pooled with `addition_embed_type_num_heads`),
            `"text_image"`, `"image"`, `"image_hint"` (whose latents of 4 channels are joined to the sample) or `None`.
        time_embedding_type, time_embedding_dim, time_embedding_act_fn, timestep_post_act, time_cond_proj_dim: of the time.
    """

    @register_to_config
    def __init__(
        self, sample_size: int | tuple[int, int] | None = None, in_channels: int = 4, out_channels: int = 4,
        center_input_sample: bool = False, flip_sin_to_cos: bool = True, freq_shift: int = 0,
        down_block_types: Sequence[str] = (
            "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: Sequence[str] = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        only_cross_attention: bool | Sequence[bool] = False,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280), layers_per_block: int | Sequence[int] = 2,
        downsample_padding: int = 1, mid_block_scale_factor: float = 1, dropout: float = 0.0, act_fn: str = "silu",
        norm_num_groups: int | None = 32, norm_eps: float = 1e-5, cross_attention_dim: int | Sequence[int] = 1280,
        transformer_layers_per_block: int | Sequence[Any] = 1,
        reverse_transformer_layers_per_block: Sequence[Any] | None = None,
        encoder_hid_dim: int | None = None, encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | Sequence[int] = 8, num_attention_heads: int | Sequence[int] | None = None,
        dual_cross_attention: bool = False, use_linear_projection: bool = False, class_embed_type: str | None = None,
        addition_embed_type: str | None = None, addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None, upcast_attention: bool = False, resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False, resnet_out_scale_factor: float = 1.0, time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None, time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None, time_cond_proj_dim: int | None = None, conv_in_kernel: int = 3,
        conv_out_kernel: int = 3, projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default", class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None, cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
    ):
        super().__init__()
        check_choice("attention_type", attention_type, ("default",))
        check_choice("dual_cross_attention", dual_cross_attention, (False,))
        joint = "SimpleCrossAttn" in "".join([*down_block_types, *up_block_types, mid_block_type or ""])
        check_choice("cross_attention_norm", cross_attention_norm, (None, "group_norm") if joint else (None,))
        widths = check_lengths(block_out_channels, down_block_types=down_block_types, up_block_types=up_block_types)
        count = len(widths)
        layers = per_level("layers_per_block", layers_per_block, count)
        head_channels = per_level("attention_head_dim", attention_head_dim, count)
        heads = head_channels if num_attention_heads is None else per_level("num_attention_heads", num_attention_heads, count)
        contexts = per_level("cross_attention_dim", cross_attention_dim, count)
        depths = per_level("transformer_layers_per_block", transformer_layers_per_block, count)
        only_cross = per_level("only_cross_attention", only_cross_attention, count)

        self.conv_in = Conv2d(in_channels, widths[0], conv_in_kernel, padding=(conv_in_kernel - 1) // 2)
        time_channels = self._make_embeddings(widths[0], contexts[0])
        self.encoder_hid_proj = projection(self.config, contexts[0])

        options = BlockOptions(
            time_channels, groups=norm_num_groups or 32, eps=norm_eps, act=act_fn, dropout=dropout,
            time_scale_shift=resnet_time_scale_shift, attention_groups=norm_num_groups,
            linear_projection=use_linear_projection, upcast=upcast_attention, downsample_padding=downsample_padding,
            norm_context=cross_attention_norm is not None,
        )
        levels = [
            replace(options, layers=layers[i], heads=heads[i], head_channels=head_channels[i],
                    context_channels=contexts[i], transformer_layers=depths[i], only_cross=only_cross[i])
            for i in range(count)
        ]

        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        check_unmixed([*down_block_types, *up_block_types], mid_block_type, norm_num_groups)
        before = widths[0]
        for i, (kind, width) in enumerate(zip(down_block_types, widths, strict=True)):
            last = i == count - 1
            if kind in K_KINDS and "Down" in kind:
                self.down_blocks.append(KDownBlock(before, width, levels[i], K_KINDS[kind], last))
            else:
                level = named(kind, levels[i], "Down", others=K_KINDS)
                level = _only_where_resnets_resize(level, resnet_skip_time_act, resnet_out_scale_factor)
                self.down_blocks.append(DownBlock(before, width, level, downsample=not last))
            before = width

        middles = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2D", None)
        check_choice("mid_block_type", mid_block_type, middles)
        middle = replace(levels[-1], scale=mid_block_scale_factor, attention="cross", only_cross=False)
        self.mid_block: MidBlock | None = None
        if mid_block_type == "UNetMidBlock2DCrossAttn":
            deep = middle.transformer_layers
            self.mid_block = MidBlock(before, replace(middle, transformer_layers=deep if isinstance(deep, int) else deep[0]))
        elif mid_block_type == "UNetMidBlock2DSimpleCrossAttn":
            only = mid_block_only_cross_attention
            self.mid_block = MidBlock(before, replace(
                middle, attention="joint", skip_time_act=resnet_skip_time_act,
                only_cross=only_cross_attention is True if only is None else only))
        elif mid_block_type == "UNetMidBlock2D":
            self.mid_block = MidBlock(before, replace(middle, attention="none"), attentions=0)

        skips = skip_channels(widths, layers)
        up_depths = list(reverse_transformer_layers_per_block or depths[::-1])
        for i, (kind, width) in enumerate(zip(up_block_types, widths[::-1], strict=True)):
            last = i == count - 1
            if kind in K_KINDS and "Up" in kind:
                before = width if last else widths[::-1][i + 1]
                self.up_blocks.append(KUpBlock(width, before, levels[::-1][i], K_KINDS[kind], i == 0, last))
                continue
            level = replace(named(kind, levels[::-1][i], "Up", others=K_KINDS), transformer_layers=up_depths[i])
            level = _only_where_resnets_resize(level, resnet_skip_time_act, resnet_out_scale_factor)
            taken = [skips.pop() for _ in range(layers[::-1][i] + 1)]
            self.up_blocks.append(UpBlock(before, taken, width, level, upsample=not last))
            before = width

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, before, norm_eps) if norm_num_groups is not None else None
        self.conv_act = activation(act_fn) if norm_num_groups is not None else None
        self.conv_out = Conv2d(before, out_channels, conv_out_kernel, padding=(conv_out_kernel - 1) // 2)

    def _make_embeddings(self, width: int, context: int) -> int:
        """The parts that embed time, class and size; returns the channels of what residual blocks get."""
        config = self.config
        check_choice("time_embedding_type", config.time_embedding_type, ("positional", "fourier"))
        fourier = config.time_embedding_type == "fourier"
        channels = config.time_embedding_dim or (2 if fourier else 4) * width
        time_in = channels if fourier else width
        self.time_proj = FourierFeatures(channels // 2, log=False, flip_sin_to_cos=config.flip_sin_to_cos) if fourier else None
        self.time_embedding = TimestepEmbedding(
            time_in, channels, config.act_fn, config.timestep_post_act, config.time_cond_proj_dim)
        self.time_embed_act = activation(config.time_embedding_act_fn) if config.time_embedding_act_fn else None

        kinds = (None, "timestep", "identity", "projection", "simple_projection")
        check_choice("class_embed_type", config.class_embed_type, kinds)
        extra = config.projection_class_embeddings_input_dim
        projects = config.class_embed_type in ("projection", "simple_projection") or config.addition_embed_type == "text_time"
        if projects and extra is None:
            raise ValueError("the config needs projection_class_embeddings_input_dim for what it embeds")
        self.class_embedding: nn.Module | None = None
        if config.class_embed_type is None and config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, channels)
        elif config.class_embed_type in ("timestep", "projection"):
            entering = time_in if config.class_embed_type == "timestep" else extra
            self.class_embedding = TimestepEmbedding(entering, channels, config.act_fn)
        elif config.class_embed_type == "simple_projection":
            self.class_embedding = Linear(extra, channels)
        elif config.class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        self.add_embedding = added_embedding(config, context, channels)
        return 2 * channels if config.class_embeddings_concat else channels

    # -- forward --------------------------------------------------------------------------------------------------------

    def forward(
        self, sample: Tensor, timestep: Tensor | float | Moment, encoder_hidden_states: Tensor | Kept | None,
        class_labels: Tensor | None = None, timestep_cond: Tensor | None = None, attention_mask: Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None, added_cond_kwargs: Mapping[str, Tensor] | None = None,
        down_block_additional_residuals: Sequence[Tensor] | None = None,
        mid_block_additional_residual: Tensor | None = None, encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Predict for noisy latents.

        Args:
            sample: [B, in_channels, H, W].
            timestep: one, or [B]; or one of `moments(…)`, which have the next four in them.
            encoder_hidden_states: [B, L, cross_attention_dim] the text; or `keep(…)` of it, for many calls, which may be of
                k texts for each sample, [k · B, L, C], as guidance has it: the result is then [k · B, …].
            class_labels: [B], where the config asks for them.
            timestep_cond: [B, time_cond_proj_dim] added to the time (guidance embeddings).
            added_cond_kwargs: SDXL's `text_embeds` [B, C] and `time_ids` [B, 6]; where the config asks for them,
                `image_embeds` [B, C], and `hint` [B, 3, 8 · H, 8 · W].
            attention_mask, encoder_attention_mask: [B, N] of the positions, [B, L] of the text; 1 is seen.
            down_block_additional_residuals, mid_block_additional_residual: added on the way (ControlNet).

        Returns:
            `UNet2DOutput`, or a tuple without `return_dict`.
        """
        if cross_attention_kwargs:
            raise ValueError(f"cross_attention_kwargs takes nothing here, and got {', '.join(cross_attention_kwargs)}")
        time = timestep if isinstance(timestep, Moment) else self._embed(
            whole_batch(timestep, sample), sample.dtype, class_labels, timestep_cond, added_cond_kwargs, encoder_hidden_states)
        states = text if isinstance(text := encoder_hidden_states, Kept) else self._project_text(text, added_cond_kwargs)
        if attention_mask is not None and isinstance(states, Kept):
            sample, attention_mask = (repeated(each, len(states.value)) for each in (sample, attention_mask))
        context = Context(states, _bias(encoder_attention_mask, sample), _bias(attention_mask, sample))
        sample = 2 * sample - 1.0 if self.config.center_input_sample else sample
        if self.config.addition_embed_type == "image_hint":
            (hint,) = given(added_cond_kwargs, ["hint"])
            sample = torch.cat([sample, self.add_embedding.input_hint_block(hint)], dim=1)  # type: ignore[union-attr,operator]

        passed = [self.conv_in(sample)]
        x = deep_features(time, context)
        if x is None:
            x = self._inner(passed, time, context, down_block_additional_residuals, mid_block_additional_residual)
        x = outermost_up(self.up_blocks[-1], x, passed, time, context, self.run)
        if self.conv_norm_out is not None and self.conv_act is not None:
            x = normed(self.conv_norm_out, self.conv_act, x)
        x = context.for_each_text(self.conv_out(x))
        return UNet2DOutput(x) if return_dict else (x,)

    def _inner(
        self, passed: list[Tensor], time: Tensor | Moment, context: Context, more: Sequence[Tensor] | None, most: Tensor | None
    ) -> Tensor:
        """All levels but the last on the way up; `passed` gets what that will want. `more` and `most` are added on the way."""
        x = passed[0]
        for block in self.down_blocks:
            x, made = block(x, time, context, self.run)
            passed += made
        passed[:] = passed if more is None else [own + other for own, other in zip(passed, more, strict=True)]
        if self.mid_block is not None:
            x = self.mid_block(x, time, context, self.run)
        if most is not None:
            x = x + most
        for i in range(len(self.up_blocks) - 1):
            x = self.up_blocks[i](x, passed, time, context, self.run)
        return x

    # -- what never changes during a generation ---------------------------------------------------------------------------

    def keep(self, encoder_hidden_states: Tensor | None, added_cond_kwargs: Mapping[str, Tensor] | None = None) -> Kept:
        """The text [B, L, C], to be given to `forward` in its place: layers compute its keys and values once."""
        states = self._project_text(encoder_hidden_states, added_cond_kwargs)
        if states is None:
            raise ValueError("there is nothing to keep: give encoder_hidden_states")
        return Kept(states)

    def _project_text(self, states: Tensor | None, added: Mapping[str, Tensor] | None) -> Tensor | None:
        """What attention looks at, of the text and of what else there is."""
        if self.encoder_hid_proj is None:
            return states
        if isinstance(self.encoder_hid_proj, Linear):
            return self.encoder_hid_proj(states)
        (image,) = given(added, ["image_embeds"])
        return self.encoder_hid_proj(*([image] if isinstance(self.encoder_hid_proj, ImageTokens) else [states, image]))

    def moments(
        self, timesteps: Tensor, class_labels: Tensor | None = None, timestep_cond: Tensor | None = None,
        added_cond_kwargs: Mapping[str, Tensor] | None = None, encoder_hidden_states: Tensor | None = None,
    ) -> list[Moment]:
        """Embeddings of all `timesteps` [n] of a generation at once, to be given to `forward` one by one.

        The other arguments are `forward`'s; the text is needed only where the config's `addition_embed_type` is `"text"`.
        """
        timesteps = timesteps.to(self.device)
        text = encoder_hidden_states if self.config.addition_embed_type == "text" else None
        conditions = [c for c in (class_labels, timestep_cond, text, *(added_cond_kwargs or {}).values()) if c is not None]
        batch = len(conditions[0]) if conditions else 1
        embedded = [self._embed(t.expand(batch), self.dtype, class_labels, timestep_cond, added_cond_kwargs, text)
                    for t in timesteps] if conditions else [self._embed(timesteps, self.dtype)[:, None]]
        kept = Kept(torch.stack(embedded) if conditions else embedded[0])
        return [Moment(kept, row) for row in range(len(timesteps))]

    def _embed(
        self, timesteps: Tensor, dtype: torch.dtype, class_labels: Tensor | None = None,
        timestep_cond: Tensor | None = None, added: Mapping[str, Tensor] | None = None, text: Tensor | Kept | None = None,
    ) -> Tensor:
        """[B, C] what residual blocks get to know of the time and all else that is global."""
        time = self.time_embedding(self._project(timesteps).to(dtype), timestep_cond)
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("this model is conditioned on classes: give class_labels")
            labels = self._project(class_labels).to(dtype) if self.config.class_embed_type == "timestep" else class_labels
            embedded = self.class_embedding(labels).to(dtype)
            time = torch.cat([time, embedded], -1) if self.config.class_embeddings_concat else time + embedded
        kind = self.config.addition_embed_type
        if self.add_embedding is not None and kind == "text_time":
            pooled, ids = given(added, NEEDED[kind])
            sizes = sinusoidal(ids.flatten(), self.config.addition_time_embed_dim, self.config.flip_sin_to_cos,
                               self.config.freq_shift).view(len(ids), -1)
            time = time + self.add_embedding(torch.cat([pooled, sizes.to(dtype)], -1).to(dtype))
        elif self.add_embedding is not None and kind == "text":
            if not isinstance(text, Tensor):
                raise ValueError("this model pools its text: give encoder_hidden_states as they are, here or to `moments`")
            time = time + self.add_embedding(text)
        elif self.add_embedding is not None:
            time = time + self.add_embedding(*given(added, NEEDED[kind]))
        return self.time_embed_act(time) if self.time_embed_act is not None else time

    def _project(self, values: Tensor) -> Tensor:
        if self.time_proj is not None:
            return self.time_proj(values)
        return sinusoidal(values, self.config.block_out_channels[0], self.config.flip_sin_to_cos, self.config.freq_shift)

    @classmethod
    def current_name(cls, name: str) -> str:
        return old_attention_name(name)


def _only_where_resnets_resize(options: BlockOptions, skip_time_act: bool, scale: float) -> BlockOptions:
    """The two options that the format gives to levels which change size in a residual block."""
    return replace(options, skip_time_act=skip_time_act, scale=scale) if options.resize == "resnet" else options


def _bias(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """[B, 1, 1, L] to be added to attention scores, from a mask [B, L] of what is seen."""
    return None if mask is None else ((1 - mask.to(like.dtype)) * -10000.0)[:, None, None, :]
