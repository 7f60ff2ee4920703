"""The recipe "textual-inversion": a new word's embedding is learned, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import calotype
from calotype.prompts.encode import tokenized

from .made_pictures import assert_same_bits, assert_same_picture, held_out, make_tiny, state_of, task_of, train

FILE = "learned_embeds.safetensors"


@pytest.fixture
def told(tiny_folder, pictures_folder, tmp_path):
    return {"pretrained_model_name_or_path": str(tiny_folder), "train_data_dir": pictures_folder, "output_dir": tmp_path / "out",
            "placeholder_token": "<disc>", "initializer_token": "heart", "train_batch_size": 8, "max_train_steps": 2}


def picture(pipeline, prompt="a photo of <disc>"):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompt, generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images


@pytest.mark.parametrize("vectors", [1, 3])
def test_the_new_rows_alone_change(told, tiny_folder, vectors):
    task = task_of("textual-inversion", **told | {"num_vectors": vectors, "adam_weight_decay": 0.1})
    base = calotype.StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    before = state_of(task.pipeline.unet, task.pipeline.text_encoder, task.pipeline.vae)
    assert [tuple(p.shape) for p in task.players[0].parameters()] == [(vectors, 16)]
    train(task)
    after = state_of(task.pipeline.unet, task.pipeline.text_encoder, task.pipeline.vae)
    table, = (key for key in after if key.endswith("token_embedding.weight"))
    assert_same_bits(*({key: value for key, value in state.items() if key != table} for state in (before, after)))
    old = base.text_encoder.get_input_embeddings().weight
    new = task.pipeline.text_encoder.get_input_embeddings().weight
    words = ["<disc>", *(f"<disc>_{i}" for i in range(1, vectors))]
    rows = task.pipeline.tokenizer.convert_tokens_to_ids(words)
    assert rows == list(range(8192, 8192 + vectors)) and torch.equal(new[:8192], old)
    start = old[base.tokenizer("heart", add_special_tokens=False).input_ids[0]]
    assert all(not torch.equal(before[table][row], after[table][row]) for row in rows)
    assert all(torch.equal(before[table][row], start) for row in rows)
    saved = load_file(told["output_dir"] / FILE)
    assert list(saved) == ["<disc>"] and torch.equal(saved["<disc>"], new[rows]) and saved["<disc>"].shape == (vectors, 16)


@pytest.mark.parametrize("vectors", [1, 2])
def test_a_fresh_pipeline_reads_the_word_as_it_was_trained(told, tiny_folder, diffusers, vectors):
    task = task_of("textual-inversion", **told | {"num_vectors": vectors, "learning_rate": 0.05, "use_ema": True})
    train(task)
    prompts = ["a photo of <disc>", "<disc> style"]
    with torch.no_grad():
        ids = tokenized(task.pipeline.tokenizer, prompts, task.pipeline.tokenizer.model_max_length).input_ids
        assert int((ids >= 8192).sum()) == 2 * vectors
        averaged = load_file(told["output_dir"] / FILE)["<disc>"]
        task.denoiser.text_encoder.embeddings.copy_(averaged)
        in_training = task.denoiser.text_encoder(ids).last_hidden_state
    made = []
    for library in (calotype, diffusers):
        pipeline = library.StableDiffusionPipeline.from_pretrained(
            tiny_folder, safety_checker=None, requires_safety_checker=False)
        pipeline.load_textual_inversion(str(told["output_dir"]), weight_name=FILE)
        states = pipeline.encode_prompt(prompts, "cpu", 1, False)[0].detach()
        if library is calotype:
            assert torch.equal(states, in_training)
        torch.testing.assert_close(states, in_training, rtol=1e-5, atol=1e-5)
        made.append(picture(pipeline))
    assert_same_picture(*made)


@pytest.fixture
def heeding(tmp_path):
    """The folder of a pipeline whose UNet heeds the text: in random weights it counts little."""
    pipeline = make_tiny()
    with torch.no_grad():
        for key, parameter in pipeline.unet.named_parameters():
            if "attn2.to_out.0.weight" in key:
                parameter.mul_(100.0)
        pipeline.unet.conv_out.weight.mul_(10.0)
    pipeline.save_pretrained(tmp_path / "heeding")
    return str(tmp_path / "heeding")


def test_learns(told, heeding):
    task = task_of("textual-inversion", **told | {
        "pretrained_model_name_or_path": heeding, "learning_rate": 0.03, "max_train_steps": 40,
        "num_vectors": 2})
    before, _, after = train(task)
    assert after < 0.7 * before  # measured: 0.49


def test_samples_show_the_word(told, heeding):
    task = task_of("textual-inversion", **told | {
        "pretrained_model_name_or_path": heeding, "num_validation_images": 1, "validation_inference_steps": 2})
    assert task.prompts() == ["a photo of <disc>"]
    before = task.samples()[0]
    with torch.no_grad():
        task.denoiser.text_encoder.embeddings.neg_()  # another direction: the encoder's norms take lengths and constants away
    after = task.samples()[0]
    assert before.size == after.size == (16, 16)
    assert np.abs(np.asarray(before, float) - np.asarray(after, float)).mean() > 3  # measured: 16, of 255


@pytest.mark.parametrize("kind", ["object", "style"])
def test_captions_name_the_word(told, kind):
    task = task_of("textual-inversion", **told | {"learnable_property": kind})
    captions = task.captions()
    assert len(captions) >= 7 and all(caption.count("<disc>") == 1 for caption in captions)
    assert ("in the style of <disc>" in captions) == (kind == "style")


def test_refuses_what_cannot_be(told, tmp_path):
    def refused(words, kind=ValueError, **changes):
        with pytest.raises(kind, match=words):
            task_of("textual-inversion", **told | changes)

    refused("train_text_encoder cannot be", train_text_encoder=True)
    refused("initializer_token is 'red dog', which is 2 tokens", initializer_token="red dog")
    refused("initializer_token is '', which is 0 tokens", initializer_token="")
    refused("'heart</w>' is a token already", placeholder_token="heart</w>")
    refused("resolution is 15, but must be a multiple of 2", resolution=15)
    refused("split = 'tst'; there are test, train", split="tst")
    (tmp_path / "empty").mkdir()
    refused("there are no pictures in", FileNotFoundError, train_data_dir=tmp_path / "empty")


def test_held_out_losses_are_the_same_twice(told):
    task = task_of("textual-inversion", **told)
    assert held_out(task, 1) == held_out(task, 1) > 0
