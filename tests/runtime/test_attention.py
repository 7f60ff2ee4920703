"""Attention by name."""

from __future__ import annotations

import pytest
import torch

import calotype
from calotype.models.attention import Attention
from calotype.runtime import attention
from calotype.runtime.scope import fast_path

UNET = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}


def inputs(length=12):
    own = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 8, generator=own) for n in (20, length, length)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [name for name, works in attention.usable("cpu").items() if works])
def test_what_is_computed(name, masked):
    query, key, value = inputs()
    mask = torch.randn(2, 1, 1, 12, generator=torch.Generator().manual_seed(1)) if masked else None
    scores = query.double() @ key.double().transpose(-1, -2) / 8**0.5 + (mask.double() if masked else 0)
    with fast_path():
        seen = attention.attend(query, key, value, mask, name)
    assert torch.allclose(seen.double(), scores.softmax(-1) @ value.double(), atol=1e-6)


def test_every_machine_can():
    usable = attention.usable("cpu")
    assert tuple(usable) == attention.BACKENDS
    assert usable["auto"] and usable["native"] and usable["math"] and not usable["cudnn"]


def test_a_back_end_that_cannot_says_so():
    with pytest.raises(RuntimeError, match="kernel"):
        attention.attend(*inputs(), backend="cudnn")


def test_of_a_whole_model(monkeypatch):
    unet, asked = calotype.UNet2DConditionModel(**UNET).eval(), []
    count = sum(isinstance(module, Attention) for module in unet.modules())
    real = attention.attend
    monkeypatch.setattr("calotype.models.attention.attend", lambda *given: asked.append(given[-1]) or real(*given))
    own = torch.Generator().manual_seed(0)
    given = torch.randn(1, 4, 8, 8, generator=own), 3, torch.randn(1, 5, 8, generator=own)
    results = []
    for name in ("auto", "math", "_native_flash", "native"):
        unet.set_attention_backend(name)
        with torch.no_grad():
            results.append(unet(*given).sample)
    assert asked == [name for name in ("auto", "math", "flash", "native") for _ in range(count)]
    assert all(torch.allclose(result, results[0], atol=1e-6) for result in results)


def test_a_change_of_back_end_is_seen_by_recordings(monkeypatch):
    """A recording has the old one in it."""
    from calotype.runtime import recording

    monkeypatch.setitem(recording._CALLS_BEFORE, "cpu", 1)
    unet, own = calotype.UNet2DConditionModel(**UNET).eval(), torch.Generator().manual_seed(0)
    asked = []
    real = attention.attend
    monkeypatch.setattr("calotype.models.attention.attend", lambda *given: asked.append(given[-1]) or real(*given))
    with torch.no_grad(), fast_path():
        moment, text = unet.moments(torch.tensor([3]))[0], unet.keep(torch.randn(1, 5, 8, generator=own))
        sample = torch.randn(1, 4, 8, 8, generator=own)
        for _ in range(4):
            recording.call(unet, sample, moment, text)
        recorded = len(asked)
        unet.set_attention_backend("math")
        recording.call(unet, sample, moment, text)
    assert set(asked[:recorded]) == {"auto"}
    assert set(asked[recorded:]) == {"math"}


@pytest.mark.parametrize("name", ["flsh", "sdpa2", ""])
def test_unknown_names(name):
    with pytest.raises(ValueError, match="attention backend"):
        calotype.UNet2DConditionModel(**UNET).set_attention_backend(name)


@pytest.mark.skipif(attention.usable("cpu")["xformers"], reason="xformers is installed")
def test_xformers_is_not_there():
    with pytest.raises(ModuleNotFoundError, match="xformers"):
        attention.check_backend("xformers")
