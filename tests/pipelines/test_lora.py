"""Adapters in pipelines: read from all formats, merged, mixed, scaled and taken out again."""

from __future__ import annotations

import copy
import json
import pickle
import threading

import numpy as np
import pytest
import torch
from hub_server import HubServer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import calotype
from calotype.hub import BUNDLED
from calotype.models import merging
from calotype.models.lora import add_lora, lora_parameters, lora_state_dict, remove_lora
from calotype.models.lora_files import write_peft
from calotype.models.merged_layer import mark

from .conftest import make_tiny, seeded

WITH_CONVOLUTIONS = r".*(to_q|to_k|to_v|to_out\.0|conv1|proj_in|time_emb_proj|net\.0\.proj|upsamplers\.0\.conv)"
TEXT = ("q_proj", "v_proj", "out_proj")


def trained(model, seed=0, strength=0.3, **options):
    """The state of an adapter of `model`, as if it had been trained; the model stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    add_lora(model, **{"rank": 2, **options})
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * strength)
    state = lora_state_dict(model)
    remove_lora(model)
    return state


def draw(pipe, **options):
    given = {"num_inference_steps": 3, "output_type": "latent", **options}
    return pipe("a red cat", generator=seeded(0), **given).images


def weights(pipe):
    return {f"{name}.{key}": value.clone() for name in ("unet", "text_encoder")
            for key, value in getattr(pipe, name).state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def unet_state(tiny):
    return trained(tiny.unet, alpha=3, targets=WITH_CONVOLUTIONS)


@pytest.fixture
def text_state(tiny):
    return trained(tiny.text_encoder, seed=1, alpha=1, targets=TEXT)


@pytest.fixture
def folder(tiny, unet_state, text_state, tmp_path):
    """An adapter for both, in a file."""
    tiny.save_lora_weights(tmp_path / "saved", unet_state, text_state)
    return tmp_path / "saved"


# -- merged, and taken out -----------------------------------------------------------------------------------------------


def test_merged_is_as_injected(tiny, folder, unet_state, text_state):
    before, plain = weights(tiny), draw(tiny)
    injected = copy.deepcopy(tiny)
    for model, state, options in ((injected.unet, unet_state, {"alpha": 3, "targets": WITH_CONVOLUTIONS}),
                                  (injected.text_encoder, text_state, {"alpha": 1, "targets": TEXT})):
        add_lora(model, rank=2, **options)
        for key, value in state.items():
            model.get_parameter(key.replace(".weight", ".default.weight")).data.copy_(value)
    tiny.load_lora_weights(folder)
    assert tiny.get_active_adapters() == ["default_0"]
    assert tiny.get_list_adapters() == {"unet": ["default_0"], "text_encoder": ["default_0"]}
    wanted = draw(injected)
    assert torch.allclose(draw(tiny), wanted, atol=1e-4 * float(wanted.abs().max()))
    assert not torch.allclose(wanted, plain, atol=0.05)
    tiny.unload_lora_weights()
    assert same(weights(tiny), before) and torch.equal(draw(tiny), plain)
    assert tiny.get_active_adapters() == [] and tiny.get_list_adapters() == {}
    tiny.unload_lora_weights()


def test_recordings_layouts_and_kept_keys_notice(tiny, folder):
    """Steps are recorded after a few; what is drawn then is what a pipeline draws that never was without the adapter."""
    fresh = make_tiny()
    fresh.load_lora_weights(folder)
    wanted = draw(fresh, num_inference_steps=8)
    plain = [draw(tiny, num_inference_steps=8) for _ in range(3)][-1]
    assert any(vars(tiny.unet)["_recordings"].by_inputs)
    tiny.load_lora_weights(folder)
    for _ in range(3):
        assert torch.allclose(draw(tiny, num_inference_steps=8), wanted, rtol=1e-4, atol=1e-5)
    assert any(vars(tiny.unet)["_recordings"].by_inputs)
    tiny.unload_lora_weights()
    for _ in range(2):
        assert torch.allclose(draw(tiny, num_inference_steps=8), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quality", ["exact", "draft"])
@pytest.mark.parametrize("fast", [True, False])
def test_changed_in_the_middle_of_a_generation(tiny, folder, quality, fast):
    """What layers have made of text and time is not used again."""
    tiny.load_lora_weights(folder)
    tiny.fast = fast
    made = {}
    for told_anew in (True, True, False):

        def disable(pipe, call, timestep, tensors):
            if call == 3:
                tiny.disable_lora()
                return {"prompt_embeds": tensors["prompt_embeds"].clone()} if told_anew else None  # noqa: B023

        tiny.enable_lora()
        made[told_anew] = draw(tiny, num_inference_steps=10, quality=quality, callback_on_step_end=disable,
                               callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert torch.allclose(made[False], made[True], rtol=1e-4, atol=1e-4)
    tiny.enable_lora()
    assert not torch.allclose(made[False], draw(tiny, num_inference_steps=10, quality=quality), atol=1e-2)


def test_half_precision_is_rounded_once_and_back(tiny, unet_state):
    wanted = {key: value.clone() for key, value in tiny.unet.state_dict().items()}
    tiny.to(torch.bfloat16)
    before = weights(tiny)
    tiny.load_lora_weights({f"unet.{key}": value for key, value in unet_state.items()})
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    added = unet_state[f"{key}.lora_B.weight"] @ unet_state[f"{key}.lora_A.weight"]
    base = wanted[f"{key}.weight"].bfloat16().float()
    assert torch.equal(tiny.unet.get_parameter(f"{key}.weight"), (base + added).bfloat16())
    tiny.unload_lora_weights()
    assert same(weights(tiny), before)


def test_moved_and_copied_while_loaded(tiny, folder):
    before = weights(tiny)
    tiny.load_lora_weights(folder)
    copied = copy.deepcopy(tiny)
    tiny.unet.to(torch.float64).to(torch.float32)
    tiny.unload_lora_weights()
    assert same(weights(tiny), before) and copied.get_active_adapters() == ["default_0"] and not same(weights(copied), before)
    copied.unload_lora_weights()
    assert same(weights(copied), before)


def test_models_that_are_shared_share_adapters(tiny, folder):
    other = calotype.StableDiffusionImg2ImgPipeline.from_pipe(tiny, requires_safety_checker=False)
    tiny.load_lora_weights(folder, adapter_name="mine")
    assert other.get_active_adapters() == ["mine"]
    other.unload_lora_weights()
    assert tiny.get_list_adapters() == {}


def test_offloaded_models_are_refused(tiny, folder):
    tiny.offload("model", "cpu")
    with pytest.raises(ValueError, match="is offloaded.*call offload"):
        tiny.load_lora_weights(folder)
    tiny.offload(None)
    tiny.load_lora_weights(folder)
    wanted, loaded = draw(tiny), weights(tiny)
    tiny.offload("layers", "cpu")
    with pytest.raises(ValueError, match="is offloaded"):
        tiny.set_adapters("default_0", 0.5)
    with pytest.raises(ValueError, match="is offloaded"):
        tiny.unload_lora_weights()
    assert torch.allclose(draw(tiny), wanted, atol=1e-5)
    tiny.offload(None)
    assert same(weights(tiny), loaded) and tiny.get_active_adapters() == ["default_0"]


def test_weights_of_inference_mode(folder):
    with torch.inference_mode():
        pipe = make_tiny()
    before = weights(pipe)
    pipe.load_lora_weights(folder)
    assert not same(weights(pipe), before)
    pipe.unload_lora_weights()
    assert same(weights(pipe), before)


# -- weights that change while adapters are merged -------------------------------------------------------------------------

QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def merged(tiny, folder):
    """A pipeline with an adapter; `base` are its weights without, `summed` those with it."""
    tiny.base = {key: value.clone() for key, value in tiny.unet.state_dict().items()}
    tiny.load_lora_weights(folder, adapter_name="mine")
    tiny.summed = {key: value.clone() for key, value in tiny.unet.state_dict().items()}
    tiny.adapted = {key for key in tiny.base if not torch.equal(tiny.base[key], tiny.summed[key])}
    assert f"{QUERY}.weight" in tiny.adapted and len(tiny.adapted) < len(tiny.base)
    return tiny


def is_kept(pipe, changed):
    """The weights are what they were without an adapter, and what was changed in them while there was one."""
    now = pipe.unet.state_dict()
    return all(torch.allclose(now[key], pipe.base[key] + (changed[key] - pipe.summed[key]), rtol=0, atol=1e-6) for key in now)


def negate(unet):
    unet.get_parameter(f"{QUERY}.weight").data.neg_()


def exchange_rows(unet):
    weight = unet.get_parameter(f"{QUERY}.weight").data
    weight[[0, 1]] = weight[[1, 0]]


def one_bit(unet):
    unet.get_parameter(f"{QUERY}.weight").data.view(torch.int32)[3, 4] ^= 1


def other_memory(unet):
    parameter = unet.get_parameter(f"{QUERY}.weight")
    parameter.data = parameter.data + 0.25


def average(unet):
    average = calotype.training.EMAModel(unet.parameters())
    with torch.no_grad():
        for shadow in average.shadow_params:
            shadow.mul_(1.5)
    average.copy_to(unet.parameters())


def train(unet, **options):
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=0.01, **options)
    for parameter in unet.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    optimizer.zero_grad()


CHANGES = {"negated": negate, "rows exchanged": exchange_rows, "one bit": one_bit, "other memory": other_memory,
           "averaged": average, "trained": train, "trained by a fused optimiser": lambda unet: train(unet, fused=True)}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_changed_in_place_stays_changed(merged, name):
    CHANGES[name](merged.unet)
    changed = {key: value.clone() for key, value in merged.unet.state_dict().items()}
    for scale in (0.5, 1.0):
        merged("a cat", num_inference_steps=1, output_type="latent", cross_attention_kwargs={"scale": scale})
        assert all(torch.equal(value, changed[key]) for key, value in merged.unet.state_dict().items())
    merged.disable_lora()
    assert is_kept(merged, changed)
    merged.enable_lora()
    merged.fuse_lora(lora_scale=2)
    merged.unfuse_lora()
    assert all(torch.allclose(value, changed[key], rtol=0, atol=1e-6) for key, value in merged.unet.state_dict().items())
    merged.unload_lora_weights()
    assert is_kept(merged, changed)
    for key, value in merged.unet.state_dict().items():
        if torch.equal(changed[key], merged.summed[key]):
            assert torch.equal(value, merged.base[key])  # nobody changed it: bit for bit


def test_what_is_changed_and_changed_back_was_not_changed(merged):
    kept = calotype.training.EMAModel(merged.unet.parameters())
    kept.store(merged.unet.parameters())
    negate(merged.unet)
    kept.restore(merged.unet.parameters())
    merged.unload_lora_weights()
    assert all(torch.equal(value, merged.base[key]) for key, value in merged.unet.state_dict().items())


def load_all(pipe, new):
    pipe.unet.load_state_dict(new)


def load_and_assign(pipe, new):
    pipe.unet.load_state_dict({key: value.clone() for key, value in new.items()}, assign=True)


def load_a_part(pipe, new):
    beginning = "mid_block."
    pipe.unet.mid_block.load_state_dict({key.removeprefix(beginning): new[key] for key in new if key.startswith(beginning)})
    pipe.unet.load_state_dict({key: new[key] for key in new if not key.startswith(beginning)}, strict=False)


def other_parameters(pipe, new):
    for key in list(new):
        module, _, name = key.rpartition(".")
        setattr(pipe.unet.get_submodule(module), name, torch.nn.Parameter(new[key].clone()))


@pytest.mark.parametrize("put_in", [load_all, load_and_assign, load_a_part, other_parameters])
def test_weights_that_are_put_in_stay(merged, put_in):
    new = {key: value + 1 for key, value in merged.base.items()}

    def are_new(but=()):
        return all(torch.equal(value, new[key]) is (key not in but) for key, value in merged.unet.state_dict().items())

    put_in(merged, new)
    assert are_new()
    merged("a cat", num_inference_steps=1, output_type="latent", cross_attention_kwargs={"scale": 0.5})
    assert are_new()
    merged.set_adapters("mine", 1.0)  # chosen again, it is for these weights
    assert are_new(but=merged.adapted)
    key = f"{QUERY}.weight"
    assert torch.allclose(merged.unet.state_dict()[key] - new[key], merged.summed[key] - merged.base[key], atol=1e-6)
    merged.unload_lora_weights()
    assert are_new()
    put_in(merged, merged.base)
    merged.unload_lora_weights()
    assert all(torch.equal(value, merged.base[key]) for key, value in merged.unet.state_dict().items())
    assert not any(module._load_state_dict_pre_hooks for module in merged.unet.modules())


def test_weights_that_are_put_in_and_trained_stay(merged):
    merged.unet.load_state_dict({key: value + 1 for key, value in merged.base.items()})
    train(merged.unet)
    trained_on = {key: value.clone() for key, value in merged.unet.state_dict().items()}
    merged.unload_lora_weights()
    assert all(torch.equal(value, trained_on[key]) for key, value in merged.unet.state_dict().items())


def test_what_was_saved_with_an_adapter_is_loaded_with_it(merged):
    merged.unet.load_state_dict({key: value + 1 for key, value in merged.base.items()})
    merged.unet.load_state_dict(merged.summed)
    merged.unload_lora_weights()
    assert all(torch.equal(value, merged.base[key]) for key, value in merged.unet.state_dict().items())


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,), (torch.float16,), (torch.float64,), (torch.float64, torch.float16)])
def test_rounded_weights_are_those_from_before_rounded(merged, dtypes):
    for dtype in dtypes:
        merged.unet.to(dtype)
    merged.unload_lora_weights()
    assert all(torch.equal(value, merged.base[key].to(dtypes[-1])) for key, value in merged.unet.state_dict().items())


def test_weights_that_were_rounded_and_are_not_any_more(merged):
    """What rounding changed is a change."""
    merged.unet.to(torch.bfloat16).to(torch.float32)
    changed = {key: value.clone() for key, value in merged.unet.state_dict().items()}
    merged.unload_lora_weights()
    assert is_kept(merged, changed)


def test_a_change_in_half_precision(merged):
    merged.unet.to(torch.float16)
    negate(merged.unet)
    changed = {key: value.clone() for key, value in merged.unet.state_dict().items()}
    merged.set_adapters("mine", 0.25)
    merged.set_adapters("mine", 1.0)
    assert all(torch.equal(value, changed[key]) for key, value in merged.unet.state_dict().items())
    merged.unload_lora_weights()
    key = f"{QUERY}.weight"
    exact = merged.base[key].half().float() + changed[key].float() - merged.summed[key].half().float()
    assert torch.allclose(merged.unet.state_dict()[key].float(), exact, atol=1e-2)


def test_pickled_while_merged_and_changed(merged):
    negate(merged.unet)
    again = pickle.loads(pickle.dumps(merged.unet))
    new = {key: value + 1 for key, value in merged.base.items()}
    again.load_state_dict(new)
    merging.unload(again)
    merged.unload_lora_weights()
    assert all(torch.equal(value, new[key]) for key, value in again.state_dict().items())
    key = f"{QUERY}.weight"
    assert torch.allclose(merged.unet.state_dict()[key], merged.base[key] - 2 * merged.summed[key], atol=1e-6)


def test_a_failed_choice_leaves_new_weights_alone(merged):
    new = {key: value + 1 for key, value in merged.base.items()}
    merged.unet.load_state_dict(new)
    with pytest.raises(ValueError, match="a component of adapter_weights"):
        merged.set_adapters("mine", {"vae": 1.0})
    assert all(torch.equal(value, new[key]) for key, value in merged.unet.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_bits_in_their_order_have_a_number(dtype):
    weight = torch.randn(300, 600, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    kernel = weight.view(300, 8, 25, 3)
    others = [weight.roll(1, 0), weight.roll(1, 1), weight.flip(0), -weight, weight.abs(), weight.view(600, 300), weight * 0,
              torch.where(torch.arange(600) == 7, -weight, weight)]
    assert len({mark(each) for each in (weight, *others)}) == len(others) + 1
    assert mark(kernel) == mark(kernel.to(memory_format=torch.channels_last)) == mark(weight) == mark(weight.t().clone().t())
    assert mark(torch.zeros(2, 2, dtype=dtype)) != mark(-torch.zeros(2, 2, dtype=dtype))


# -- mixed and scaled ----------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tiny):
    """A pipeline with adapters "a" and "b", and the changes of one weight by each."""
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    states = {name: trained(tiny.unet, seed) for seed, name in enumerate("ab")}
    tiny.base = tiny.unet.get_parameter(f"{key}.weight").detach().clone()
    tiny.parts = {name: state[f"{key}.lora_B.weight"] @ state[f"{key}.lora_A.weight"] for name, state in states.items()}
    tiny.now = lambda: tiny.unet.get_parameter(f"{key}.weight").detach()
    for name, state in states.items():
        tiny.load_lora_weights({f"unet.{key}": value for key, value in state.items()}, adapter_name=name)
    return tiny


def first(pipe, factor=1):
    """The tensors of the adapter "a"."""
    return {f"unet.{layer}.lora_{half}.weight": value for layer, pair in pipe.unet._adapters_merged.held["a"].items()
            for half, value in (("A", pair.down), ("B", factor * pair.up))}


def is_sum(pipe, a, b):
    return torch.allclose(pipe.now(), pipe.base + a * pipe.parts["a"] + b * pipe.parts["b"], atol=1e-6)


def test_several(two):
    assert two.get_active_adapters() == ["b"] and is_sum(two, 0, 1)
    two.set_adapters(["a", "b"], [0.5, -2.0])
    assert two.get_active_adapters() == ["a", "b"] and is_sum(two, 0.5, -2)
    two.set_adapters(["b", "a"], 0.3)
    assert is_sum(two, 0.3, 0.3)
    two.set_adapters("a")
    assert is_sum(two, 1, 0)
    two.disable_lora()
    assert torch.equal(two.now(), two.base) and two.get_active_adapters() == ["a"]
    two.set_adapters("b")
    assert torch.equal(two.now(), two.base)
    two.enable_lora()
    assert is_sum(two, 0, 1)
    two.delete_adapters("b")
    assert two.get_list_adapters() == {"unet": ["a"]} and torch.equal(two.now(), two.base)
    two.set_adapters("a", {"unet": 0.5, "text_encoder": 3.0})
    assert is_sum(two, 0.5, 0)
    two.set_adapters("a", {"text_encoder": 3.0})
    assert is_sum(two, 1, 0)
    two.load_lora_weights(first(two, 2), adapter_name="a", hotswap=True)
    assert is_sum(two, 2, 0) and two.get_active_adapters() == ["a"]


def test_by_block_as_in_diffusers(two, diffusers):
    pytest.importorskip("peft")
    weight = {"unet": {"down": 0.5, "mid": 0.0, "up": {"block_1": [0.3, 0.6]}}}
    two.set_adapters("a", weight)
    peer = _peer(diffusers, two)
    peer.load_lora_weights(first(two), adapter_name="a")
    peer.set_adapters("a", weight)
    scales = {name: layer.scaling["a"] for name, layer in peer.unet.named_modules() if hasattr(layer, "scaling")}
    assert two.unet._adapters_merged.active["a"] == scales and set(scales.values()) == {0.5, 0.0, 0.3, 0.6}


def test_fused(two, tmp_path):
    two.set_adapters(["a", "b"], [1.0, 0.5])
    two.fuse_lora(lora_scale=0.5)
    assert is_sum(two, 0.5, 0.25)
    for change in (lambda: two.set_adapters("a"), lambda: two.disable_lora(), lambda: two.delete_adapters("a"), two.fuse_lora,
                   lambda: two.load_lora_weights({})):
        with pytest.raises(ValueError, match="fused|no tensors"):
            change()
    draw(two, cross_attention_kwargs={"scale": 0.1})
    assert is_sum(two, 0.5, 0.25)
    two.unfuse_lora()
    assert is_sum(two, 1, 0.5)
    two.fuse_lora(components=["unet"], adapter_names=["b"], safe_fusing=True)
    assert is_sum(two, 0, 0.5)
    two.unfuse_lora(["unet"])
    two.set_adapters("a", float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        two.fuse_lora(safe_fusing=True)
    two.set_adapters("a")
    two.fuse_lora(lora_scale=2)
    two.unload_lora_weights()
    assert two.get_list_adapters() == {} and is_sum(two, 2, 0)
    two.unfuse_lora()
    two.unet.save_pretrained(tmp_path)
    again = calotype.UNet2DConditionModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, two.unet.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize(("call", "message"), [
    (lambda pipe: pipe.set_adapters("c"), "there is no adapter 'c'.*there is a, b"),
    (lambda pipe: pipe.set_adapters(["a", "b"], [1.0]), "2 adapters and 1 weights"),
    (lambda pipe: pipe.set_adapters("a", {"vae": 1.0}), "a component of adapter_weights is 'vae'"),
    (lambda pipe: pipe.set_adapters("a", {"unet": {"side": 1.0}}), "a part of the UNet in adapter_weights is 'side'"),
    (lambda pipe: pipe.set_adapters("a", {"unet": {"up": {"block_0": 1.0}}}), "'block_0' of 'up'.*called 'block_1'"),
    (lambda pipe: pipe.set_adapters("a", {"unet": {"up": {"block_1": [1.0]}}}), "1 numbers for the 2 transformers of up.block_1"),
    (lambda pipe: pipe.delete_adapters(["b", "aa"]), "there is no adapter 'aa'; did you mean 'a'|there is no adapter 'aa'"),
    (lambda pipe: pipe.fuse_lora(components=["vae"]), "a component is 'vae'"),
    (lambda pipe: pipe.fuse_lora(adapter_names=["c"]), "there is no adapter 'c'"),
    (lambda pipe: pipe.load_lora_weights({}), "what was given is no LoRA adapter for these models:\n  it holds no tensors"),
    (lambda pipe: pipe.load_lora_weights({"unet.mid_block.attentions.0.proj_in.lora.up.weight": torch.zeros(1)}, "a"),
     "unet.mid_block.attentions.0.proj_in: without its down matrix"),
    (lambda pipe: pipe.load_lora_weights(first(pipe), "a"), "'a' already: give another"),
    (lambda pipe: pipe.load_lora_weights(first(pipe), "c", hotswap=True), "no adapter 'c' to be replaced"),
    (lambda pipe: draw(pipe, cross_attention_kwargs={"scal": 0.5}), "cross_attention_kwargs takes 'scale', of LoRA.*'scal'"),
    (lambda pipe: draw(pipe, cross_attention_kwargs={"scale": "0.5"}), "scale in cross_attention_kwargs is '0.5'"),
    (lambda pipe: pipe.stream("a cat", cross_attention_kwargs={"scale": 0.5}), "a stream cannot have a LoRA scale.*set_adapters"),
])
def test_errors_change_nothing(two, call, message):
    two.set_adapters(["a", "b"], [0.5, 0.25])
    with pytest.raises(ValueError, match=message):
        call(two)
    assert is_sum(two, 0.5, 0.25) and two.get_list_adapters() == {"unet": ["a", "b"]}


def test_the_scale_of_a_call(tiny, folder):
    plain = draw(tiny)
    assert torch.equal(draw(tiny, cross_attention_kwargs={"scale": 0.5}), plain)  # there is nothing to be scaled
    tiny.load_lora_weights(folder)
    whole, loaded = draw(tiny), weights(tiny)
    half = draw(tiny, cross_attention_kwargs={"scale": 0.5})
    assert same(weights(tiny), loaded) and torch.allclose(draw(tiny), whole, atol=1e-5)
    assert torch.allclose(draw(tiny, cross_attention_kwargs={"scale": 0}), plain, atol=1e-5)
    states = tiny.encode_prompt("a cat", lora_scale=0.5)[0]
    assert not torch.equal(states, tiny.encode_prompt("a cat")[0])
    tiny.set_adapters("default_0", 0.5)
    assert torch.allclose(draw(tiny), half, atol=1e-5)
    assert torch.equal(states, tiny.encode_prompt("a cat")[0])
    with pytest.raises(ValueError, match="wrong|must be"):
        draw(tiny, cross_attention_kwargs={"scale": 0.1}, output_type="nonsense")
    assert torch.allclose(draw(tiny), half, atol=1e-5)


def test_calls_at_other_scales_wait_for_each_other(tiny, folder):
    tiny.load_lora_weights(folder)
    scales = [1.0, 0.5, 0.0, 0.5, 1.0, 0.0]
    wanted = {scale: draw(tiny, cross_attention_kwargs={"scale": scale}) for scale in set(scales)}
    made = {}

    def work(i, scale):
        made[i] = draw(copy.copy(tiny), cross_attention_kwargs={"scale": scale})

    threads = [threading.Thread(target=work, args=each) for each in enumerate(scales)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == len(scales)
    for i, scale in enumerate(scales):
        assert torch.allclose(made[i], wanted[scale], atol=1e-4)

    def inner(pipe, call, timestep, tensors):
        draw(tiny, cross_attention_kwargs={"scale": 0.5})

    with pytest.raises(ValueError, match="a call at a LoRA scale of 0.5 cannot be made inside one at another scale"):
        draw(tiny, callback_on_step_end=inner)
    assert torch.allclose(draw(tiny), wanted[1.0], atol=1e-4)


def test_a_scaled_call_between_the_steps_of_a_stream(tiny, folder):
    tiny.load_lora_weights(folder)
    wanted = draw(tiny)
    steps = tiny.stream("a red cat", generator=seeded(0), num_inference_steps=3, output_type="latent")
    last = [(step, draw(tiny, cross_attention_kwargs={"scale": 0.5})) for step in steps][-1][0]
    assert torch.allclose(last.output.images, wanted, atol=1e-5)


# -- files ---------------------------------------------------------------------------------------------------------------


def kohya(state, prefix, rank=2):
    """As kohya's scripts write it; with an alpha in the place of a config."""
    written = {}
    for key, value in state.items():
        layer, half, _ = key.rsplit(".", 2)
        name = f"{prefix}_{layer.replace('.', '_')}"
        written[f"{name}.lora_{'down' if half == 'lora_A' else 'up'}.weight"] = value.half()
        written[f"{name}.alpha"] = torch.tensor(float(state.config["lora_alpha"]))
    return written


