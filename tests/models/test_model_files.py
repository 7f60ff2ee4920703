"""Models as folders: old names, other precisions, damage; and what a model tells of itself."""

from __future__ import annotations

import json

import pytest
import torch
from compare import assert_close
from safetensors.torch import load_file, save_file

import calotype

UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4, "sample_size": 8,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
VAE = {"block_out_channels": (8, 16), "norm_num_groups": 4, "down_block_types": ("DownEncoderBlock2D",) * 2,
       "up_block_types": ("UpDecoderBlock2D",) * 2}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(params=["UNet2DModel", "AutoencoderKL"])
def model(request):
    torch.manual_seed(0)
    return getattr(calotype, request.param)(**{"UNet2DModel": UNET, "AutoencoderKL": VAE}[request.param]).eval()


def ask(model):
    """What the model makes of a fixed input; a mapped weight may lie otherwise in memory, which changes rounding."""
    torch.manual_seed(1)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        return (model(x, 3) if isinstance(model, calotype.UNet2DModel) else model(x)).sample


def test_save_and_load(model, tmp_path, diffusers):
    """Ours reads what ours wrote, the oracle reads what ours wrote, ours reads what the oracle wrote."""
    model.save_pretrained(tmp_path / "ours")
    name = type(model).__name__
    assert_close(ask(type(model).from_pretrained(tmp_path / "ours")), ask(model))
    theirs = getattr(diffusers, name).from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = type(model).from_pretrained(tmp_path / "theirs")
    assert_close(ask(again), ask(model))
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["_class_name"], config["_diffusers_version"]) == (name, "0.42.1")


def test_attention_names_of_before_2023(model, tmp_path, diffusers):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / FILE)
    renamed = {}
    for name, tensor in tensors.items():
        for new, old in OLD.items():
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / FILE)
    assert_close(ask(type(model).from_pretrained(tmp_path)), ask(model))


def test_precision(model, tmp_path):
    """float16 on disk is float32 in memory unless something else is asked for."""
    model.half().save_pretrained(tmp_path, variant="fp16")
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.fp16.safetensors"]
    load = type(model).from_pretrained
    assert load(tmp_path, variant="fp16").dtype is torch.float32
    assert load(tmp_path, variant="fp16", torch_dtype=torch.bfloat16).dtype is torch.bfloat16
    assert load(tmp_path, variant="fp16", torch_dtype="auto").dtype is torch.float16
    with pytest.raises(FileNotFoundError, match="has no 'diffusion_pytorch_model.safetensors'"):
        load(tmp_path)
    with pytest.raises(ValueError, match="must be a torch dtype"):
        load(tmp_path, variant="fp16", torch_dtype="half")


def test_loading_initialises_nothing(model, tmp_path):
    """The generator of random numbers is where it was, and the model is ready for use."""
    model.save_pretrained(tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert not any(parameter.is_meta for parameter in loaded.parameters())


def test_sharded(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_close(ask(type(model).from_pretrained(tmp_path)), ask(model))
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("diff*")] == [FILE]


def test_keys_are_accounted_for(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / FILE)
    save_file({**tensors, "extra.weight": torch.zeros(1)}, tmp_path / FILE)
    type(model).from_pretrained(tmp_path)
    assert "extra.weight" in caplog.text
    save_file({name: tensor for name, tensor in tensors.items() if "conv_out" not in name}, tmp_path / FILE)
    with pytest.raises(ValueError, match=r"missing: .*conv_out\.(weight|bias)"):
        type(model).from_pretrained(tmp_path)
    wrong = next(name for name in tensors if name.endswith("conv_in.weight"))
    save_file({**tensors, wrong: torch.zeros(3, 3)}, tmp_path / FILE)
    with pytest.raises(ValueError, match=rf"{wrong} is \[3, 3\] and should be \[\d+, \d, 3, 3\]"):
        type(model).from_pretrained(tmp_path)


def test_unknown_config_entries_come_back(tmp_path, caplog):
    calotype.UNet2DModel(**UNET).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "from_the_future": [1, 2]}))
    model = calotype.UNet2DModel.from_pretrained(tmp_path)
    calotype.UNet2DModel.from_pretrained(tmp_path)
    assert caplog.text.count("from_the_future") == 1
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["from_the_future"] == [1, 2]


def test_what_a_model_tells(model):
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    next(model.parameters()).requires_grad_(False)
    assert model.num_parameters(only_trainable=True) < model.num_parameters()
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))
    assert model.to(torch.float16).dtype is torch.float16
    assert repr(model).startswith(f"{type(model).__name__}(\n")
    assert model.config.block_out_channels == model.config["block_out_channels"] == (8, 16)
    with pytest.raises(TypeError, match="frozen"):
        model.config["layers_per_block"] = 3
    with pytest.raises(TypeError, match="frozen"):
        model.config.layers_per_block = 3


def test_an_unknown_keyword_names_the_nearest(tmp_path):
    with pytest.raises(TypeError, match="no argument 'sampel_size'; did you mean 'sample_size'"):
        calotype.UNet2DModel.from_pretrained(tmp_path, sampel_size=3)
