"""Models as folders: old names, other precisions, damage; and what a model tells of itself."""

from __future__ import annotations

import contextlib
import itertools
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


# -- several saves in one folder ----------------------------------------------------------------------------------------

LAYOUTS = {"whole": {}, "shards": {"max_shard_size": "20KB"}, "fewer shards": {"max_shard_size": "60KB"},
           "pickle": {"safe_serialization": False}, "pickled shards": {"safe_serialization": False, "max_shard_size": "20KB"}}


def filled(model, value):
    for parameter in model.parameters():
        parameter.data.fill_(value)
    return model


def loaded(model_class, folder, **options):
    """The value that a model's parameters have, or `None` where there is none to be loaded."""
    try:
        model = model_class.from_pretrained(folder, **options)
    except (OSError, ValueError):
        return None
    first = next(model.parameters()).detach().flatten()
    assert all(bool((parameter == first[0]).all()) for parameter in model.parameters())
    return float(first[0])


@pytest.mark.parametrize(("first", "second", "variant"), [
    *((*pair, None) for pair in itertools.permutations(LAYOUTS, 2) if "fewer shards" not in pair or "shards" in pair),
    ("whole", "shards", "fp16"), ("shards", "whole", "fp16"), ("whole", "pickle", "fp16"), ("pickled shards", "pickle", "fp16")])
def test_of_two_saves_the_one_is_loaded_that_the_oracle_loads(tmp_path, diffusers, first, second, variant):
    theirs = diffusers.UNet2DModel(**UNET)
    for value, layout in ((1.0, first), (2.0, second)):
        filled(theirs, value).save_pretrained(tmp_path, variant=variant, **LAYOUTS[layout])
    ours, same = ([loaded(library.UNet2DModel, tmp_path, variant=variant, use_safetensors=allowed) for allowed in (True, False)]
                  for library in (calotype, diffusers))
    for mine, its in zip(ours, same, strict=True):
        assert mine == its or its is None  # where an index is left over, the oracle finds nothing
    assert max(value or 0.0 for value in ours) == 2.0
    filled(calotype.UNet2DModel(**UNET), 3.0).save_pretrained(tmp_path, variant=variant, max_shard_size="40KB")
    for allowed in (True, False):
        assert loaded(calotype.UNet2DModel, tmp_path, variant=variant, use_safetensors=allowed) == 3.0
    assert loaded(diffusers.UNet2DModel, tmp_path, variant=variant) == 3.0


@pytest.mark.parametrize("first", ["whole", "shards"])
@pytest.mark.parametrize("second", ["whole", "shards"])
def test_of_two_saves_of_transformers_the_one_is_loaded_that_it_loads(tmp_path, first, second):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 99, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    theirs = transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes))
    for value, layout in ((1.0, first), (2.0, second)):
        filled(theirs, value).save_pretrained(tmp_path, max_shard_size={"whole": "10GB", "shards": "3KB"}[layout])
    assert loaded(calotype.CLIPTextModel, tmp_path) == loaded(transformers.CLIPTextModel, tmp_path)
    filled(calotype.CLIPTextModel.from_pretrained(tmp_path), 3.0).save_pretrained(tmp_path, max_shard_size="3KB")
    assert loaded(calotype.CLIPTextModel, tmp_path) == loaded(transformers.CLIPTextModel, tmp_path) == 3.0


def test_a_missing_shard_is_named_though_there_is_a_whole_file(tmp_path):
    model = calotype.UNet2DModel(**UNET)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "whole" / FILE).rename(tmp_path / FILE)
    lost = sorted(tmp_path.glob("*-of-*"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=lost.name):
        calotype.UNet2DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "divided"), [
    ("UNet2DModel", (True, True)), *(("CLIPTextModel", divided) for divided in itertools.product((True, False), repeat=2))])
def test_a_save_that_is_killed_leaves_no_mixture(tmp_path, monkeypatch, name, divided):
    """Wherever it ends: the old weights, the new, or nothing that loads."""
    import os

    room = {"UNet2DModel": "60KB", "CLIPTextModel": "3KB"}[name]
    sizes = UNET if name == "UNet2DModel" else {
        "vocab_size": 99, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    move, seen = os.replace, set()
    for moves in range(400):
        folder = tmp_path / str(moves)
        model = filled(getattr(calotype, name)(**sizes), 1.0)
        before, after = ({"max_shard_size": room} if one else {} for one in divided)
        model.save_pretrained(folder, **before)
        left = [moves]

        def killed(source, target, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            move(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", killed)
            with contextlib.suppress(KeyboardInterrupt):
                filled(model, 2.0).save_pretrained(folder, **after)
        seen.add(loaded(type(model), folder))
        if left[0] >= 0:
            break
    assert seen == {1.0, None, 2.0}


# -- transformers' classes ----------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 12}
TEXT = {**SIZES, "vocab_size": 99, "max_position_embeddings": 9, "bos_token_id": 97, "eos_token_id": 98}
VISION = {**SIZES, "image_size": 8, "patch_size": 4}


@pytest.mark.parametrize(("name", "given", "prefix"), [
    ("CLIPTextModel", TEXT, "text_model."), ("CLIPTextModelWithProjection", TEXT, "text_"),
    ("CLIPVisionModel", VISION, "vision_model."), ("CLIPVisionModelWithProjection", VISION, "vis")])
def test_encoders_go_both_ways_with_transformers(tmp_path, name, given, prefix):
    """Whatever names this release of transformers writes, it reads the published ones, which are those that we write."""
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, name)(transformers.CLIPTextConfig(**given) if "Text" in name
                                         else transformers.CLIPVisionConfig(**given)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = getattr(calotype, name).from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    assert all(key.startswith(prefix) for key in load_file(tmp_path / "ours" / "model.safetensors"))
    again, told = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert theirs.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in theirs.state_dict().items())


def test_the_safety_checker_goes_both_ways(tmp_path, diffusers):
    transformers = pytest.importorskip("transformers")
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    theirs = StableDiffusionSafetyChecker(config)
    theirs.save_pretrained(tmp_path / "theirs")
    calotype.StableDiffusionSafetyChecker.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    keys = load_file(tmp_path / "ours" / "model.safetensors").keys()
    assert "vision_model.vision_model.embeddings.class_embedding" in keys  # as published
    again, told = StableDiffusionSafetyChecker.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in theirs.state_dict().items())
