"""Run by `test_triton_kernels.py`, or by hand: TRITON_INTERPRET=1 python -m pytest tests/runtime/kernels_interpreted.py"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from calotype.runtime import fused, triton_kernels
from calotype.runtime.scope import fast_path

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
assert fused._INTERPRETED, "set TRITON_INTERPRET=1"


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was compared yet."""
    monkeypatch.setattr(fused, "_verdicts", {})


@pytest.fixture(params=[True, False], ids=["one program a group", "three steps"])
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(triton_kernels, "WHOLE_GROUP", 0)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, shift: Tensor | None, silu: bool) -> Tensor:
    x = x.double() if shift is None else x.double() + shift.double().reshape(*shift.shape, *[1] * (x.ndim - 2))
    weight, bias = (None if tensor is None else tensor.double() for tensor in (weight, bias))
    result = F.group_norm(x, groups, weight, bias, 1e-5)
    return F.silu(result) if silu else result


def assert_rounded_once(fast: Tensor, exact: Tensor, near: float = 1e-5) -> None:
    """Half a unit in the last place, and the rounding of float32. To bfloat16 the interpreter does not round, it truncates."""
    units = 1 if fast.dtype == torch.bfloat16 else 0.5
    bound = torch.finfo(fast.dtype).eps * units * exact.abs() * 1.001 + near
    assert ((fast.double() - exact).abs() <= bound).all(), (fast.double() - exact).abs().max()


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "batch", "width"), [
    (torch.float32, 1, 10), (torch.float32, 2, 20), (torch.float32, 1, 80),
    (torch.float16, 1, 40), (torch.float16, 3, 10), (torch.bfloat16, 1, 40), (torch.bfloat16, 2, 20),
])
def test_group_norm(layout: torch.memory_format, dtype: torch.dtype, batch: int, width: int):
    channels = 2 * width
    x = draw(batch, channels, 7, 3, dtype=dtype).to(memory_format=layout)
    weight, bias, shift = (draw(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(
        [(channels,), (channels,), (batch, channels)], 1))
    fast = triton_kernels.group_norm(x, 2, weight, bias, 1e-5, shift, True)
    assert_rounded_once(fast, plain(x, 2, weight, bias, shift, True))
    assert fast.dtype == dtype and fast.stride() == x.stride()


@pytest.mark.usefixtures("ways")
def test_group_norm_of_less():
    x, weight, bias, shift = draw(2, 6, 5, 3), draw(6, seed=1), draw(6, seed=2), draw(1, 6, seed=3)
    for arguments in ((weight, bias, shift, False), (None, None, shift, True), (weight, bias, None, False)):
        fast = triton_kernels.group_norm(x, 2, *arguments[:2], 1e-5, *arguments[2:])
        assert_rounded_once(fast, plain(x, 2, *arguments))


@pytest.mark.parametrize(("shape", "last"), [((1, 8, 50, 45), True), ((2, 8, 50, 45), False), ((1, 130, 37, 9), True)])
def test_group_norm_of_many_blocks(shape: tuple[int, ...], last: bool, monkeypatch: pytest.MonkeyPatch):
    """Groups too large for one program, more than one chunk, and chunks of several blocks of which the last are empty."""
    x = draw(*shape).to(memory_format=torch.channels_last if last else torch.contiguous_format) * 0.1 + 3
    monkeypatch.setattr(triton_kernels, "WHOLE_GROUP", 8192)
    for programs in (2048, 5):
        monkeypatch.setattr(triton_kernels, "_PROGRAMS", programs)
        assert_rounded_once(triton_kernels.group_norm(x, 2, None, None, 1e-5), plain(x, 2, None, None, None, False), 2e-5)


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_of_a_large_mean(layout: torch.memory_format):
    """Σx² - (Σx)²/n would have no correct digit: the mean's square is 10⁸ times the variance."""
    x = (1000 + 0.1 * draw(2, 16, 19, 9)).to(memory_format=layout)
    fast = triton_kernels.group_norm(x, 2, None, None, 1e-5)
    # three steps hand the mean on in float32, rounded by up to 3e-5; one program has the rest of it as well
    bound = 5e-4 if triton_kernels.WHOLE_GROUP == 0 else 1e-5
    assert (fast - plain(x, 2, None, None, None, False)).abs().max() < bound


@pytest.mark.usefixtures("ways")
@pytest.mark.parametrize("x", [
    draw(2, 6, 9), draw(2, 9, 6).transpose(1, 2), draw(2, 6), draw(3, 6, 1, 1), draw(2, 6, 3, 2, 5),
    draw(2, 3, 2, 5, 6).movedim(-1, 1),
], ids=["tokens", "tokens, channels last", "no positions", "one position", "video", "video, channels last"])
def test_group_norm_of_other_shapes(x: Tensor):
    shift = draw(len(x), 12, seed=3).chunk(2, dim=1)[1]  # not contiguous
    fast = triton_kernels.group_norm(x, 2, None, None, 1e-5, shift, True)
    assert_rounded_once(fast, plain(x, 2, None, None, shift, True))
    assert fast.stride() == x.stride()


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 50), st.integers(1, 17), st.integers(1, 17), st.booleans(),
       st.sampled_from([0, 256, 32768]))
