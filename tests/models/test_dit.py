"""`DiTTransformer2DModel` against the oracle; the folders of its published checkpoints; `StableUnCLIPImageNormalizer`."""

from __future__ import annotations

import json

import pytest
import torch
from compare import assert_close, pair
from safetensors.torch import load_file, save_file

import calotype
from calotype import registry
from calotype.models.embeddings import plane_sines

BASE = {"num_attention_heads": 2, "attention_head_dim": 8, "out_channels": 8, "num_layers": 2, "sample_size": 8,
        "num_embeds_ada_norm": 10}
FILE = "diffusion_pytorch_model.safetensors"
TIMES, LABELS = torch.tensor([7, 950]), torch.tensor([3, 10])

CASES = {
    "published": ({}, 8),
    "larger": ({}, 16),
    "smaller, size not a multiple": ({"sample_size": 7}, 4),
    "larger patches": ({"patch_size": 4, "out_channels": None}, 8),
    "other details": ({"norm_elementwise_affine": True, "norm_eps": 1e-2, "attention_bias": False, "upcast_attention": True,
                       "dropout": 0.2, "num_layers": 1}, 8),
    **{activation: ({"activation_fn": activation, "num_layers": 1}, 8)
       for activation in ("gelu", "geglu", "geglu-approximate", "swiglu", "linear-silu")},
}


def shaken(model):
    """`model` with weights that are the same in every test, as fresh ones are random, or zero where it matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.eval()


def ask(model, size=8):
    torch.manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(2, 4, size, size), TIMES, LABELS).sample


@pytest.mark.parametrize("case", CASES)
def test_same_numbers(diffusers, case):
    options, size = CASES[case]
    theirs, ours = pair(diffusers, "DiTTransformer2DModel", {**BASE, **options})
    assert_close(ask(ours, size), ask(theirs, size))


def test_same_config(diffusers):
    theirs, ours = diffusers.DiTTransformer2DModel(num_layers=0), calotype.DiTTransformer2DModel
    with torch.device("meta"):
        made = ours(num_layers=0)
    assert {**made.config, "_use_default_values": None} == {**theirs.config, "_use_default_values": None}


def test_save_and_load(diffusers, tmp_path):
    """The oracle reads what ours wrote, and ours what the oracle wrote; fp16 files become float32 in memory."""
    model = shaken(calotype.DiTTransformer2DModel(**BASE))
    model.save_pretrained(tmp_path / "ours")
    theirs = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "ours")
    assert_close(ask(model), ask(theirs))
    theirs.half().save_pretrained(tmp_path / "theirs", variant="fp16")
    again = calotype.DiTTransformer2DModel.from_pretrained(tmp_path / "theirs", variant="fp16")
    assert again.dtype is torch.float32 and not again.training
    assert_close(ask(again), ask(model), 1e-2)


@pytest.fixture
def published(tmp_path):
    """A folder as of early 2023: another class name, entries of that class, and the sines of places among the weights."""
    shaken(calotype.DiTTransformer2DModel(**BASE)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    older = {"_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0", "cross_attention_dim": None,
             "num_vector_embeds": None, "only_cross_attention": False, "use_linear_projection": False}
    (tmp_path / "config.json").write_text(json.dumps({**config, **older}))
    tensors = load_file(tmp_path / FILE)
    save_file({**tensors, "pos_embed.pos_embed": torch.zeros(1, 16, 16)}, tmp_path / FILE)
    return tmp_path


def test_published_checkpoints(published, caplog):
    assert registry.find("Transformer2DModel") is calotype.DiTTransformer2DModel
    model = calotype.DiTTransformer2DModel.from_pretrained(published)
    assert_close(ask(model), ask(shaken(calotype.DiTTransformer2DModel(**BASE))))
    assert not caplog.records
    model.save_pretrained(published)
    assert json.loads((published / "config.json").read_text())["_class_name"] == "DiTTransformer2DModel"


@pytest.mark.parametrize("kind", ["ada_norm_single", "layer_norm", None])
def test_other_transformers_are_refused(published, kind):
    """Without an entry, a `Transformer2DModel` has the norms that class had by default, which are not this network's."""
    config = json.loads((published / "config.json").read_text())
    config = {**config, "norm_type": kind} if kind else {name: v for name, v in config.items() if name != "norm_type"}
    (published / "config.json").write_text(json.dumps(config))
    for load in (calotype.DiTTransformer2DModel.from_pretrained, calotype.DiTTransformer2DModel.from_config):
        with pytest.raises(ValueError, match=f"Transformer2DModel of norm_type '{kind or 'layer_norm'}'; of that class only"):
            load(published)


