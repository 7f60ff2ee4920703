"""The CLIP text encoder against transformers' classes of the same names."""

import json
import logging
import pickle

import pytest
import torch
from near import assert_near, assert_same_output
from safetensors.torch import load_file, save_file

from calotype.hub import BUNDLED
from calotype.models.clip_text import ACTIVATIONS, CLIPTextModel, CLIPTextModelWithProjection
from calotype.tokenizer import CLIPTokenizer

FOLDER = BUNDLED["calotype/emoji"] / "text_encoder"
TINY = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 16, "projection_dim": 24, "bos_token_id": 98, "eos_token_id": 99, "pad_token_id": 99}
IDS = torch.tensor([[98, 5, 99, 99, 3, 7], [98, 2, 7, 97, 2, 99], [1, 5, 7, 8, 9, 4]])  # the last without an end
CLASSES = [CLIPTextModel, CLIPTextModelWithProjection]


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def make_theirs(transformers, kind, **entries):
    torch.manual_seed(0)
    theirs = getattr(transformers, kind.__name__)(transformers.CLIPTextConfig(**{**TINY, **entries}))
    with torch.no_grad():
        for parameter in theirs.parameters():  # so that no bias is zero, and no norm the identity
            parameter.add_(0.05 * torch.randn_like(parameter))
    return theirs.eval()


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(("act", "eos"), [("quick_gelu", 99), ("gelu", 2)])
@torch.no_grad()
def test_outputs_and_files_are_those_of_transformers(kind, act, eos, transformers, tmp_path):
    theirs = make_theirs(transformers, kind, hidden_act=act, eos_token_id=eos, layer_norm_eps=1e-4)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = kind.from_pretrained(tmp_path / "theirs")
    assert not ours.training
    reference = theirs(IDS, output_hidden_states=True)
    assert_same_output(ours(IDS, output_hidden_states=True), reference)
    ours.save_pretrained(tmp_path / "ours")
    again = getattr(transformers, kind.__name__).from_pretrained(tmp_path / "ours")
    assert {**again.config.to_dict(), "_name_or_path": 0} == {**theirs.config.to_dict(), "_name_or_path": 0}
    assert_same_output(ours(IDS), again.eval()(IDS))


def pair(transformers, **entries):
    """Ours and theirs with the same weights."""
    theirs = make_theirs(transformers, CLIPTextModel, **entries)
    ours = CLIPTextModel(**{**TINY, **entries}).eval()
    ours.load_state_dict({f"text_model.{name}": tensor for name, tensor in theirs.state_dict().items()})
    return ours, theirs


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("eos", [2, 99])
@torch.no_grad()
def test_activations(act, eos, transformers):
    ours, theirs = pair(transformers, hidden_act=act, eos_token_id=eos)
    assert_same_output(ours(IDS, output_hidden_states=True), theirs(IDS, output_hidden_states=True))


@pytest.mark.parametrize("mask", [
    [[1, 1, 1, 1, 0, 0]] * 3, [[0, 0, 1, 1, 1, 1]] * 3, [[1, 0, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]],
])
@torch.no_grad()
def test_masks(mask, transformers):
    ours, theirs = pair(transformers)
    mask = torch.tensor(mask)
    reference = theirs(IDS, attention_mask=mask)
    for same in (mask, mask.bool(), mask.float()):
        assert_same_output(ours(IDS, same), reference)
    assert torch.allclose(ours(IDS, torch.ones_like(IDS))[0], ours(IDS)[0], atol=1e-6)


@torch.no_grad()
def test_the_bundled_checkpoint(transformers):
    ours = CLIPTextModel.from_pretrained("calotype/emoji", subfolder="text_encoder")
    theirs = transformers.CLIPTextModel.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained("calotype/emoji", subfolder="tokenizer")
    texts = ["", "a smiling face", "a red fox with a very long tail " * 8]
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    assert ours.dtype == torch.float32  # and in the file float16
    assert_same_output(ours(**tokens, output_hidden_states=True), theirs(**tokens, output_hidden_states=True))
    assert_same_output(ours(tokens.input_ids), theirs(tokens.input_ids))