def renamed(state, name):
    written = {}
    for key, value in state.items():
        layer, half, _ = key.rsplit(".", 2)
        written[name(layer, "down" if half == "lora_A" else "up")] = value
    return written


def processor(layer, half):
    attention, _, projection = layer.removesuffix(".0").rpartition(".")
    return f"{attention}.processor.{projection}_lora.{half}.weight"


ATTENTION_FORMATS = {
    "Diffusers": lambda state: renamed(state, lambda layer, half: f"unet.{layer}.lora.{half}.weight"),
    "PEFT": lambda state: {f"base_model.model.{key}": value for key, value in state.items()},
    "PEFT in Diffusers": lambda state: {f"unet.{key}": value for key, value in state.items()},
    "PEFT's module": lambda state: {f"unet.{key.replace('.weight', '.default.weight')}": value for key, value in state.items()},
    "bare": dict,
    "processors": lambda state: renamed(state, lambda layer, half: f"unet.{processor(layer, half)}"),
    "processors, the UNet alone": lambda state: renamed(state, processor),
}


@pytest.mark.parametrize("name", ATTENTION_FORMATS)
def test_formats_of_a_unet(tiny, name, tmp_path):
    state = trained(tiny.unet)
    tiny.load_lora_weights(state)
    wanted = weights(tiny)
    tiny.unload_lora_weights()
    save_file(ATTENTION_FORMATS[name](state), tmp_path / "any name.safetensors")
    tiny.load_lora_weights(tmp_path)
    assert same(weights(tiny), wanted)


