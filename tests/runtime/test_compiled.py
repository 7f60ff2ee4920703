"""Compiled steps: the model's own calls are the oracle, and what a folder keeps is good for others."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recording import generate, some, text_unet
from torch import Tensor, nn

from calotype.runtime import compiled, private_folders
from calotype.runtime.compiled import Compiled
from calotype.runtime.scope import fast_path
from calotype.runtime.tape import CannotRecord, Tape

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def compilers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What compilers keep for themselves: headers above all, which take them long."""
    return tmp_path_factory.mktemp("compilers")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, compilers: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own, and no gradients."""
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path))
    monkeypatch.setattr(private_folders, "compiler_folder", lambda name: compilers)
    with torch.no_grad():
        yield tmp_path / "compiled"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every call of the compiler."""
    import torch._inductor

    calls, plain = [], torch._inductor.standalone_compile

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch._inductor, "standalone_compile", counted)
    return calls


def small() -> Any:
    """A UNet of few kernels: each takes the compiler a second."""
    return text_unet(block_out_channels=(8,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",),
                     mid_block_type=None)


def plainly(unet: Any, **options: Any) -> Tensor:
    def predict(unet: Any, sample: Tensor, time: Any, *text: Any) -> Tensor:
        with fast_path(False):
            return unet(sample, time, *text, return_dict=False)[0]

    return generate(unet, predict=predict, **options)


def near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@needs_compiler
def test_a_generation_is_compiled_once_and_for_other_weights_too(compilations: list[Any], kept: Path) -> None:
    unet = small()
    unet.compile_repeated_blocks(fullgraph=True)  # Diffusers' name
    assert near(generate(unet, 1), plainly(unet, seed=1))
    (held,) = vars(unet)["_recordings"].by_inputs.values()
    assert isinstance(held.run, Compiled) and len(compilations) == 1
    assert near(generate(unet, 2), plainly(unet, seed=2))  # another text, other times
    for parameter in unet.parameters():
        parameter.mul_(1.1)
    changed = generate(unet, 2)
    assert near(changed, plainly(unet, seed=2)) and not near(changed, plainly(small(), seed=2))
    (anew,) = vars(unet)["_recordings"].by_inputs.values()
    assert anew is not held and isinstance(anew.run, Compiled)
    assert len(compilations) == 1 and len(list(kept.iterdir())) == 1  # the code was that of the folder

    unet.compile_steps(False)
    assert near(generate(unet, 2, steps=8), plainly(unet, seed=2, steps=8))
    assert all(isinstance(each.run, Tape) for each in vars(unet)["_recordings"].by_inputs.values())


@needs_compiler
def test_a_damaged_file_is_made_anew(kept: Path, compilations: list[Any]) -> None:
    x, weight = some(2, 4), some(4, 4, seed=1)
    first = Compiled(lambda: torch.tanh(x @ weight) + 1)
    (path,) = kept.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    again = Compiled(lambda: torch.tanh(x @ weight) + 1)
    assert len(compilations) == 2 and torch.equal(first.replay(), again.replay())
    Compiled(lambda: torch.tanh(x @ weight) + 1)
    assert len(compilations) == 2
    x.add_(1)
    assert near(again.replay(), torch.tanh(x @ weight) + 1)
    assert {tensor.data_ptr() for tensor in again._given} == {x.data_ptr(), weight.data_ptr()}


@needs_compiler
def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("not a folder")
    x = some(2, 4)
    assert near(Compiled(lambda: x.sigmoid() * x).replay(), x.sigmoid() * x)


def test_random_numbers_are_not_compiled_and_none_are_used_up() -> None:
    x, before = some(2, 4), torch.get_rng_state()
    with pytest.raises(CannotRecord, match="random numbers"):
        compiled._traced(lambda: nn.functional.dropout(x, 0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_wrong_result_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_compiled", lambda graph, given: lambda *given: (1.01 * given[0],))
    x = some(2, 4)
    with pytest.raises(CannotRecord, match="1e-02 away"):
        Compiled(lambda: x + 0)


def test_where_it_cannot_be_compiled_it_is_recorded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def no_compiler(*args: Any) -> Any:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(compiled, "_compiled", no_compiler)
    unet = text_unet()
    unet.compile_steps()
    with caplog.at_level(logging.WARNING):
        predicted = generate(unet, 1, steps=5)
    assert near(predicted, plainly(unet, seed=1, steps=5))
    (held,) = vars(unet)["_recordings"].by_inputs.values()
    assert isinstance(held.run, Tape)
    assert [record.message for record in caplog.records] == [
        "UNet2DConditionModel runs without being compiled: No working C++ compiler found"]