@torch.no_grad()
def test_positions_and_a_single_text(transformers):
    ours, theirs = pair(transformers)
    for rows in ([[5, 4, 3, 2, 1, 0]], [[5, 4, 3, 2, 1, 0], [0, 0, 1, 1, 2, 2], [9] * 6]):
        positions = torch.tensor(rows)
        assert_same_output(ours(IDS, position_ids=positions), theirs(IDS, position_ids=positions))
    assert_same_output(ours(IDS[0]), theirs(IDS[0]))
    assert_same_output(ours(IDS.int()), theirs(IDS.int()))


@torch.no_grad()
def test_output_shapes_and_clip_skip():
    ours = CLIPTextModel(**TINY).eval()
    output = ours(IDS, output_hidden_states=True)
    assert output.last_hidden_state.shape == (3, 6, 32) and output.pooler_output.shape == (3, 32)
    assert len(output.hidden_states) == 4
    assert torch.equal(ours.final_norm(output.hidden_states[-1]), output.last_hidden_state)
    assert ours.text_model.final_layer_norm is ours.text_model["final_layer_norm"]  # as scripts for Diffusers have it
    plain = ours(IDS, return_dict=False)
    assert type(plain) is tuple and len(plain) == 2 and torch.equal(plain[0], output[0])
    projected = CLIPTextModelWithProjection(**TINY).eval()(IDS, output_hidden_states=True)
    assert projected.keys() == ["text_embeds", "last_hidden_state", "hidden_states"]
    assert projected[0].shape == (3, 24)


@torch.no_grad()
def test_it_is_causal():
    ours = CLIPTextModel(**TINY).eval()
    changed = IDS.clone()
    changed[:, 3] = 11
    before, after = ours(IDS)[0], ours(changed)[0]
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.allclose(before[:, 3:], after[:, 3:])


@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_names_of_all_times(kind, transformers, tmp_path, caplog):
    """With and without the prefix, with the buffer of positions: all load silently, here and in transformers."""
    ours = kind(**TINY).eval()
    ours.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert all(name.startswith(("text_model.", "text_projection.")) for name in tensors)
    for layout in ("old", "new"):
        prefix = "text_model." if layout == "old" else ""
        renamed = {prefix + name if layout == "old" else name: tensor for name, tensor in (
            (name.removeprefix("text_model."), tensor) for name, tensor in tensors.items()) if "projection" not in name}
        renamed[f"{prefix}embeddings.position_ids"] = torch.arange(16)[None]
        renamed |= {name: tensor for name, tensor in tensors.items() if "projection" in name}
        save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert_near(kind.from_pretrained(tmp_path)(IDS)[0], ours(IDS)[0])
        theirs = getattr(transformers, kind.__name__).from_pretrained(tmp_path)
        assert_near(ours(IDS)[0], theirs(IDS)[0])
    assert not [record for record in caplog.records if record.name.startswith("calotype")]


@torch.no_grad()
def test_a_whole_clip(transformers, tmp_path, caplog):
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
              "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    whole = transformers.CLIPModel(transformers.CLIPConfig(text_config=TINY, vision_config=vision, projection_dim=20))
    whole.eval().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["projection_dim"] == 24
    text = CLIPTextModel.from_pretrained(tmp_path)
    assert_same_output(text(IDS), transformers.CLIPTextModel.from_pretrained(tmp_path)(IDS))
    projected = CLIPTextModelWithProjection.from_pretrained(tmp_path)  # transformers would look for 24 channels
    assert projected.config.projection_dim == 20
    assert_near(projected(IDS).text_embeds, whole.get_text_features(IDS).pooler_output)
    assert CLIPTextModel.from_config(tmp_path).config.num_hidden_layers == 3
    assert not [record for record in caplog.records if record.name.startswith("calotype")]
    projected.save_pretrained(tmp_path / "text")
    assert_same_output(projected(IDS), transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path / "text")(IDS))