@pytest.mark.parametrize("name", ["text_encoder.{}.lora_linear_layer.{}.weight", "text_encoder.{}.lora.{}.weight", "bare", "old"])
def test_formats_of_a_text_encoder(tiny, text_state, name):
    tiny.load_lora_weights(text_state)
    wanted = weights(tiny)
    tiny.unload_lora_weights()
    projections = {"q_proj": "to_q", "v_proj": "to_v", "out_proj": "to_out"}

    def called(layer, half):
        if name == "old":
            attention, _, projection = layer.rpartition(".")
            return f"text_encoder.{attention}.{projections[projection]}_lora.{half}.weight"
        if name == "bare":
            return f"text_encoder.{layer.removeprefix('text_model.')}.lora_linear_layer.{half}.weight"
        return name.format(layer, half)

    scaled = copy.copy(text_state)
    scaled.update({key: value * 0.5 for key, value in text_state.items() if "lora_B" in key})  # alpha 1 of rank 2
    tiny.load_lora_weights(renamed(scaled, called))
    now = weights(tiny)
    assert all(torch.allclose(now[key], wanted[key], atol=1e-6) for key in wanted)


def test_kohya_with_convolutions(tiny, unet_state, text_state, tmp_path):
    for state in (unet_state, text_state):
        state.update({key: value.half().float() for key, value in state.items()})
    tiny.save_lora_weights(tmp_path, unet_state, text_state)
    tiny.load_lora_weights(tmp_path)
    wanted = weights(tiny)
    tiny.unload_lora_weights()
    file = kohya(unet_state, "lora_unet") | kohya(text_state, "lora_te")
    one = next(key for key in file if "proj_in" in key and "down" in key)
    assert file[one].ndim == 4
    linear = {key: value[..., None, None] if value.ndim == 2 and "to_q" in key else value for key, value in file.items()}
    save_file(linear, tmp_path / "style.safetensors")
    tiny.load_lora_weights(tmp_path, weight_name="style.safetensors", adapter_name="style")
    assert same(weights(tiny), wanted)


