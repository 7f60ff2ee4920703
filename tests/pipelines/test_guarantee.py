"""No wrong picture, ever: after any change that a program makes, the next call gives what it gives without the fast path.

Random programs of calls draw changes from a list of kinds, at random moments: between calls, in a callback in the middle of one,
between the steps of a stream. Each picture is compared with that of a copy that keeps nothing.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import calotype
from calotype.models import attention
from calotype.runtime import recording

from .conftest import make_tiny, seeded

PROGRAMS = 2000 if os.environ.get("CALOTYPE_EVERY_CASE") else 25


@pytest.fixture(autouse=True, scope="module")
def early() -> Iterator[None]:
    """Recorded at the second call that is alike, so that few steps are enough."""
    with mock.patch.dict(recording._CALLS_BEFORE, {"cpu": 1}):
        yield


# -- what a program may change: a function of the pipeline that a copy of it goes through, too ----------------------------


def conv(pipe: Any) -> Any:
    return pipe.unet.down_blocks[0].resnets[0].conv1


def cross(pipe: Any) -> Any:
    return pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2


def norm(pipe: Any) -> Any:
    return pipe.unet.mid_block.resnets[0].norm1


class Scaled(nn.Module):
    """A module of one's own, with an attribute that its call looks at."""

    def __init__(self, inner: nn.Module, factor: float):
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, *given: Any) -> Any:
        return self.inner(*given) * self.factor