def test_one_time_for_all_and_any_shape():
    """One timestep is that timestep for each; pictures need not be square, and a label more or less changes no other."""
    model = shaken(calotype.DiTTransformer2DModel(**BASE))
    x = torch.randn(2, 4, 8, 12)
    with torch.no_grad():
        expected = model(x, torch.tensor([7, 7]), LABELS).sample
        assert expected.shape == (2, 8, 8, 12)
        for time in (7, 7.0, torch.tensor(7), torch.tensor([7])):
            assert_close(model(x, time, LABELS).sample, expected)
        assert_close(model(x[1:], 7, LABELS[1:], return_dict=False)[0], expected[1:])


def test_places():
    """The first half of the channels tells the column, the second the row; a finer grid has every second place of its own."""
    like = torch.zeros(1)
    places = plane_sines(3, 5, 8, 4, like).view(3, 5, 8)
    assert torch.equal(places[0, :, :4], places[2, :, :4]) and torch.equal(places[:, 0, 4:], places[:, 4, 4:])
    torch.testing.assert_close(plane_sines(8, 8, 8, 4, like).view(8, 8, 8)[::2, ::2], plane_sines(4, 4, 8, 4, like).view(4, 4, 8))


def test_labels_are_dropped_for_the_whole_network():
    """In training about a tenth of the labels becomes the null class, the same in every block; in evaluation none."""
    model = calotype.DiTTransformer2DModel(**BASE)
    seen = []
    for block in model.transformer_blocks:
        block.norm1.emb.class_embedder["embedding_table"].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    torch.manual_seed(0)
    labels, x = torch.arange(1000) % 10, torch.randn(1000, 4, 2, 2)
    with torch.no_grad():
        model.train()(x, 7, labels)
        assert all(torch.equal(each, seen[0]) for each in seen)
        dropped = seen[0] == 10
        assert 60 < dropped.sum() < 140 and torch.equal(seen[0][~dropped], labels[~dropped])
        seen.clear()
        model.eval()(x, 7, labels)
    assert torch.equal(seen[0], labels)


def test_before_training_blocks_are_the_identity():
    """adaLN-Zero: tokens leave the blocks as they entered, and the prediction is zero, yet gradients reach the last layer."""
    model = calotype.DiTTransformer2DModel(**BASE)
    block, x = model.transformer_blocks[0], torch.randn(2, 16, 16)
    assert torch.equal(block(x, TIMES, LABELS), x)
    out = model(torch.randn(2, 4, 8, 8), TIMES, LABELS).sample
    assert not out.any()
    (out - 1).square().mean().backward()
    assert model.proj_out_2.bias.grad.abs().min() > 0


def test_checkpointing_changes_no_gradient():
    model = shaken(calotype.DiTTransformer2DModel(**BASE))
    grads = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(1)
        model(torch.randn(2, 4, 8, 8), TIMES, LABELS).sample.square().mean().backward()
        grads.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert_close(grads[1], grads[0])


@pytest.mark.parametrize(("change", "message"), [
    ({"norm_type": "ada_norm"}, "norm_type is 'ada_norm', but must be 'ada_norm_zero'"),
    ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm is None"),
    ({"attention_head_dim": 7}, "2 heads of 7 channels make a width of 14"),
    ({"activation_fn": "gelu_approximate"}, "did you mean 'gelu-approximate'"),
])
def test_bad_config(change, message):
    with pytest.raises(ValueError, match=message):
        calotype.DiTTransformer2DModel(**{**BASE, **change})


@pytest.mark.parametrize(("given", "message"), [
    ({"class_labels": None}, "give timestep and class_labels"),
    ({"timestep": None}, "give timestep and class_labels"),
    ({"hidden_states": torch.zeros(2, 4, 8, 9)}, r"\[2, 4, 8, 9\], but must be .* multiples of 2"),
    ({"cross_attention_kwargs": {"scale": 1.0}}, "takes nothing here, and got scale"),
])
def test_bad_input(given, message):
    model = calotype.DiTTransformer2DModel(**BASE)
    with pytest.raises(ValueError, match=message):
        model(**{"hidden_states": torch.zeros(2, 4, 8, 8), "timestep": 7, "class_labels": LABELS, **given})


def test_image_normalizer(diffusers, tmp_path):
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer as Theirs

    theirs, x = Theirs(6), torch.randn(3, 6)
    theirs.mean.data.normal_()
    theirs.std.data.uniform_(0.5, 2)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = calotype.StableUnCLIPImageNormalizer.from_pretrained(tmp_path / "theirs")
    assert torch.equal(ours.scale(x), theirs.scale(x)) and torch.equal(ours.unscale(x), theirs.unscale(x))
    torch.testing.assert_close(ours.unscale(ours.scale(x)), x)
    ours.save_pretrained(tmp_path / "ours")
    assert torch.equal(Theirs.from_pretrained(tmp_path / "ours").scale(x), theirs.scale(x))
    assert registry.entry(ours) == ["stable_diffusion", "StableUnCLIPImageNormalizer"]
    assert calotype.StableUnCLIPImageNormalizer().config.embedding_dim == 768