def test_ranks_and_alphas_by_layer(tiny, tmp_path):
    state = trained(tiny.unet, alpha=6)
    one = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    state |= {f"{one}.lora_A.weight": torch.randn(5, 16), f"{one}.lora_B.weight": torch.randn(16, 5)}
    config = {**state.config, "rank_pattern": {one: 5}, "alpha_pattern": {f"^{one}": 10, "attn2.to_k": 1}}
    tiny.save_lora_weights(tmp_path, dict(state), unet_lora_adapter_metadata=config)
    tiny.load_lora_weights(tmp_path)
    scales = {layer: pair.scale for layer, pair in tiny.unet._adapters_merged.held["default_0"].items()}
    assert scales.pop(one) == 2
    assert all(scale == (0.5 if layer.endswith("attn2.to_k") else 3) for layer, scale in scales.items())
    tiny.save_lora_weights(tmp_path, dict(state), unet_lora_adapter_metadata={"lora_alpha": 2, "use_rslora": True, "r": 2})
    tiny.load_lora_weights(tmp_path)
    assert tiny.unet._adapters_merged.held["default_1"][one].scale == pytest.approx(2 / 5**0.5)


def test_folders_of_peft_and_the_hub(tiny, unet_state, text_state, tmp_path, monkeypatch):
    tiny.load_lora_weights(unet_state)
    wanted = weights(tiny)
    tiny.unload_lora_weights()
    write_peft(tmp_path / "peft", unet_state)
    write_peft(tmp_path / "text", text_state)
    tiny.load_lora_weights(tmp_path / "peft")
    assert same(weights(tiny), wanted)
    tiny.load_lora_weights(tmp_path, subfolder="text")
    assert tiny.get_active_adapters() == ["default_1"] and tiny.get_list_adapters()["text_encoder"] == ["default_1"]
    tiny.unload_lora_weights()
    server = HubServer()
    try:
        server.reach(monkeypatch, tmp_path / "home")
        files = {path.name: path.read_bytes() for path in (tmp_path / "peft").iterdir()}
        server.add("owner/peft", {**files, "README.md": b"-"})
        server.add("owner/one", {"inner/any.safetensors": files["adapter_model.safetensors"], "README.md": b"-"})
        tiny.load_lora_weights("owner/peft")
        assert same(weights(tiny), wanted)
        tiny.unload_lora_weights()
        tiny.load_lora_weights("owner/peft", weight_name="adapter_model.safetensors")
        assert same(weights(tiny), wanted)
        tiny.load_lora_weights("owner/one", subfolder="inner")
        with pytest.raises(FileNotFoundError, match="no.safetensors"):
            tiny.load_lora_weights("owner/one", weight_name="no.safetensors")
    finally:
        server.close()