def test_the_config_survives(tmp_path, caplog):
    old = {"_name_or_path": "somewhere/else", "architectures": ["CLIPTextModel"], "model_type": "clip_text_model",
           "dropout": 0.0, "torch_dtype": "float16", "transformers_version": "4.22.0.dev0", **TINY, "eos_token_id": 2}
    ours = CLIPTextModel.from_config(old)
    assert not caplog.records
    ours.half().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["dtype"] == "float16" and "torch_dtype" not in saved and "_name_or_path" not in saved
    assert {**old, **saved} == {**saved, "_name_or_path": "somewhere/else", "torch_dtype": "float16"}
    assert saved["transformers_version"] == "4.22.0.dev0" and saved["architectures"] == ["CLIPTextModel"]
    assert CLIPTextModel.from_pretrained(tmp_path).dtype == torch.float32
    assert CLIPTextModel.from_pretrained(tmp_path, torch_dtype="auto").dtype == torch.float16
    with caplog.at_level(logging.WARNING):
        CLIPTextModel.from_config({**TINY, "moon_phase": 3})
    assert "moon_phase" in caplog.text


def test_defaults(transformers):
    ours = CLIPTextModel.from_config({"num_hidden_layers": 0}).config
    theirs = transformers.CLIPTextConfig(num_hidden_layers=0).to_dict()
    shared = ours.keys() & theirs.keys()
    assert len(shared) > 14 and {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


@torch.no_grad()
def test_more_tokens():
    ours = CLIPTextModel(**TINY).eval()
    before, kept = ours(IDS)[0], ours.get_input_embeddings().weight.clone()
    assert ours.resize_token_embeddings(103) is ours.get_input_embeddings()
    assert ours.config.vocab_size == 103 and ours.get_input_embeddings().weight.shape == (103, 32)
    assert torch.equal(ours.get_input_embeddings().weight[:100], kept) and torch.equal(ours(IDS)[0], before)
    assert ours(torch.tensor([[98, 102, 99]]))[0].isfinite().all()
    assert ours.get_input_embeddings().weight.requires_grad
    ours.resize_token_embeddings(100)
    assert torch.equal(ours.get_input_embeddings().weight, kept)


def test_training():
    ours = CLIPTextModel(**TINY, attention_dropout=0.5).train()
    assert not torch.allclose(ours(IDS)[0], ours(IDS)[0])
    ours = CLIPTextModel(**TINY).train()
    ours(IDS)[0].square().mean().backward()
    gradients = [parameter.grad.clone() for parameter in ours.parameters()]
    ours.zero_grad()
    ours.enable_gradient_checkpointing()
    ours(IDS)[0].square().mean().backward()
    assert all(torch.allclose(a, p.grad) for a, p in zip(gradients, ours.parameters(), strict=True))


@torch.no_grad()
def test_a_fresh_model_neither_dies_out_nor_explodes():
    torch.manual_seed(0)
    ours = CLIPTextModel(vocab_size=1000, hidden_size=256, intermediate_size=1024, num_hidden_layers=12)
    states = ours(torch.randint(0, 1000, (4, 77)), output_hidden_states=True).hidden_states
    assert states[0].std() == pytest.approx(0.02 * 2**0.5, rel=0.05)
    assert 0.3 < states[-1].std() < 3
    assert all(p.abs().max() == 0 for name, p in ours.named_parameters() if name.endswith("bias"))


def test_half_precision_and_pickles():
    ours = CLIPTextModel(**TINY).eval().to(torch.bfloat16)
    assert ours(IDS)[0].dtype == torch.bfloat16 == ours.dtype
    copy = pickle.loads(pickle.dumps(ours))
    assert torch.equal(copy(IDS)[0], ours(IDS)[0]) and copy.config == ours.config


def test_wrong_calls(tmp_path):
    ours = CLIPTextModel(**TINY)
    with pytest.raises(ValueError, match="the texts have 17 tokens, but the model has 16 positions; truncate them"):
        ours(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match=r"attention_mask is \[3, 5\], but must have the shape of input_ids, \[3, 6\]"):
        ours(IDS, attention_mask=torch.ones(3, 5))
    with pytest.raises(ValueError, match="hidden_act is 'quickgelu', but must be .*; did you mean 'quick_gelu'?"):
        CLIPTextModel(hidden_act="quickgelu")
    with pytest.raises(ValueError, match="hidden_size is 32, which 5 attention heads do not divide"):
        CLIPTextModel(**{**TINY, "num_attention_heads": 5})
    ours.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="missing: text_projection.weight"):
        CLIPTextModelWithProjection.from_pretrained(tmp_path)