def test_group_norm_of_any_size(batch: int, groups: int, width: int, height: int, across: int, last: bool, whole: int):
    x = draw(batch, groups * width, height, across, seed=height)
    x = x.to(memory_format=torch.channels_last) if last else x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_kernels, "WHOLE_GROUP", whole)
        fast = triton_kernels.group_norm(x, groups, None, None, 1e-5)
    exact = plain(x, groups, None, None, None, False) if width * height * across > 1 else torch.zeros_like(x).double()
    assert_rounded_once(fast, exact, 1e-4)  # the norm of two close values magnifies the rounding of their mean


@pytest.mark.usefixtures("ways")
def test_a_sample_does_not_depend_on_its_batch():
    x, shift = draw(3, 20, 7, 11).to(memory_format=torch.channels_last), draw(3, 20, seed=1)
    together = triton_kernels.group_norm(x, 2, None, None, 1e-5, shift, True)
    assert torch.equal(together, triton_kernels.group_norm(x, 2, None, None, 1e-5, shift, True))
    for i in range(3):
        alone = triton_kernels.group_norm(x[i:i + 1], 2, None, None, 1e-5, shift[i:i + 1], True)
        assert torch.equal(together[i:i + 1], alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 20), (1, 2), (3, 17, 2 * 259), (640,)])
def test_gated(dtype: torch.dtype, shape: tuple[int, ...]):
    wide = 3 * draw(*shape, dtype=dtype)
    value, gate = wide.double().chunk(2, dim=-1)
    assert_rounded_once(triton_kernels.gated(wide), value * F.gelu(gate))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 320), (3, 2560), (4, 1)])
def test_add_norm(dtype: torch.dtype, shape: tuple[int, ...]):
    x, delta = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    weight, bias = draw(shape[-1], dtype=dtype, seed=2), draw(shape[-1], dtype=dtype, seed=3)
    for some_weight, some_bias in ((weight, bias), (weight, None), (None, None)):
        total, normed = triton_kernels.add_norm(x, delta, some_weight, some_bias, 1e-5)
        exact = x.double() + delta.double()
        assert_rounded_once(total, exact)
        doubles = (None if tensor is None else tensor.double() for tensor in (some_weight, some_bias))
        assert_rounded_once(normed, F.layer_norm(exact, shape[-1:], *doubles, 1e-5))


def test_add_norm_of_a_large_mean():
    x = 1000 + 0.1 * draw(4, 320)
    _, normed = triton_kernels.add_norm(x, torch.zeros_like(x), None, None, 1e-5)
    assert (normed - F.layer_norm(x.double(), (320,))).abs().max() < 1e-5