def damaged(folder):
    file = folder / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def changed_file(change, metadata=None):
    def write(folder):
        file = folder / "pytorch_lora_weights.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"lora_adapter_metadata": metadata} if metadata else None)
    return write


Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
BAD_FILES = {
    "cut": (damaged, "pytorch_lora_weights.safetensors' is damaged"),
    "unknown": (changed_file(lambda t: t.update({"unet.mid_block.nothing.lora_A.weight": torch.zeros(1), "x": torch.zeros(1)})),
                r"for no layer of the models here, unet \(UNet2DConditionModel\), text_encoder \(CLIPTextModel\): "
                r"unet.mid_block.nothing.lora_A.weight, x"),
    "half": (changed_file(lambda t: t.pop(f"{Q}.lora_B.weight")), f"{Q}: without its up matrix"),
    "shape": (changed_file(lambda t: t.update({f"{Q}.lora_B.weight": torch.zeros(8, 2)})),
              rf"{Q}: \[2, 16\] and \[8, 2\] do not multiply to \[16, 16\]"),
    "rank": (changed_file(lambda t: t.update({f"{Q}.lora_B.weight": torch.zeros(16, 3)})), "do not multiply"),
    "alpha": (changed_file(lambda t: t.update({f"{Q}.alpha": torch.zeros(3)})), r"alpha is a tensor \[3\]"),
    "twice": (changed_file(lambda t: t.update({f"{Q}.lora.up.weight": t[f"{Q}.lora_B.weight"] + 0})), "there twice: "),
    "LoCon": (changed_file(lambda t: t.update({"lora_unet_conv_in.lora_mid.weight": torch.zeros(1)})),
              "a product of three.*lora_mid"),
    "LoHa": (changed_file(lambda t: t.update({"lora_unet_conv_in.hada_w1_a": torch.zeros(1)})), "holds LoHa, at"),
    "DoRA": (changed_file(lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.zeros(1)})), "holds DoRA, at"),
    "metadata": (changed_file(lambda t: None, "{"), "its lora_adapter_metadata is not JSON"),
    "metadata, a list": (changed_file(lambda t: None, "[]"), "its lora_adapter_metadata is a JSON list"),
    "another kind": (changed_file(lambda t: None, json.dumps({"unet.peft_type": "LOHA"})), "of the kind 'LOHA', and only 'LORA'"),
    "pattern": (changed_file(lambda t: None, json.dumps({"unet.alpha_pattern": {"(": 1}})), "alpha_pattern has '\\('"),
    "two files": (lambda folder: [(folder / name).write_bytes(b"") for name in ("a.safetensors", "b.safetensors")]
                  and (folder / "pytorch_lora_weights.safetensors").unlink(),
                  "there is a.safetensors, b.safetensors.*weight_name"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_change_nothing(tiny, folder, kind):
    before = weights(tiny)
    harm, message = BAD_FILES[kind]
    harm(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tiny.load_lora_weights(folder)
    assert same(weights(tiny), before) and tiny.get_list_adapters() == {}


def test_saving(tiny, folder, tmp_path):
    with safe_open(folder / "pytorch_lora_weights.safetensors", framework="pt") as content:
        said = json.loads(content.metadata()["lora_adapter_metadata"])
        assert all(key.startswith(("unet.", "text_encoder.text_model.")) for key in content.keys())  # noqa: SIM118
    assert said["unet.lora_alpha"] == 3 and said["text_encoder.r"] == 2
    add_lora(tiny.unet)
    tiny.save_lora_weights(tmp_path / "model", unet_lora_layers=tiny.unet, weight_name="mine.safetensors")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["mine.safetensors"]
    tiny.save_lora_weights(tmp_path / "none", tiny.unet, is_main_process=False)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="there is nothing to save"):
        tiny.save_lora_weights(tmp_path)
    with pytest.raises(ValueError, match="as safetensors only"):
        tiny.save_lora_weights(tmp_path, tiny.unet, safe_serialization=False)
    with pytest.raises(TypeError, match="load_lora_weights takes no argument 'weights_name'; did you mean 'weight_name'"):
        tiny.load_lora_weights(tmp_path, weights_name="x")


# -- with Diffusers ------------------------------------------------------------------------------------------------------


def _peer(diffusers, pipe, text_encoder=None):
    unet = diffusers.UNet2DConditionModel(**{k: v for k, v in pipe.unet.config.items() if not k.startswith("_")}).eval()
    unet.load_state_dict({key: value.clone() for key, value in pipe.unet.state_dict().items()})
    return diffusers.StableDiffusionPipeline(
        vae=None, text_encoder=text_encoder, tokenizer=None, unet=unet, safety_checker=None, feature_extractor=None,
        scheduler=diffusers.DDIMScheduler(), requires_safety_checker=False)


@pytest.fixture(scope="module")
def bundled():
    pipe = calotype.DiffusionPipeline.from_pretrained("calotype/emoji")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def oracle(diffusers):
    pytest.importorskip("peft")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        BUNDLED["calotype/emoji"], safety_checker=None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(pipe, **options):
    given = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np", **options}
    return pipe("a red heart", generator=seeded(0), **given).images


def alike(one, other):
    return float(np.abs(one - other).max()) <= 1.5 / 255


def test_diffusers_draws_the_same(bundled, oracle, tmp_path):
    plain = pictures(bundled)
    states = (trained(bundled.unet, strength=0.12, alpha=3, rank=3),
              trained(bundled.text_encoder, 1, 0.12, alpha=1, targets=TEXT))
    bundled.save_lora_weights(tmp_path, *states)
    for pipe in (bundled, oracle):
        pipe.load_lora_weights(tmp_path, adapter_name="x")
    wanted = pictures(oracle)
    assert alike(pictures(bundled), wanted) and np.abs(wanted - plain).max() > 0.05
    for pipe in (bundled, oracle):
        pipe.set_adapters("x", 0.7)
    assert alike(pictures(bundled), pictures(oracle))
    scaled = pictures(oracle, cross_attention_kwargs={"scale": 0.5})
    assert alike(pictures(bundled, cross_attention_kwargs={"scale": 0.5}), scaled)
    for pipe in (bundled, oracle):
        pipe.fuse_lora(lora_scale=0.5)
    assert alike(pictures(bundled), pictures(oracle))
    for pipe in (bundled, oracle):
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
    assert alike(pictures(bundled), plain) and alike(pictures(oracle), plain)


def test_what_diffusers_saves(bundled, oracle, diffusers, tmp_path):
    peft = pytest.importorskip("peft")
    one = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    configs = (peft.LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False,
                               rank_pattern={one: 2}, alpha_pattern={one: 5}),
               peft.LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj", "fc1"], init_lora_weights=False))
    torch.manual_seed(0)
    models = oracle.unet, oracle.text_encoder
    for model, config in zip(models, configs, strict=True):
        peft.inject_adapter_in_model(config, model, adapter_name="own")
    wanted = pictures(oracle)
    states = [peft.get_peft_model_state_dict(model, adapter_name="own") for model in models]
    old = [diffusers.utils.convert_state_dict_to_diffusers(state) for state in states]
    for folder, saved in (("peft", states), ("old", old)):
        type(oracle).save_lora_weights(
            tmp_path / folder, *saved, unet_lora_adapter_metadata=configs[0].to_dict(),
            text_encoder_lora_adapter_metadata=configs[1].to_dict())
        bundled.load_lora_weights(tmp_path / folder)
        assert alike(pictures(bundled), wanted)
        bundled.unload_lora_weights()
    oracle.unet.save_lora_adapter(tmp_path / "unet", adapter_name="own")
    bundled.load_lora_weights(tmp_path / "unet")
    for layer in oracle.text_encoder.modules():
        if isinstance(layer, peft.tuners.tuners_utils.BaseTunerLayer):
            layer.enable_adapters(False)
    assert alike(pictures(bundled), pictures(oracle))
    bundled.unload_lora_weights()
