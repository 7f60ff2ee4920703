"""Layers adapted for training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import calotype
from calotype.models.lora import LoraState, add_lora, lora_parameters, lora_state_dict, remove_lora
from calotype.models.lora_files import read_adapter, read_file, write_peft
from calotype.runtime.scope import fast_path

TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
WITH_CONVOLUTIONS = r"(down|up)_blocks\..*(to_q|to_out\.0|conv1|downsamplers\.0\.conv|upsamplers\.0\.conv|proj_in|net\.0\.proj)"
CONFIG = {
    "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 16,
    "attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
MODELS = {
    "unet with a text": lambda: calotype.UNet2DConditionModel(**CONFIG),
    "unet": lambda: calotype.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")),
    "text encoder": lambda: calotype.CLIPTextModel(
        vocab_size=99, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=97, eos_token_id=98),
}
TARGETS = {"unet with a text": ATTENTION, "unet": ATTENTION, "text encoder": TEXT}


def make(kind="unet with a text"):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def run(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, calotype.CLIPTextModel):
        return model(torch.randint(99, (2, 8), generator=generator)).last_hidden_state
    sample = torch.randn(2, model.config.in_channels, 8, 8, generator=generator)
    texts = [torch.randn(2, 5, 16, generator=generator)] if "Condition" in type(model).__name__ else []
    return model(sample, 3, *texts).sample


def shake(model, seed=2):
    """As if it had been trained: B is no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.mark.parametrize("kind", MODELS)
def test_begins_as_the_model_and_trains_nothing_else(kind):
    model = make(kind)
    states = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        before = run(model)
        model.requires_grad_(False)  # PyTorch's linear maps round otherwise with weights that are trained
        frozen = run(model)
        model.requires_grad_(True)
        trained = add_lora(model, rank=2, targets=TARGETS[kind])
        assert torch.equal(run(model), frozen)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained}
    assert [id(p) for p in lora_parameters(model)] == [id(p) for p in trained]
    optimizer = torch.optim.SGD(trained, lr=10.0)
    for _ in range(2):
        run(model).square().mean().backward()
        optimizer.step()
    assert not torch.allclose(run(model), before, atol=1e-4)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in states.items())
    remove_lora(model)
    with torch.no_grad():
        assert list(model.state_dict()) == list(states) and torch.equal(run(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_was_frozen_stays_so():
    model = make()
    model.conv_in.requires_grad_(False)
    add_lora(model)
    add_lora(model, name="second")
    remove_lora(model)
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == ["conv_in.weight", "conv_in.bias"]


@pytest.mark.parametrize(("kind", "targets"), [
    ("unet with a text", ATTENTION), ("unet with a text", WITH_CONVOLUTIONS), ("unet", ATTENTION), ("text encoder", TEXT)])
def test_outputs_and_gradients_are_those_of_peft(diffusers, kind, targets):
    peft = pytest.importorskip("peft")
    model = make(kind)
    if kind == "text encoder":
        transformers = pytest.importorskip("transformers")
        peer = transformers.CLIPTextModel(transformers.CLIPTextConfig(**{
            key: model.config[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                               "num_attention_heads", "max_position_embeddings", "eos_token_id")})).eval()
        bare = "embeddings." in next(iter(peer.state_dict()))[:11]
        peer.load_state_dict({key.removeprefix("text_model.") if bare else key: value
                              for key, value in model.state_dict().items()})
    else:
        peer = getattr(diffusers, type(model).__name__)(**{
            key: value for key, value in model.config.items() if not key.startswith("_")}).eval()
        peer.load_state_dict(model.state_dict())
    add_lora(model, rank=3, alpha=5, targets=targets)
    shake(model)
    theirs = peft.inject_adapter_in_model(peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=targets if isinstance(targets, str) else list(targets)), peer)
    state = {key: value.clone() for key, value in lora_state_dict(model).items()}
    named = dict(theirs.named_parameters())

    def key_there(key):
        return (key.removeprefix("text_model.") if kind == "text encoder" and bare else key).replace(".weight", ".default.weight")

    assert {key_there(key) for key in state} == {key for key in named if "lora_" in key}
    with torch.no_grad():
        for key, value in state.items():
            named[key_there(key)].copy_(value)
    mine, other = run(model), _run_peer(theirs, model)
    assert (mine - other).abs().max() <= 1e-5 * other.abs().max()
    mine.square().mean().backward()
    other.square().mean().backward()
    for key in state:
        ours = model.get_parameter(key.replace(".weight", ".default.weight")).grad
        wanted = named[key_there(key)].grad
        assert (ours - wanted).abs().max() <= 1e-5 * wanted.abs().max() + 1e-8, key


def _run_peer(peer, model):
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, calotype.CLIPTextModel):
        return peer(torch.randint(99, (2, 8), generator=generator)).last_hidden_state
    sample = torch.randn(2, model.config.in_channels, 8, 8, generator=generator)
    texts = [torch.randn(2, 5, 16, generator=generator)] if "Condition" in type(model).__name__ else []
    return peer(sample, 3, *texts).sample


