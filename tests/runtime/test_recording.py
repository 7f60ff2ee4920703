"""Recorded calls: those of the model itself are the oracle, whatever happens to it in between."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import calotype
from calotype.runtime import recording
from calotype.runtime.recording import Recordings, call
from calotype.runtime.scope import fast_path

SMALL = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}


def text_unet(**options: Any) -> Any:
    torch.manual_seed(0)
    return calotype.UNet2DConditionModel(**{
        **SMALL, "cross_attention_dim": 16, "attention_head_dim": 2, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), **options}).eval()


def plain_unet() -> Any:
    torch.manual_seed(0)
    return calotype.UNet2DModel(
        **SMALL, attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()


UNETS = {"text": text_unet, "plain": plain_unet}


@pytest.fixture
def unet() -> Any:
    return text_unet()


@pytest.fixture(params=UNETS)
def either(request: pytest.FixtureRequest) -> Any:
    return UNETS[request.param]()


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recorded at the second call that is alike."""
    monkeypatch.setattr(recording, "_CALLS_BEFORE", {"cpu": 1, "cuda": 1})
    with torch.no_grad():
        yield


def some(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(**options)


def generate(
    unet: Any, seed: int = 0, steps: int = 3, batch: int = 2, size: int = 8, texts: int = 1, predict: Any = call
) -> Tensor:
    """What is predicted in the steps of one generation, for samples and a text of `seed`."""
    with fast_path():
        moments = unet.moments(torch.linspace(900, 10 + seed, steps))
        text = (unet.keep(some(batch * texts, 5, 16, seed=seed, dtype=unet.dtype)),) if hasattr(unet, "keep") else ()
        samples = [some(batch, unet.config.in_channels, size, size, seed=100 * seed + i, dtype=unet.dtype) for i in range(steps)]
        return torch.stack([predict(unet, sample, moment, *text) for sample, moment in zip(samples, moments, strict=True)])


def plainly(unet: Any, sample: Tensor, time: Any, *text: Any) -> Tensor:
    with fast_path(False):
        return unet(sample, time, *text, return_dict=False)[0]


def assert_right(unet: Any, **options: Any) -> Tensor:
    """As a copy's own calls, which know no recording."""
    made, expected = generate(unet, **options), generate(copy.deepcopy(unet), **options, predict=plainly)
    assert made.dtype == expected.dtype
    assert (made - expected).abs().max() <= 2e-5 * expected.abs().max()
    return made


def recordings(unet: Any) -> Any:
    return vars(unet)["_recordings"].by_inputs if "_recordings" in vars(unet) else {}


def the_recording(unet: Any) -> Any:
    (only,) = recordings(unet).values()
    return only


class Replays:
    """Counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.count = 0
        replay = recording.Tape.replay

        def counted(tape: Any) -> Tensor:
            self.count += 1
            return replay(tape)

        monkeypatch.setattr(recording.Tape, "replay", counted)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    return Replays(monkeypatch)


# -- what is replayed -------------------------------------------------------------------------------------------------------


def test_calls_are_recorded_after_some(either, replays):
    unet = either
    recording._CALLS_BEFORE["cpu"] = 3
    assert_right(unet, steps=3)
    assert not recordings(unet) and not replays.count
    assert_right(unet, steps=3)  # what is kept of text and times is made before, since no recording contains it
    assert len(recordings(unet)) == 1 and replays.count == 3
    assert_right(unet, steps=4)
    assert len(recordings(unet)) == 1 and replays.count == 7


def test_a_replay_is_the_call_to_the_last_bit(either, replays):
    """The same operations on the same numbers."""
    unet = either
    generate(unet)
    assert torch.equal(generate(unet, seed=1), generate(
        copy.deepcopy(unet), seed=1, predict=lambda unet, *given: unet(*given, return_dict=False)[0]))
    assert replays.count == 5


def test_other_texts_times_sizes_and_batches(either, replays):
    unet = either
    for options in ({}, {"seed": 1}, {"seed": 2, "steps": 6}, {"batch": 1}, {"size": 16}, {"seed": 3}, {"seed": 4, "batch": 1}):
        assert_right(unet, **options)
    assert len(recordings(unet)) == 3 and replays.count == 24 - 3


def test_a_sample_told_of_several_texts(replays):
    unet = text_unet()
    assert_right(unet, texts=2)
    assert generate(unet, texts=2).shape[1] == 4
    assert_right(unet, texts=1)
    assert len(recordings(unet)) == 2


def test_samples_of_any_layout_are_read(unet):
    generate(unet)
    with fast_path():
        moment, sample = unet.moments(torch.tensor([7.0])), some(2, unet.config.in_channels, 8, 8)
        text = (unet.keep(some(2, 5, 16)),) if hasattr(unet, "keep") else ()
        expected = call(unet, sample, moment[0], *text)
        assert torch.equal(call(unet, sample.contiguous(memory_format=torch.channels_last), moment[0], *text), expected)
        assert torch.equal(call(unet, sample.flip(3).flip(3), moment[0], *text), expected)


def test_a_bounded_number_is_kept(unet):
    for size in range(2, 14, 2):
        assert_right(unet, size=size, batch=1, steps=2)
    assert len(recordings(unet)) == recording._KEPT == 4
    assert_right(unet, size=2, batch=1)


def test_inference_mode_and_no_grad_in_turns(unet):
    for seed in range(4):
        with torch.no_grad() if seed % 2 else torch.inference_mode():
            assert_right(unet, seed=seed)
    assert len(recordings(unet)) == 2


def test_models_made_in_inference_mode(replays):
    """PyTorch counts no writes to their weights."""
    with torch.inference_mode():
        unet = text_unet()
        assert_right(unet)
        unet.conv_in.weight.mul_(2)
        assert_right(unet)
    assert replays.count


def test_dropout_drops_what_a_call_would(either):
    unet = either
    for part in unet.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    unet.train()
    torch.manual_seed(1)
    expected = generate(copy.deepcopy(unet), predict=lambda unet, *given: unet(*given, return_dict=False)[0])
    torch.manual_seed(1)
    assert torch.equal(generate(unet), expected)
    assert recordings(unet)
    unet.eval()
    assert_right(unet)


# -- what has changed -------------------------------------------------------------------------------------------------------


def _linear(unet: Any) -> Any:
    return unet.time_embedding.linear_1 if not hasattr(unet, "keep") else unet.mid_block.attentions[0].proj_in


def _new_parameter(unet: Any) -> None:
    layer = unet.down_blocks[0].resnets[0].conv1
    layer.weight = nn.Parameter(layer.weight * 2)


def _other_norm(unet: Any) -> None:
    """Where the old one was, perhaps even in memory."""
    block = unet.mid_block.resnets[0]
    weight = block.norm1.weight.detach() + 1
    del block.norm1
    gc.collect()
    block.norm1 = nn.GroupNorm(4, 16)
    block.norm1.weight.data.copy_(weight)


def _bias_where_none_was(unet: Any) -> None:
    attention = unet.mid_block.attentions[0]
    to_q = attention.transformer_blocks[0].attn1.to_q if hasattr(unet, "keep") else attention.to_q
    to_q.bias = nn.Parameter(some(16))


def _load(assign: bool) -> Callable[[Any], None]:
    def load(unet: Any) -> None:
        unet.load_state_dict({name: value * 1.1 for name, value in unet.state_dict().items()}, assign=assign)

    return load


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": lambda unet: unet.down_blocks[0].resnets[0].conv1.weight.mul_(1.5),
    "a norm in place": lambda unet: unet.mid_block.resnets[0].norm2.bias.add_(1),
    "a linear layer in place": lambda unet: _linear(unet).weight.mul_(1.5),
    "through data": lambda unet: unet.down_blocks[0].resnets[0].conv1.weight.data.mul_(1.5),
    "a bias through data": lambda unet: unet.conv_in.bias.data.add_(1),
    "a norm through data": lambda unet: unet.mid_block.resnets[0].norm2.weight.data.neg_(),
    "other data": lambda unet: setattr(unet.conv_in.weight, "data", unet.conv_in.weight * 2),
    "the upsampled": lambda unet: unet.up_blocks[0].upsamplers[0].conv.weight.data.mul_(2),
    "a new parameter": _new_parameter,
    "a bias where none was": _bias_where_none_was,
    "a state": _load(False),
    "a state, assigned": _load(True),
    "another layer": lambda unet: setattr(unet, "conv_out", nn.Conv2d(8, unet.config.out_channels, 3, padding=1)),
    "another norm": _other_norm,
    "an identity": lambda unet: setattr(unet.mid_block.resnets[0], "norm2", nn.Identity()),
    "half precision and back": lambda unet: unet.half().float(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_weights_are_seen(unet, name, replays):
    before = generate(unet)
    assert replays.count
    CHANGES[name](unet)
    after = assert_right(unet)
    assert not torch.equal(before, after)
    replays.count = 0
    assert_right(unet, seed=1)
    assert replays.count  # and what came of it is recorded again, where it was not the recording's own weight


@pytest.mark.parametrize("name", ["through data", "other data", "the upsampled", "half precision and back"])
def test_changes_that_another_size_saw_first(name):
    """It renews what is known of the layers' weights; a recording must not believe that it is its own."""
    unet = text_unet()
    generate(unet)
    CHANGES[name](unet)
    assert_right(unet, size=16, steps=1)
    assert_right(unet)


def test_other_precisions(either, replays):
    unet = either
    generate(unet)
    assert_right(unet.to(torch.float64))
    assert len(recordings(unet)) == 1 and replays.count == 4  # the one before went with the weights that it was made of
    assert_right(unet.to(torch.float32))
    with fast_path():
        assert generate(unet.to(torch.bfloat16)).isfinite().all()


def test_weights_changed_between_steps(unet):
    """At once where PyTorch counts it."""
    calls = []

    def changing(unet: Any, *given: Any) -> Tensor:
        calls.append(unet)
        if len(calls) == 5:
            unet.conv_out.weight.mul_(2)
        return predict(unet, *given)

    predict: Any = call
    other = copy.deepcopy(unet)
    made = generate(unet, steps=6, predict=changing)
    predict = plainly
    calls.clear()
    expected = generate(other, steps=6, predict=changing)
    assert (made - expected).abs().max() <= 2e-5 * expected.abs().max()


# -- what is not recorded ---------------------------------------------------------------------------------------------------


def test_hooks_are_called(either, replays):
    """On every layer, in every step, recorded or not yet; and so are those of all modules at once."""
    unet = either
    generate(unet)
    replays.count = 0
    counts: dict[str, int] = {}
    handles = [
        part.register_forward_hook(lambda *_, name=name: counts.update({name: counts.get(name, 0) + 1}))
        for name, part in unet.named_modules()]
    generate(unet)
    on_fast_path = dict(counts)
    counts.clear()
    generate(unet, predict=plainly)
    # what is kept makes some parts be called once
    assert counts == on_fast_path and not replays.count
    assert counts[""] == counts["conv_in"] == counts["up_blocks.0.upsamplers.0.conv"] == 3
    for handle in handles:
        handle.remove()
    assert_right(unet)
    assert replays.count
    replays.count = 0
    told: list[Any] = []
    everywhere = nn.modules.module.register_module_forward_hook(lambda module, *_: told.append(module))
    try:
        generate(unet)
    finally:
        everywhere.remove()
    assert told.count(unet) == 3 and not replays.count


LAYERS = ["conv_in", "up_blocks.0.upsamplers.0.conv", "mid_block.attentions.0", "mid_block.resnets.0.norm1"]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_function_in_place_of_forward_is_called(unet, replays, layer):
    generate(unet)
    replays.count = 0
    part = unet.get_submodule(layer)
    forward, asked = part.forward, []
    part.forward = lambda *given: asked.append(1) or forward(*given) * 2
    made = generate(unet, seed=1)
    assert len(asked) == 3 and not replays.count
    del part.forward
    assert not torch.allclose(made, assert_right(unet, seed=1))


def test_compiled_models_and_layers_are_not_recorded(unet, replays):
    generate(unet)
    replays.count = 0
    expected, asked = generate(copy.deepcopy(unet)), []
    replays.count = 0
    block = unet.mid_block
    # what `block.compile()` leaves there, without the seconds of a compiler
    block._compiled_call_impl = lambda *given: asked.append(1) or block._call_impl(*given)
    assert torch.allclose(generate(unet), expected, atol=1e-5)
    assert len(asked) == 3 and not replays.count
    block._compiled_call_impl = None
    with pytest.raises(ZeroDivisionError):  # and what stands for a model that is compiled whole
        generate(unet, predict=lambda unet, *given: call(Compiled(unet), *given))
    assert not replays.count


class Compiled(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self._orig_mod = model
        vars(self)["_recordings"] = vars(model)["_recordings"]

    def forward(self, *given: Any, **options: Any) -> Any:
        return 1 / 0


def test_gradients_are_had_where_they_are_wanted(unet, replays):
    generate(unet)
    replays.count = 0
    with torch.enable_grad():
        made = generate(unet)
        made.square().mean().backward()
    assert not replays.count
    assert all(parameter.grad is not None for parameter in (unet.conv_in.weight, unet.conv_out.weight))


def test_autocast_is_not_recorded(unet, replays):
    generate(unet)
    replays.count = 0
    with torch.autocast("cpu", torch.bfloat16):
        generate(unet)
    assert not replays.count and len(recordings(unet)) == 1
    assert_right(unet)


def test_plain_times_and_texts_are_not_recorded(unet, replays):
    text = (some(2, 5, 16),) if hasattr(unet, "keep") else ()
    sample = some(2, unet.config.in_channels, 8, 8)
    with fast_path():
        made = [call(unet, sample, torch.tensor(7), *text) for _ in range(3)]
    assert not replays.count
    assert torch.allclose(made[-1], plainly(unet, sample, torch.tensor(7), *text), atol=1e-5)


def test_outside_of_the_fast_path_nothing_is_recorded(unet, replays):
    def slowly(unet: Any, *given: Any) -> Tensor:
        with fast_path(False):
            return call(unet, *given)

    generate(unet, predict=slowly)
    assert not replays.count and not recordings(unet)


@pytest.mark.parametrize("look", [Tensor.item, Tensor.tolist, bool, str])
def test_a_model_of_ones_own_runs_as_usual(caplog, replays, look):
    """Its code may look at anything: at values, the clock, the number of the call."""
    class Looking(calotype.UNet2DModel):
        def forward(self, sample: Tensor, *given: Any, **options: Any) -> Any:
            return super().forward(sample if look(sample.mean()) else -sample, *given, **options)

    unet = plain_unet()
    unet.__class__ = Looking
    with caplog.at_level(logging.INFO):
        for seed in range(3):
            assert_right(unet, seed=seed)
    assert not caplog.records and not replays.count and not recordings(unet)


def test_what_cannot_be_repeated_runs_as_usual(caplog, replays, monkeypatch):
    """Python looks at a value in the middle of a call."""
    unet, make = plain_unet(), recording.Tape.__init__

    def looking(tape: Any, function: Callable[[], Tensor]) -> None:
        make(tape, lambda: function() * float(function().mean() < 9))

    monkeypatch.setattr(recording.Tape, "__init__", looking)
    with caplog.at_level(logging.INFO):
        for seed in range(3):
            assert_right(unet, seed=seed)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "UNet2DModel runs without being recorded" in caplog.text
    assert not replays.count and not recordings(unet)


# -- whose it is ------------------------------------------------------------------------------------------------------------


def test_copies_and_files_carry_no_recordings(unet, tmp_path):
    generate(unet)
    assert recordings(unet)
    for other in (copy.deepcopy(unet), pickle.loads(pickle.dumps(unet))):
        assert not recordings(other)
        assert isinstance(vars(other)["_recordings"], Recordings)
        other.conv_in.weight.mul_(2)
        assert_right(other)
    unet.save_pretrained(tmp_path)
    assert not any("_recording" in path.read_bytes().decode("latin-1") for path in tmp_path.iterdir())
    assert "_recordings" not in "".join(unet.state_dict()) + repr(unet)
    assert_right(type(unet).from_pretrained(tmp_path))
    assert_right(unet)


def test_a_shallow_copy_with_another_layer_is_another_model(unet):
    generate(unet)
    other = copy.copy(unet)
    other._modules = {**unet._modules, "conv_out": nn.Conv2d(8, unet.config.out_channels, 3, padding=1)}
    for each in (other, unet, other):
        assert_right(each)


def test_a_model_is_freed_with_its_recordings():
    """At once: they hold its parts, but not itself."""
    unet = text_unet()
    generate(unet)
    gone, weight = weakref.ref(unet), weakref.ref(unet.conv_in.weight)
    gc.disable()
    try:
        del unet
        assert gone() is None and weight() is None
    finally:
        gc.enable()


def test_a_text_is_freed_after_its_generation():
    unet = text_unet()
    generate(unet)
    with fast_path():
        text, moments = unet.keep(some(2, 5, 16)), unet.moments(torch.tensor([7.0]))
        call(unet, some(2, 4, 8, 8), moments[0], text)
        gone = weakref.ref(text)
        del text
    assert gone() is None


# -- at once, and in turns --------------------------------------------------------------------------------------------------


def test_threads_get_what_each_gets_alone(either):
    unet = either
    expected = [generate(copy.deepcopy(unet), seed=seed, steps=8, predict=plainly) for seed in range(4)]
    generate(unet)
    barrier = threading.Barrier(4)

    def run(seed: int) -> Tensor:
        barrier.wait()
        with torch.no_grad():
            return generate(unet, seed=seed, steps=8)

    with ThreadPoolExecutor(4) as pool:
        for made, alone in zip(pool.map(run, range(4)), expected, strict=True):
            assert torch.allclose(made, alone, atol=1e-5)


def test_a_call_inside_another_thread_s_call_is_plain(unet, replays):
    """The recording's memory is in use."""
    generate(unet)
    replays.count = 0
    with vars(unet)["_recordings"].lock:
        assert_right(unet, seed=1)
    assert not replays.count
    assert_right(unet, seed=1)
    assert replays.count == 3


def test_generations_in_turns(either):
    """Each step of one between two of the other: the recording's text goes back and forth."""
    unet = either
    expected = [generate(copy.deepcopy(unet), seed=seed, steps=6, predict=plainly) for seed in (0, 1)]
    generate(unet, seed=9)
    made: list[list[Tensor]] = [[], []]

    def steps(seed: int) -> Iterator[Tensor]:
        moments = unet.moments(torch.linspace(900, 10 + seed, 6))
        text = (unet.keep(some(2, 5, 16, seed=seed)),) if hasattr(unet, "keep") else ()
        scope: set = set()
        for i, moment in enumerate(moments):
            with fast_path(scope=scope):
                predicted = call(unet, some(2, unet.config.in_channels, 8, 8, seed=100 * seed + i), moment, *text)
            yield predicted  # not inside the block: it would be around whoever goes on

    first, second = steps(0), steps(1)
    for one, other in zip(first, second, strict=True):
        made[0].append(one)
        made[1].append(other)
    for each, alone in zip(made, expected, strict=True):
        assert torch.allclose(torch.stack(each), alone, atol=1e-5)


def test_a_generation_that_dies_leaves_nothing_behind(unet, monkeypatch):
    generate(unet)
    replay = recording.Tape.replay

    def dying(tape: Any) -> Tensor:
        replay(tape)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recording.Tape, "replay", dying)
        with pytest.raises(KeyboardInterrupt):
            generate(unet, seed=1)
    assert not vars(unet)["_recordings"].lock.locked()
    assert_right(unet, seed=2)
    assert_right(unet, seed=1)


def test_an_error_of_the_model_is_its_own(unet):
    """In a step that would have been recorded, and in one that is."""
    generate(unet, steps=2)
    with pytest.raises(RuntimeError, match="channels"), fast_path():
        call(unet, some(2, 7, 8, 8), unet.moments(torch.tensor([7.0]))[0],
             *((unet.keep(some(2, 5, 16)),) if hasattr(unet, "keep") else ()))
    assert_right(unet)


# -- on a GPU: the order of things, with stand-ins for what is not here ------------------------------------------------------


class Pretended:
    """`torch.cuda`'s streams and graphs on the CPU. A graph repeats the function whose call it was told of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.log: list[str] = []
        self.fails = False
        log = self.log

        class Stream:
            def __init__(self, name: str = "beside"):
                self.name = name

            def wait_stream(self, other: Any) -> None:
                log.append(f"{self.name} waits for {other.name}")

        class Within:
            def __init__(self, name: str):
                self.name = name

            def __enter__(self) -> None:
                log.append(f"enter {self.name}")

            def __exit__(self, *_: Any) -> None:
                log.append(f"leave {self.name}")

        def graph(captured: Any, **options: Any) -> Any:
            assert options == {"capture_error_mode": "thread_local"}
            if self.fails:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
            return Within("capture")

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: Stream("main"))
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: Within(stream.name))
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: self.replay()))
        self.replay: Callable[[], None] = lambda: None


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    return Pretended(monkeypatch)


def test_a_graph_is_captured_after_a_first_call_beside(pretended):
    x, result = torch.zeros(2), torch.zeros(2)

    def function() -> Tensor:
        pretended.log.append("call")
        return result.copy_(x + 1)

    pretended.replay = function
    graph = recording.CudaGraph(function)
    assert pretended.log == ["beside waits for main", "enter beside", "call", "leave beside", "main waits for beside",
                             "enter capture", "call", "leave capture"]
    first = graph.replay()
    x.fill_(5)
    second = graph.replay()
    assert first.tolist() == [1, 1] and second.tolist() == [6, 6]


@pytest.mark.parametrize("fails", [False, True])
def test_what_cannot_be_captured_runs_as_usual(unet, pretended, monkeypatch, caplog, fails):
    monkeypatch.setattr(recording, "Tape", recording.CudaGraph)  # as if samples were on a GPU
    pretended.fails = fails
    if not fails:  # out of memory while it warms up, or anything else
        monkeypatch.setattr(torch.cuda, "Stream", lambda: 1 / 0)
    with caplog.at_level(logging.INFO):
        for seed in range(2):
            assert_right(unet, seed=seed)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "runs without being recorded" in record.message
    assert ("not permitted when stream is capturing" if fails else "division by zero") in record.message
    assert "more" not in record.message
