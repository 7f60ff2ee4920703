"""What CLIP's two encoders share: their transformer layers, how a fresh one begins, and their file format.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..words import check_choice
from .base import Model


def quick_gelu(x: Tensor) -> Tensor:
    """`x · sigmoid(1.702 x)` (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2): what the released CLIPs use."""
    return x * torch.sigmoid(1.702 * x)


_tanh_gelu = functools.partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu, "gelu": F.gelu, "gelu_python": F.gelu, "gelu_new": _tanh_gelu, "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu, "relu": F.relu, "silu": F.silu, "swish": F.silu,
}
"""What `hidden_act` may be."""


class SelfAttention(nn.Module):
    """Multi-head self-attention. Where there is a `mask`, a `causal` one has the causality in it."""

    def __init__(self, channels: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for project in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=self.causal and mask is None)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then a feed-forward part, each normalised before and added after."""

    def __init__(
        self, channels: int, inner: int, heads: int, activation: str, eps: float, dropout: float, causal: bool
    ) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(channels, eps) for _ in range(2))
        self.self_attn = SelfAttention(channels, heads, dropout, causal)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(channels, inner), "fc2": nn.Linear(inner, channels)})

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp["fc2"](self.activation(self.mlp["fc1"](self.layer_norm2(x))))


def config_to_save(model: Model, model_type: str) -> dict[str, Any]:
    """A model's config as transformers writes it."""
    kept = {name: value for name, value in model.config.items() if name[0] != "_" and name != "torch_dtype"}
    return kept | {"architectures": [type(model).__name__], "model_type": model_type,
                   "dtype": str(model.dtype).removeprefix("torch.")}


class CLIPEncoder(Model):
    """Base of CLIP's encoders. Their parameters are named `text_model.…` and `vision_model.…`, as in nearly all
    published files: so every release of transformers reads them."""

    weights_stem = "model"
    reads: ClassVar[str]
    """`"text"` or `"vision"`."""
    projects: ClassVar[bool] = False

    def _layers(self, causal: bool) -> nn.ModuleDict:
        c = self.config
        check_choice("hidden_act", c.hidden_act, ACTIVATIONS)
        if c.hidden_size % c.num_attention_heads:
            raise ValueError(
                f"hidden_size is {c.hidden_size}, which {c.num_attention_heads} attention heads do not divide")
        options = (c.hidden_size, c.intermediate_size, c.num_attention_heads, c.hidden_act, c.layer_norm_eps,
                   c.attention_dropout, causal)
        return nn.ModuleDict({"layers": nn.ModuleList(Layer(*options) for _ in range(c.num_hidden_layers))})

    def _initialise(self) -> None:
        """As GPT-2: linear maps keep the variance, and the branches of all layers share it."""
        for name, weight in self.named_parameters():
            if weight.dim() == 4 or (weight.dim() == 2 and "embedding" not in name):
                branches = 2 * self.config.num_hidden_layers if "out_proj" in name or "fc2" in name else 1
                nn.init.normal_(weight, std=(weight[0].numel() * branches) ** -0.5)
            elif "embedding" in name:
                nn.init.normal_(weight, std=self.config.initializer_range * self.config.initializer_factor)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    # -- the file format ----------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Any, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As `Configured.from_config`; of the config of a whole CLIP, this encoder's part is taken."""
        if not isinstance(config, Mapping):
            config, kwargs = cls.load_config(config, return_unused_kwargs=True, **kwargs)
        if isinstance(part := config.get(f"{cls.reads}_config"), Mapping):
            takes = inspect.signature(cls.__init__).parameters
            whole = {name: config[name] for name in ("projection_dim",) if name in config}  # what its weights have
            config = {name: value for name, value in {**part, **whole}.items() if name in takes}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def _known_elsewhere(cls) -> set[str]:
        return {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "dropout", "return_dict",
                "output_hidden_states", "output_attentions", "is_decoder", "is_encoder_decoder", "add_cross_attention",
                "cross_attention_hidden_size", "chunk_size_feed_forward", "problem_type", "id2label", "label2id",
                "tie_word_embeddings", "sep_token_id", "gradient_checkpointing", "use_cache", "use_attention_mask"}

    def _config_to_save(self) -> dict[str, Any]:
        return config_to_save(self, f"clip_{self.reads}_model")

    @classmethod
    def current_name(cls, name: str) -> str:
        bare = name.startswith(("embeddings.", "encoder.", "final_layer_norm.", "pre_layrnorm.", "post_layernorm."))
        return f"{cls.reads}_model.{name}" if bare else name

    @classmethod
    def is_stale(cls, name: str) -> bool:
        """A whole CLIP's other half, and the buffer of positions that was once written."""
        other = {"text": "vision", "vision": "text"}[cls.reads]
        return re.match(rf"{other}_model\.|(text|visual)_projection\.|logit_scale$"
                        rf"|{cls.reads}_model\.embeddings\.position_ids$", name) is not None
