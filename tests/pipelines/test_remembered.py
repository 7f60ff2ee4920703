"""Texts that were encoded lately: never anything but what the encoder would say now."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import calotype
from calotype.prompts import encode, remembered


@pytest.fixture(scope="module")
def loaded() -> Any:
    return calotype.StableDiffusionPipeline.from_pretrained("calotype/emoji", safety_checker=None)


@pytest.fixture
def pipe(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pipeline with a text encoder of its own, which counts its calls."""
    own = copy.copy(loaded)
    own.text_encoder = copy.deepcopy(loaded.text_encoder)
    return own


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is encoded; nothing is put in the encoder's way, since that would have every text encoded."""
    made, plain = [], encode.remembered

    def counted(encoder: Any, ids: Tensor, mask: Any, clip_skip: Any, function: Any) -> Tensor:
        return plain(encoder, ids, mask, clip_skip, lambda: made.append(ids) or function())

    monkeypatch.setattr(encode, "remembered", counted)
    return made


def both(pipe: Any, *args: Any, **kwargs: Any) -> Tensor:
    wanted, unwanted = pipe.encode_prompt(*args, **kwargs)
    return wanted if unwanted is None else torch.cat([unwanted, wanted])


def fresh(pipe: Any, *args: Any, **kwargs: Any) -> Tensor:
    plain = copy.copy(pipe)
    plain.fast = False
    return both(plain, *args, **kwargs)


def test_a_text_is_encoded_once(pipe: Any, calls: list[Any]) -> None:
    first = both(pipe, "a cat")
    assert len(calls) == 2
    assert torch.equal(both(pipe, "a cat"), first) and len(calls) == 2
    both(pipe, "a dog")
    assert len(calls) == 3  # the empty text was known
    both(pipe, ["a cat", "a dog"])
    assert len(calls) == 4  # a batch is rounded in its own way
    both(pipe, "a cat", clip_skip=1)
    assert len(calls) == 5  # the empty text does without it


def test_clip_skip_is_of_the_prompt_alone(pipe: Any) -> None:
    for options in ({"clip_skip": 1}, {}, {"clip_skip": 1}, {"clip_skip": 2, "long_prompts": True}):
        told = {"negative_prompt": "a cat", "num_images_per_prompt": 2, **options}
        states = both(pipe, "a cat", **told)
        assert torch.equal(states, fresh(pipe, "a cat", **told))
        assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2]) == ("clip_skip" not in options)
        assert torch.allclose(states[0], both(pipe, "", negative_prompt="a cat")[0], atol=1e-5)


def test_what_is_given_out_can_be_changed(pipe: Any) -> None:
    first = both(pipe, "a cat")
    pipe.encode_prompt("a cat")[0].zero_()
    assert torch.equal(both(pipe, "a cat"), first)


CHANGES = {
    "a weight in place": lambda encoder: encoder.state_dict()["text_model.final_layer_norm.weight"].mul_(2),
    "a weight's data": lambda encoder: setattr(next(encoder.parameters()), "data", next(encoder.parameters()).data * 2),
    "a weight's data in place": lambda encoder: next(encoder.parameters()).data.mul_(2),
    "other weights": lambda encoder: encoder.load_state_dict({k: v * 1.5 for k, v in encoder.state_dict().items()}),
    "the precision": lambda encoder: encoder.to(torch.bfloat16),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_encoder_that_changed_is_asked_again(pipe: Any, change: str) -> None:
    before = both(pipe, "a cat")
    with torch.no_grad():
        CHANGES[change](pipe.text_encoder)
    now = both(pipe, "a cat")
    assert torch.equal(now, fresh(pipe, "a cat")) and not torch.equal(now, before)


def test_who_watches_an_encoder_sees_every_call(pipe: Any, calls: list[Any]) -> None:
    both(pipe, "a cat")
    seen: list[int] = []
    handle = pipe.text_encoder.text_model.final_layer_norm.register_forward_hook(lambda *args: seen.append(1))
    both(pipe, "a cat")
    assert len(seen) == 2
    handle.remove()
    pipe.text_encoder.train()
    both(pipe, "a cat")
    assert len(calls) == 6


def test_only_the_latest_texts_are_kept(pipe: Any) -> None:
    for i in range(remembered._KEPT + 5):
        both(pipe, f"cat {i}")
    assert len(vars(pipe.text_encoder)["_remembered"].states) == remembered._KEPT
    assert torch.equal(both(pipe, "cat 0"), fresh(pipe, "cat 0"))