def calls(channels: int = 8) -> dict[str, Callable[[Tensor], Any]]:
    """Each operator on a picture [B, C, H, W]."""
    norm, layer_norm = nn.GroupNorm(2, channels), nn.LayerNorm(channels)
    return {
        "group_norm": lambda x: fused.norm_silu(norm, x, x[..., 0, 0]),
        "gated": lambda x: fused.gated(x.movedim(1, -1).contiguous()),
        "add_norm": lambda x: fused.add_norm(*[x.movedim(1, -1).contiguous()] * 2, layer_norm)[1],
    }


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were called since, checks aside."""
    assert fused.check("cpu", torch.float32)
    names: list[str] = []
    for name in calls():
        original = getattr(triton_kernels, name)
        monkeypatch.setattr(
            triton_kernels, name, lambda *a, name=name, original=original: (names.append(name), original(*a))[1])
    return names


@pytest.mark.parametrize("name", list(calls()))
def test_kernels_are_used_on_the_fast_path_only(name: str, used: list[str]):
    call, x = calls()[name], draw(2, 8, 5, 3).to(memory_format=torch.channels_last)
    slow = call(x)
    assert not used
    with fast_path():
        torch.testing.assert_close(call(x), slow)
        assert used == [name]
        call(x[:0])
        with torch.autocast("cpu", torch.bfloat16):
            call(x)
        with fast_path(False):
            call(x)
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            call(leaf).sum().backward()
        assert leaf.grad is not None and leaf.grad.isfinite().all()
        assert used == [name]


def test_other_norms_and_layouts_take_the_plain_way(used: list[str]):
    x = draw(2, 8, 6, 6)
    tokens = x.flatten(2).transpose(1, 2)

    class Other(nn.GroupNorm):
        pass

    hooked, replaced, without = nn.GroupNorm(2, 8), nn.GroupNorm(2, 8), nn.GroupNorm(2, 8, affine=False)
    hooked.register_forward_pre_hook(lambda *_: None)
    replaced.forward = torch.zeros_like  # type: ignore[method-assign]
    scaled = nn.GroupNorm(2, 8)
    scaled.bias = None  # type: ignore[assignment]
    with fast_path():
        norms = Other(2, 8), hooked, replaced, scaled
        for norm, picture in [(norm, x) for norm in norms] + [(without, x[..., ::2]), (without, x.double())]:
            assert torch.equal(fused.group_norm(norm, picture), norm(picture))
        shift = tokens[:, 0].double()
        assert torch.equal(fused.norm_silu(without, x, shift), F.silu(without(x + shift[:, :, None, None])))
        fused.group_norm(nn.GroupNorm(2, 8), x.half())  # whose weights are in another precision
        fused.gated(tokens)
        fused.add_norm(tokens, tokens, nn.LayerNorm(8))
        fused.add_norm(x, x, nn.LayerNorm((6, 6)))
        fused.add_norm(x, x[:1], nn.LayerNorm(6))
        assert not used
        fused.group_norm(without, x)
        fused.add_norm(x, x, nn.LayerNorm(6, bias=False))
        assert used == ["group_norm", "add_norm"]


@pytest.mark.usefixtures("fresh")
def test_checks_pass_and_draw_no_random_numbers(caplog: pytest.LogCaptureFixture):
    before = torch.get_rng_state()
    with caplog.at_level(logging.INFO):
        assert fused.check("cpu", torch.float16)
    assert torch.equal(before, torch.get_rng_state())
    assert not caplog.records
    assert not fused.check("cpu", torch.float64)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", list(calls()))
@pytest.mark.parametrize("level", ["WARNING", "INFO"])
def test_a_wrong_kernel_steps_aside(
    name: str, level: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
):
    original, called = getattr(triton_kernels, name), []

    def wrong(*arguments: Any) -> Any:
        called.append(1)
        if level == "INFO":
            raise RuntimeError("no compiler\nand a long story")
        result = original(*arguments)
        return tuple(part * 1.01 for part in result) if isinstance(result, tuple) else result * 1.01

    monkeypatch.setattr(triton_kernels, name, wrong)
    fused._verdicts.update({(other, torch.device("cpu"), torch.float32): True for other in calls() if other != name})
    call, x = calls()[name], draw(2, 8, 5, 3)
    slow = call(x)
    with caplog.at_level(logging.INFO), fast_path():
        assert torch.equal(call(x), slow)
        tries = len(called)
        assert tries
        assert torch.equal(call(x), slow)
        assert not fused.check("cpu", torch.float32)
        assert len(called) == tries  # it is not tried again
    assert [(record.levelname, record.message.split()[0]) for record in caplog.records] == [(level, name)]
    assert "\n" not in caplog.text.strip()
    assert ("no compiler" in caplog.text) == (level == "INFO")


@pytest.mark.usefixtures("fresh")
def test_results_that_are_not_numbers_fail_the_check(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton_kernels, "gated", lambda wide: torch.full_like(wide.chunk(2, -1)[0], float("nan")))
    wide = draw(3, 8)
    with fast_path():
        assert fused.gated(wide).isfinite().all()
    assert list(fused._verdicts.values()) == [False]


@pytest.mark.usefixtures("fresh")
def test_nothing_is_compared_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch):
    """Comparing waits for the GPU, which would end the capture. Here the GPU is pretended."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    there: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0), dtype=torch.float16)
    assert not fused._agrees("gated", there)
    assert not fused._verdicts
    fused._verdicts["gated", there.device, there.dtype] = True
    assert fused._agrees("gated", there)