def test_is_the_model_with_the_product_in_its_weights():
    model, merged = make(), make()
    add_lora(model, rank=2, alpha=3, targets=WITH_CONVOLUTIONS)
    shake(model)
    state = lora_state_dict(model)
    for component, layers in read_adapter(state, {"": state.config}, {"unet": merged}, "here").items():
        assert component == "unet" and len(layers) == len(state) // 2
        for key, pair in layers.items():
            weight = merged.get_submodule(key).weight
            weight.data += pair.added(weight.detach(), 1.0)
    wanted = run(merged)
    assert (run(model) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("targets", [ATTENTION, WITH_CONVOLUTIONS, r".*(proj_in|proj_out|net\.0\.proj|upsamplers\.0\.conv)"])
def test_the_fast_path_sees_it(targets):
    model = make()
    add_lora(model, rank=2, targets=targets)
    shake(model)
    plain = run(model)
    with torch.no_grad(), fast_path():
        assert torch.allclose(run(model), plain, rtol=1e-5, atol=1e-6)


def test_adapters_add_up_and_have_names():
    model = make()
    base = run(model)
    add_lora(model, rank=2)
    shake(model)
    with_first = run(model)
    second = add_lora(model, rank=1, name="second")
    assert torch.equal(run(model), with_first) and set(map(id, lora_parameters(model, "second"))) == set(map(id, second))
    assert len(lora_parameters(model)) == len(lora_parameters(model, "default")) + len(second)
    shake(model, 3)
    assert not torch.allclose(run(model), with_first)
    assert lora_state_dict(model, "second").config["r"] == 1
    remove_lora(model)
    assert torch.equal(run(model), base)


def test_dropout_only_while_training():
    model = make()
    add_lora(model, rank=2, dropout=0.5)
    shake(model)
    assert torch.equal(run(model), run(model))
    model.train()
    assert not torch.equal(run(model), run(model))


def test_half_precision_has_adapters_in_single():
    model = make().to(torch.bfloat16)
    trained = add_lora(model)
    assert {p.dtype for p in trained} == {torch.float32} and model.dtype == torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    sample, text = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((1, 4, 8, 8), (1, 5, 16)))
    assert model(sample, 3, text).sample.dtype == torch.bfloat16


def test_seeds_copies_and_checkpointing():
    states = []
    for seed in (0, 0, 1):
        model = make()
        add_lora(model, generator=torch.Generator().manual_seed(seed))
        states.append(torch.cat([p.flatten() for p in lora_parameters(model)]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    shake(model)
    copied = copy.deepcopy(model)
    assert torch.equal(run(copied), run(model))
    remove_lora(copied)
    assert not lora_parameters(copied) and lora_parameters(model)
    run(model).square().mean().backward()
    plain = [p.grad.clone() for p in lora_parameters(model)]
    model.zero_grad()
    model.enable_gradient_checkpointing()
    run(model).square().mean().backward()
    assert all(torch.allclose(p.grad, grad, atol=1e-7) for p, grad in zip(lora_parameters(model), plain, strict=True))


def test_a_folder_for_peft(diffusers, tmp_path):
    peft = pytest.importorskip("peft")
    model = make()
    peer = diffusers.UNet2DConditionModel(**{k: v for k, v in model.config.items() if not k.startswith("_")}).eval()
    peer.load_state_dict(model.state_dict())
    add_lora(model, rank=2, alpha=6)
    shake(model)
    write_peft(tmp_path, lora_state_dict(model))
    theirs = peft.PeftModel.from_pretrained(peer, str(tmp_path)).eval()
    wanted = _run_peer(theirs, model)
    assert (run(model) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    read = read_adapter(*read_file(tmp_path / "adapter_model.safetensors"), {"unet": make()}, "here")["unet"]
    assert {pair.scale for pair in read.values()} == {3.0}


@pytest.mark.parametrize(("options", "message"), [
    ({"rank": 0}, "rank is 0, but must be a whole number"), ({"rank": 1.5}, "rank is 1.5"),
    ({"dropout": 1.0}, "dropout is 1.0"), ({"name": "a.b"}, "a word without dots"),
    ({"targets": ["q_proj"]}, r"no linear layer .* is called \['q_proj'\]; their names end in .*to_q"),
    ({"targets": "("}, "no regular expression"),
])
def test_bad_input_changes_nothing(options, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        add_lora(model, **options)
    assert all(p.requires_grad for p in model.parameters()) and not lora_parameters(model)


def test_more_bad_input(tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(ValueError, match="convolutions in groups cannot be adapted, and these are: 0"):
        add_lora(model, targets=["0"])
    model = make()
    with pytest.raises(ValueError, match="no adapter 'default' .there is none"):
        lora_state_dict(model)
    add_lora(model)
    with pytest.raises(ValueError, match="there is an adapter 'default' already"):
        add_lora(model)
    with pytest.raises(ValueError, match="UNet2DConditionModel has LoRA adapters under training"):
        model.save_pretrained(tmp_path)
    remove_lora(model)
    model.save_pretrained(tmp_path)
    assert isinstance(LoraState({}, {}), dict)
