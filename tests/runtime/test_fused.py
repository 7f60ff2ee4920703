"""The fused operators where no kernel can run: exactly PyTorch's operators, and no trace of Triton."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import calotype.runtime
from calotype.runtime import fused
from calotype.runtime.scope import current, fast_path


@pytest.fixture(params=[False, True], ids=["slow path", "fast path"], autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[None]:
    """On the CPU, the fast path is the plain operators too."""
    with fast_path(request.param), torch.no_grad():
        yield


def picture(channels: int = 12, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, channels, 5, 3, generator=torch.Generator().manual_seed(1)).to(dtype)


def norm_of(channels: int = 12, groups: int = 3, dtype: torch.dtype = torch.float32) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, 1e-6, dtype=dtype)
    norm.weight.data.copy_(torch.linspace(-1, 2, channels))
    norm.bias.data.copy_(torch.linspace(3, 0, channels))
    return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norms_are_the_plain_ones(dtype: torch.dtype, layout: torch.memory_format):
    x, norm, shift = picture(dtype=dtype).to(memory_format=layout), norm_of(dtype=dtype), picture(dtype=dtype)[..., 0, 0]
    assert torch.equal(fused.group_norm(norm, x), norm(x))
    assert torch.equal(fused.norm_silu(norm, x), F.silu(norm(x)))
    assert torch.equal(fused.norm_silu(norm, x, shift), F.silu(norm(x + shift[:, :, None, None])))
    assert torch.equal(fused.norm_silu(norm, x, shift[:1]), F.silu(norm(x + shift[:1, :, None, None])))


def test_norms_of_tokens_are_the_plain_ones():
    x, norm = picture().flatten(2), norm_of()
    assert torch.equal(fused.group_norm(norm, x), norm(x))
    assert torch.equal(fused.norm_silu(norm, x, x[..., 0]), F.silu(norm(x + x[..., :1])))


def test_gates_and_sums_are_the_plain_ones():
    wide, delta, norm = picture(16).movedim(1, -1), picture(16).movedim(1, -1) * 2, nn.LayerNorm(16)
    value, gate = wide.chunk(2, dim=-1)
    assert torch.equal(fused.gated(wide), value * F.gelu(gate))
    total, normed = fused.add_norm(wide, delta, norm)
    assert torch.equal(total, wide + delta)
    assert torch.equal(normed, norm(wide + delta))


def test_gradients_pass():
    with torch.enable_grad():
        x, norm, layer_norm = picture(8).requires_grad_(), norm_of(8, 2), nn.LayerNorm(8)
        tokens = fused.norm_silu(norm, x, x[..., 0, 0]).movedim(1, -1)
        total, normed = fused.add_norm(tokens, tokens * 2, layer_norm)
        (fused.gated(normed).sum() + total.sum()).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert norm.weight.grad is not None and norm.weight.grad.abs().sum() > 0


def test_hooks_are_called():
    called = []
    norm = norm_of()
    norm.register_forward_hook(lambda *_: called.append(1))
    fused.group_norm(norm, picture())
    fused.norm_silu(norm, picture())
    assert len(called) == 2


def test_a_wrong_shape_is_the_operators_error():
    with pytest.raises(RuntimeError, match="channels"):
        fused.group_norm(norm_of(12), picture(6))
    with pytest.raises(RuntimeError, match="size of tensor"):
        fused.norm_silu(norm_of(12), picture(12), torch.zeros(2, 5))


def test_there_is_nothing_to_check_on_the_cpu(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        assert not fused.check("cpu", torch.float32)
    assert not caplog.records


def test_without_triton_it_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """As on a GPU where it is not installed; only the device is pretended."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "calotype.runtime.triton_kernels", raising=False)
    monkeypatch.delattr(calotype.runtime, "triton_kernels", raising=False)
    monkeypatch.setattr(fused, "_INTERPRETED", True)
    monkeypatch.setattr(fused, "_verdicts", {})
    fused._importable.cache_clear()
    try:
        with caplog.at_level(logging.INFO), fast_path():
            assert not fused.check("cpu", torch.float32)
            assert not fused.check("cpu", torch.float16)
            x, norm = picture(), norm_of()
            assert torch.equal(fused.norm_silu(norm, x), F.silu(norm(x)))
    finally:
        fused._importable.cache_clear()
    assert [(record.levelname, "without Triton" in record.message) for record in caplog.records] == [("INFO", True)]


def test_importing_loads_no_triton():
    code = "import sys, calotype.runtime.fused; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scopes_nest_and_end():
    with fast_path() as nothing:
        outer = current()
        assert nothing is None and outer == set()
        with fast_path(False):
            assert current() is None
        shared = {1}
        with pytest.raises(KeyError), fast_path(scope=shared):
            assert current() is shared
            raise KeyError
        assert current() is outer


def test_a_scope_is_of_its_thread():
    seen: list[object] = []
    with fast_path():
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen == [None]
