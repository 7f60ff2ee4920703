"""PyTorch's own compilers take our models as they take any other: whole, without a break."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import calotype

SMALL = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def some(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def text_unet() -> Any:
    torch.manual_seed(0)
    return calotype.UNet2DConditionModel(
        **SMALL, cross_attention_dim=16, attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")).eval()


def plain_unet() -> Any:
    torch.manual_seed(0)
    return calotype.UNet2DModel(
        **SMALL, attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()


def decoder() -> Any:
    torch.manual_seed(0)
    return calotype.AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
                                  up_block_types=("UpDecoderBlock2D",) * 2).eval()


def encoder() -> Any:
    torch.manual_seed(0)
    return calotype.CLIPTextModel(vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                  num_attention_heads=2, max_position_embeddings=8, bos_token_id=97, eos_token_id=98).eval()


MODELS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "text": (text_unet, (some(2, 4, 8, 8), torch.tensor(7), some(2, 5, 16))),
    "unconditional": (plain_unet, (some(2, 3, 8, 8), torch.tensor(7))),
    "autoencoder": (decoder, (some(1, 3, 8, 8),)),
    "text encoder": (encoder, (torch.tensor([[97, 5, 7, 98]]),)),
}


class First(torch.nn.Module):
    """The first tensor of what a model returns, as exporters want it."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, *given: Any) -> Any:
        return self.model(*given, return_dict=False)[0]


@pytest.mark.parametrize("name", MODELS)
def test_compiled_whole(name: str) -> None:
    make, given = MODELS[name]
    model = First(make())
    with torch.no_grad():
        expected = model(*given)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(*given), expected, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_exported(name: str) -> None:
    make, given = MODELS[name]
    model = First(make())
    with torch.no_grad():
        exported = torch.export.export(model, given)
        assert torch.allclose(exported.module()(*given), model(*given), atol=1e-5)


def test_a_compiled_network_in_a_pipeline() -> None:
    """As people write it: `pipe.unet = torch.compile(pipe.unet, fullgraph=True)`."""
    pipe = calotype.DDPMPipeline(plain_unet(), calotype.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}
    expected = pipe(generator=torch.Generator().manual_seed(0), **options).images
    pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend="eager")
    made = pipe(generator=torch.Generator().manual_seed(0), **options).images
    assert abs(made - expected).max() < 1e-4