class ByStep(nn.Module):
    """Acts by the number of its call."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, *given: Any) -> Any:
        self.calls += 1
        return self.inner(*given) * (4.0 if self.calls > 2 else 1.0)


class Negated(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


def padded(pipe: Any) -> None:
    mode = "zeros" if conv(pipe).padding_mode == "circular" else "circular"
    for model in (pipe.unet, pipe.vae):
        for part in model.modules():
            if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1):
                part.padding_mode = mode
                part._reversed_padding_repeated_twice = [p for p in reversed(part.padding) for _ in range(2)]


def replaced(find: Callable[[Any], Any], name: str, make: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
    """Put another function in place of a method of one layer, or take it away again."""
    def change(pipe: Any) -> None:
        layer = find(pipe)
        if name in vars(layer):
            delattr(layer, name)
        else:
            setattr(layer, name, make(layer, type(layer)))

    return change


def hooked(find: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(pipe: Any) -> None:
        layer = find(pipe)
        if layer._forward_hooks:
            layer._forward_hooks.clear()
        else:
            layer.register_forward_hook(lambda module, given, made: made * 1.5)

    return change


def wrapped(pipe: Any) -> None:
    block = pipe.unet.mid_block.attentions[0]
    inner = block.proj_out
    block.proj_out = inner.inner if isinstance(inner, Scaled) else Scaled(inner, 1.3)
    if isinstance(block.proj_out, Scaled):
        block.proj_out.weight = inner.weight


def factor(pipe: Any) -> None:
    for part in pipe.unet.modules():
        if isinstance(part, Scaled):
            part.factor += 0.4
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def by_step(pipe: Any) -> None:
    resnet = pipe.unet.mid_block.resnets[0]
    resnet.conv2 = resnet.conv2.inner if isinstance(resnet.conv2, ByStep) else ByStep(resnet.conv2)


def other_class(pipe: Any) -> None:
    layer = cross(pipe).to_q
    layer.__class__ = nn.Linear if type(layer) is Negated else Negated


class Negative(calotype.UNet2DConditionModel):
    def forward(self, *given: Any, **options: Any) -> Any:
        made = super().forward(*given, **options)
        return tuple(-each for each in made) if isinstance(made, tuple) else type(made)(-made.sample)


def other_class_of_all(pipe: Any) -> None:
    pipe.unet.__class__ = calotype.UNet2DConditionModel if type(pipe.unet) is Negative else Negative


def exchanged(find: Callable[[Any], Any], how: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    """Move values around, or turn signs, without anything that PyTorch counts, and with the same sum and norm."""
    return lambda pipe: find(pipe).weight.data.copy_(how(find(pipe).weight.data).clone())


def optimised(pipe: Any) -> None:
    weights = [conv(pipe).weight, cross(pipe).to_k.weight]
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.5)
    torch.optim.SGD(weights, lr=0.05, fused=True).step()
    for weight in weights:
        weight.grad = None


def other_unet(pipe: Any) -> None:
    pipe.unet = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.1)


def new_parameter(pipe: Any) -> None:
    norm(pipe).weight = nn.Parameter(norm(pipe).weight.detach() * 1.1)


def transposed(pipe: Any) -> None:
    layer = cross(pipe).to_q
    layer.weight.data = layer.weight.data.t()


def negated_encoder(pipe: Any) -> None:
    layer = pipe.text_encoder.text_model.encoder.layers[0].mlp.fc1
    layer.weight.data.neg_()


def encoder_rows(pipe: Any) -> None:
    weight = pipe.text_encoder.get_input_embeddings().weight
    weight.data[1:4000] = weight.data[1:4000].flip(0).clone()


def precision(pipe: Any) -> None:
    pipe.to(torch.float64 if pipe.unet.dtype is torch.float32 else torch.float32)


def eps(pipe: Any) -> None:
    norm(pipe).eps = 1.0 if norm(pipe).eps < 1 else 1e-5


def heads(pipe: Any) -> None:
    cross(pipe).heads = 4 if cross(pipe).heads == 2 else 2


def swapped_blocks(pipe: Any) -> None:
    resnets = pipe.unet.up_blocks[0].resnets
    resnets[0].conv2, resnets[1].conv2 = resnets[1].conv2, resnets[0].conv2


def scheduler(pipe: Any) -> None:
    kind = calotype.DDIMScheduler if not isinstance(pipe.scheduler, calotype.DDIMScheduler) else calotype.EulerDiscreteScheduler
    pipe.scheduler = kind.from_config(pipe.scheduler.config)


def decoder(pipe: Any) -> None:
    pipe.vae.decoder.conv_in.weight.data.copy_(pipe.vae.decoder.conv_in.weight.data.flip(0).clone())


def adapted(pipe: Any) -> None:
    if pipe.get_list_adapters():
        pipe.unload_lora_weights()
    else:
        shape = cross(pipe).to_q.weight.shape
        drawn = torch.Generator().manual_seed(1)
        name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
        pipe.load_lora_weights({f"{name}.lora_A.weight": torch.randn(2, shape[1], generator=drawn).to(pipe.unet.dtype),
                                f"{name}.lora_B.weight": torch.randn(shape[0], 2, generator=drawn).to(pipe.unet.dtype)})


CHANGES: dict[str, Callable[[Any], None]] = {
    "circular padding, and back": padded,
    "the eps of a norm": eps,
    "the number of heads": heads,
    "another class": other_class,
    "another class of the whole network": other_class_of_all,
    "a forward of one's own": replaced(norm, "forward", lambda layer, kind: lambda x: kind.forward(layer, x) * 1.2),
    "an attention of one's own": replaced(
        cross, "forward", lambda layer, kind: lambda x, context=None, mask=None: kind.forward(layer, x, context, mask) * 0.5),
    "another convolution function": replaced(
        conv, "_conv_forward", lambda layer, kind: lambda x, weight, bias: F.conv2d(
            F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)),
    "a hook on keys": hooked(lambda pipe: cross(pipe).to_k),
    "a hook on a convolution": hooked(conv),
    "a hook on the time embedding": hooked(lambda pipe: pipe.unet.time_embedding.linear_1),
    "a module of one's own": wrapped,
    "its attribute": factor,
    "a module that counts its calls": by_step,
    "values reversed": exchanged(conv, lambda weight: weight.flip(-1)),
    "rows exchanged": exchanged(conv, lambda weight: weight.roll(1, 0)),
    "channels exchanged": exchanged(lambda pipe: cross(pipe).to_k, lambda weight: weight.flip(1)),
    "signs turned": exchanged(lambda pipe: pipe.unet.conv_out, Tensor.neg),
    "a value shared out": exchanged(lambda pipe: pipe.unet.conv_in, lambda weight: weight.roll(1, 1)),
    "a step of a fused optimiser": optimised,
    "keys and values": lambda pipe: cross(pipe).to_v.weight.data.mul_(1.3),
    "the time's projection": lambda pipe: pipe.unet.mid_block.resnets[0].time_emb_proj.weight.data.mul_(1.5),
    "in place, as PyTorch counts": lambda pipe: conv(pipe).weight.data.detach().mul_(1.1),
    "another network": other_unet,
    "a new parameter": new_parameter,
    "a weight transposed in its memory": transposed,
    "the text encoder negated": negated_encoder,
    "the text encoder's rows exchanged": encoder_rows,
    "another precision": precision,
    "layers exchanged": swapped_blocks,
    "another scheduler": scheduler,
    "the decoder's channels exchanged": decoder,
    "an adapter, or none": adapted,
    "the attention back end": lambda pipe: pipe.unet.set_attention_backend(
        "math" if cross(pipe).backend == "auto" else "auto"),
}

BETWEEN_CALLS = sorted(CHANGES)
IN_THE_MIDDLE = sorted({*CHANGES} - {"another precision", "another scheduler", "an adapter, or none"})


@contextlib.contextmanager
def patched(name: str | None) -> Iterator[None]:
    """Functions of PyTorch, of its classes and of this library, replaced for everybody."""
    places: dict[str, tuple[Any, str]] = {
        "attention": (F, "scaled_dot_product_attention"), "a linear layer": (nn.Linear, "forward"), "silu": (F, "silu"),
        "a convolution": (F, "conv2d"), "the convolution's class": (nn.Conv2d, "_conv_forward"),
        "a group norm": (F, "group_norm"),
        "our attention": (attention.Attention, "forward"), "our function": (attention, "attend"),
    }
    if name is None:
        yield
        return
    space, attribute = places[name]
    original = getattr(space, attribute)
    with mock.patch.object(space, attribute, lambda *given, **options: original(*given, **options) * 1.2):
        yield


PATCHES = st.sampled_from([None] * 6 + ["attention", "a linear layer", "silu", "a convolution", "the convolution's class",
                                        "a group norm", "our attention", "our function"])


# -- the programs --------------------------------------------------------------------------------------------------------


def embeds_in_place(pipe: Any, held: dict[str, Any]) -> None:
    held["prompt_embeds"].mul_(1.4)


def call(pipe: Any, change: str | None, at: int, stream: bool, prompt: str, scale: float) -> np.ndarray:
    """A picture; with `change`, made in the middle of the call."""
    options: dict[str, Any] = {"num_inference_steps": 4, "generator": seeded(0)[0], "output_type": "np", "guidance_scale": scale}
    if change is None and not stream:
        return pipe(prompt, **options).images
    if stream:
        for i, step in enumerate(pipe.stream(prompt, **options)):
            if i == at and change is not None:
                CHANGES[change](pipe)
            last = step
        return last.output.images

    def callback(view: Any, i: int, t: Any, held: dict[str, Any]) -> dict[str, Any]:
        if i == at:
            embeds_in_place(view, held) if change == "the embeddings, in place" else CHANGES[change](view)
        return {}

    return pipe(prompt, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["prompt_embeds"], **options).images


ACTIONS = st.fixed_dictionaries({
    "between": st.lists(st.sampled_from(BETWEEN_CALLS), max_size=2),
    "middle": st.sampled_from([None, None, "the embeddings, in place", *IN_THE_MIDDLE]),
    "at": st.integers(0, 2), "stream": st.sampled_from([False, False, True]), "patch": PATCHES,
    "prompt": st.sampled_from(["a cat", "a dog"]), "scale": st.sampled_from([7.5, 7.5, 1.0]),
})


@settings(max_examples=PROGRAMS, deadline=None, derandomize=PROGRAMS < 100)
@given(actions=st.lists(ACTIONS, min_size=2, max_size=4))
def test_programs(actions: list[dict[str, Any]]) -> None:
    pipe = make_tiny()
    for action in actions:
        for change in action["between"]:
            CHANGES[change](pipe)
        stream = action["stream"] and action["middle"] != "the embeddings, in place"
        given = action["middle"], action["at"], stream, action["prompt"], action["scale"]
        plain = copy.deepcopy(pipe)
        plain.fast = False
        with patched(action["patch"]):
            expected, made = call(plain, *given), call(pipe, *given)
        assert np.abs(made - expected).max() <= 3e-4, action


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_between_calls(name: str) -> None:
    """And most of them make another picture, or nothing would be tested."""
    pipe = make_tiny()
    before = call(pipe, None, 0, False, "a cat", 7.5)
    assert recording_of(pipe)
    CHANGES[name](pipe)
    plain = copy.deepcopy(pipe)
    plain.fast = False
    expected = call(plain, None, 0, False, "a cat", 7.5)
    assert np.abs(call(pipe, None, 0, False, "a cat", 7.5) - expected).max() <= 3e-4
    assert name in ("its attribute", "the attention back end", "another precision") or np.abs(before - expected).max() > 1e-3


def recording_of(pipe: Any) -> Any:
    return vars(pipe.unet)["_recordings"].by_inputs


# -- other threads ---------------------------------------------------------------------------------------------------------


def test_adapters_chosen_meanwhile_wait_for_the_picture() -> None:
    pipe = make_tiny()
    adapted(pipe)
    (name,) = (name for names in pipe.get_list_adapters().values() for name in names)
    expected, started, order = call(pipe, None, 0, False, "a cat", 7.5), threading.Event(), []

    def change() -> None:
        started.wait()
        pipe.set_adapters([name], [-3.0])
        order.append("changed")

    def callback(view: Any, i: int, t: Any, held: dict[str, Any]) -> dict[str, Any]:
        started.set()
        time.sleep(0.05)
        order.append(i)
        return {}

    thread = threading.Thread(target=change)
    thread.start()
    made = pipe("a cat", num_inference_steps=4, generator=seeded(0)[0], output_type="np", callback_on_step_end=callback).images
    thread.join()
    assert order[-1] == "changed" and np.array_equal(made, expected)
    assert np.abs(call(pipe, None, 0, False, "a cat", 7.5) - expected).max() > 1e-3


def test_interrupts_of_streams_work_again_and_again() -> None:
    pipe = make_tiny()
    for _ in range(3):
        steps = 0
        for _step in pipe.stream("a cat", num_inference_steps=6):
            steps += 1
            if steps == 2:
                pipe.interrupt = True
        assert steps == 2
    assert sum(1 for _ in pipe.stream("a cat", num_inference_steps=6)) > 2
