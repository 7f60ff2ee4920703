"""Weights in and out: mapped, sharded, whole or not at all, and every damage named."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from calotype import weights
from calotype.weight_files import choose_weights, weight_files
from calotype.weights import assign_weights, parse_size, read_tensors, write_tensors

quick = settings(max_examples=40, deadline=None)  # each example touches the disk
STEM = "diffusion_pytorch_model"


def some_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(10, 10, generator=generator) for name in ("a.weight", "b.weight", "c.weight", "d.weight")}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(folder: Path, variant: str | None = None, **options) -> dict[str, torch.Tensor]:
    return read_tensors(weight_files(folder, STEM, variant, **options))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def span(start: int, stop: int, **more: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop], **more}


# -- which files ------------------------------------------------------------------------------------------------------


def test_choice_of_files():
    plain, fp16 = f"{STEM}.safetensors", f"{STEM}.fp16.safetensors"
    assert choose_weights([plain, fp16, "config.json"], STEM, None) == [plain]
    assert choose_weights([plain, fp16], STEM, "fp16") == [fp16]
    assert choose_weights([plain, fp16], STEM, "bf16") == [plain]
    assert choose_weights([fp16, f"{STEM}.bin", f"{STEM}.non_ema.safetensors"], STEM, None) == []
    assert choose_weights([f"{STEM}.bin"], STEM, None, "bin") == [f"{STEM}.bin"]
    assert choose_weights(["pytorch_model.bin"], "model", None, "bin") == ["pytorch_model.bin"]
    assert choose_weights([f"{STEM}xsafetensors", f"{STEM}-00001-of-00002.safetensors"], STEM, None) == []


@pytest.mark.parametrize("shard", [f"{STEM}-{{}}.fp16.safetensors", f"{STEM}.fp16-{{}}.safetensors"])
@pytest.mark.parametrize("index", [f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16.safetensors.index.json"])
def test_both_orders_of_variant_and_shard_load(tmp_path, shard, index):
    tensors = some_tensors()
    placed = {}
    for i, name in enumerate(tensors):
        placed[name] = shard.format(f"{i + 1:05d}-of-00004")
        save_file({name: tensors[name]}, tmp_path / placed[name])
    (tmp_path / index).write_text(json.dumps({"weight_map": placed}))
    names = [path.name for path in tmp_path.iterdir()]
    assert sorted(choose_weights(names, STEM, "fp16")) == sorted(names)
    assert choose_weights(names, STEM, None) == []
    assert same(load(tmp_path, "fp16"), tensors)


def test_no_weights_says_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no 'diffusion_pytorch_model.fp16.safetensors'; it has no files"):
        weight_files(tmp_path, STEM, "fp16")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="it has config.json"):
        weight_files(tmp_path, STEM)
    with pytest.raises(FileNotFoundError, match="has no files"):
        weight_files(tmp_path / "gone", STEM)


@pytest.mark.parametrize(("shard", "error"), [
    ("../outside.safetensors", ValueError), ("/etc/passwd", ValueError), ("sub/x.safetensors", ValueError),
    ("..", ValueError), ("evil.bin", ValueError), (3, ValueError),
    (f"{STEM}-00002-of-00002.safetensors", FileNotFoundError)])
def test_an_index_cannot_point_outside(tmp_path, shard, error):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in (tmp_path / "outside.safetensors", folder / f"{STEM}-00001-of-00002.safetensors"):
        save_file({"a": torch.ones(1)}, path)
    torch.save({"a": torch.ones(1)}, folder / "evil.bin")
    index = folder / f"{STEM}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(error, match="names") as caught:
        weight_files(folder, STEM)
    assert str(index) in str(caught.value) and str(shard) in str(caught.value)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_damaged_index_is_named(tmp_path, index):
    save_file({"a": torch.ones(1)}, tmp_path / f"{STEM}-00001-of-00001.safetensors")
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match="index.json"):
        weight_files(tmp_path, STEM)


# -- reading: damage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("header", "data", "tensor"), [
    ({"a": span(0, 8), "b": span(8, 16)}, b"0" * 12, "b"),  # cut off
    ({"a": span(0, 8), "b": span(8, 16)}, b"0" * 2, "a"),
    ({"a": span(0, 8), "b": span(4, 12)}, b"0" * 12, "b"),  # overlapping
    ({"a": span(0, 8), "b": span(800, 808)}, b"0" * 16, "b"),  # out of range
    ({"a": span(0, 8), "b": span(12, 16)}, b"0" * 16, "b"),  # a gap
    ({"a": span(0, 8, shape=[3])}, b"0" * 8, None),
    ({"a": span(0, 8, shape=[-2])}, b"0" * 8, None),
    ({"a": span(0, 8, dtype="F99")}, b"0" * 8, None),
    (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
     b"0" * 16, "a"),  # twice
    (b"no header", b"", None),
    (b'{"a": 3}', b"", None),
    (b"[]", b"", None),
])
def test_damage_is_named(tmp_path, header, data, tensor):
    path = raw(tmp_path / f"{STEM}.safetensors", header, data)
    with pytest.raises(ValueError, match="is damaged") as caught:
        read_tensors([path])
    assert str(path) in str(caught.value)
    assert (f"at tensor {tensor!r}" in str(caught.value)) == (tensor is not None)


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 100, b"\0" * 100, b"PK\x03\x04 not really",
                                     struct.pack("<Q", 2**40) + b"{}"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_garbage_is_named(tmp_path, content, kind):
    path = tmp_path / f"x.{kind}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"x.{kind}' is damaged"):
        read_tensors([path])


@quick
@given(st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_any_scratch_is_named_or_harmless(tmp_path_factory, place, scratch):
    path = tmp_path_factory.mktemp("scratched") / "x.safetensors"
    save_file({"a": torch.arange(20.0), "b": torch.ones(3, 3)}, path)
    content = path.read_bytes()
    path.write_bytes((content[:place] + scratch + content[place + len(scratch):])[: len(content)])
    try:
        read_tensors([path])
    except ValueError as error:
        assert "x.safetensors" in str(error)


@pytest.mark.parametrize("kept", [0, 4, 60, 200, 260])
def test_a_truncated_file_is_named(tmp_path, kept):
    write_tensors(some_tensors(), tmp_path, STEM)
    path = tmp_path / f"{STEM}.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{STEM}.safetensors"):
        load(tmp_path)


def test_a_tensor_in_two_files_is_named(tmp_path):
    for name in ("x", "y"):
        save_file({"a": torch.ones(1), name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="y.safetensors' holds a, and so does another"):
        read_tensors([tmp_path / "x.safetensors", tmp_path / "y.safetensors"])


def test_a_missing_file_is_not_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.safetensors"):
        read_tensors([tmp_path / "x.safetensors"])


def test_only_what_is_wanted_is_read(tmp_path):
    write_tensors(some_tensors(), tmp_path, STEM)
    assert list(read_tensors(weight_files(tmp_path, STEM), keep=lambda name: name.startswith("b"))) == ["b.weight"]


# -- reading: pickles -------------------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil_was_here",)


def test_a_pickle_is_read_only_when_asked_for(tmp_path):
    torch.save(some_tensors(), tmp_path / f"{STEM}.bin")
    with pytest.raises(FileNotFoundError, match="read only when asked for with `use_safetensors=False`"):
        load(tmp_path)
    assert same(load(tmp_path, use_safetensors=False), some_tensors())
    save_file(some_tensors(1), tmp_path / f"{STEM}.safetensors")
    assert same(load(tmp_path, use_safetensors=False), some_tensors())  # as Diffusers: of an earlier or a later save
    assert same(load(tmp_path), some_tensors(1))
    write_tensors(some_tensors(2), tmp_path, STEM)  # and what we save takes its place
    assert same(load(tmp_path, use_safetensors=False), some_tensors(2))


def test_old_and_sharded_pickles(tmp_path):
    torch.save(some_tensors(), tmp_path / f"{STEM}.bin", _use_new_zipfile_serialization=False)
    assert same(load(tmp_path, use_safetensors=False), some_tensors())
    (tmp_path / f"{STEM}.bin").unlink()
    placed = {}
    for i, (name, tensor) in enumerate(some_tensors().items()):
        placed[name] = f"{STEM}-{i + 1:05d}-of-00004.bin"
        torch.save({name: tensor}, tmp_path / placed[name])
    (tmp_path / f"{STEM}.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    assert same(load(tmp_path, use_safetensors=False), some_tensors())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch, new_format):
    monkeypatch.chdir(tmp_path)
    content = {"a": torch.ones(1), "b": Evil()}
    torch.save(content, tmp_path / f"{STEM}.bin", _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match="damaged or holds more than tensors"):
        load(tmp_path, use_safetensors=False)
    (tmp_path / f"{STEM}.bin").write_bytes(pickle.dumps(content["b"]))
    with pytest.raises(ValueError, match="damaged or holds more than tensors"):
        load(tmp_path, use_safetensors=False)
    assert not (tmp_path / "evil_was_here").exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], {"state_dict": {"a": torch.ones(1)}}, torch.ones(1)])
def test_a_pickle_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(ValueError, match="something else than tensors by name"):
        read_tensors([tmp_path / "x.bin"])


# -- reading: the mapping ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_reads_nothing_until_touched(tmp_path):
    size = 100_000_000
    save_file({f"t{i}": torch.zeros(size // 40) for i in range(10)}, tmp_path / "x.safetensors")
    code = f"""
import gc, torch
from pathlib import Path
from torch import nn
from calotype.weights import assign_weights, read_tensors

def resident():
    gc.collect()
    return {{line.split()[0]: int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("Rss")}}

before = resident()
tensors = read_tensors([Path({str(tmp_path / "x.safetensors")!r})])
with torch.device("meta"):
    model = nn.ParameterDict({{name: torch.empty({size // 40}) for name in tensors}})
assign_weights(model, tensors, "x", torch.float32)
loaded = resident()
sum(float(tensor.detach().sum()) for tensor in model.values())
read = resident()
print(loaded["RssAnon:"] - before["RssAnon:"], loaded["RssFile:"] - before["RssFile:"],
      read["RssAnon:"] - before["RssAnon:"], read["RssFile:"] - before["RssFile:"])
"""
    said = subprocess.check_output([sys.executable, "-c", code])
    anonymous, mapped, anonymous_read, mapped_read = [1000 * int(number) for number in said.split()]
    assert anonymous + mapped < size / 4  # next to nothing is in memory
    assert anonymous_read < size / 4 and mapped_read > size * 0.8  # what was read is the file, and no copy of it


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_changing_a_mapped_tensor_never_changes_the_file(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    (save_file if kind == "safetensors" else torch.save)(some_tensors(), path)
    before = path.read_bytes()
    model = nn.Module()
    for name in "abcd":
        model.add_module(name, nn.Linear(10, 10, bias=False, device="meta"))
    assign_weights(model, read_tensors([path]), "x")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    model.a.weight.data.fill_(7)
    assert torch.allclose(model.b.weight, some_tensors()["b.weight"] - 1)
    assert path.read_bytes() == before
    assert same(read_tensors([path]), some_tensors())  # nor what others read


@pytest.mark.parametrize("limit", ["10GB", "500"])
def test_saving_over_the_files_one_is_mapped_from(tmp_path, limit):
    write_tensors(some_tensors(), tmp_path, STEM, max_shard_size=limit)
    mapped = load(tmp_path)
    write_tensors(some_tensors(1), tmp_path, STEM, max_shard_size=limit)
    assert same(mapped, some_tensors())
    write_tensors({name: tensor.mul_(2) for name, tensor in mapped.items()}, tmp_path, STEM, max_shard_size=limit)
    assert same(load(tmp_path), {name: tensor * 2 for name, tensor in some_tensors().items()})
    assert same(mapped, load(tmp_path))


# -- putting into a model ---------------------------------------------------------------------------------------------


def test_assigning_copies_nothing_and_keeps_what_a_parameter_is():
    model = nn.Sequential(nn.Linear(3, 2, device="meta"), nn.BatchNorm1d(2, device="meta"))
    model[0].bias.requires_grad_(False)
    tensors = {name: torch.ones(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
    assert assign_weights(model, tensors | {"extra": torch.ones(1)}, "x") == ["extra"]
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == tensors[name].data_ptr()
    assert isinstance(model[0].weight, nn.Parameter)
    assert model[0].weight.requires_grad and not model[0].bias.requires_grad
    assert "running_mean" in dict(model[1].named_buffers())
    model(torch.ones(4, 3)).sum().backward()


def test_dtype_becomes_what_was_asked_for_and_integers_stay():
    model = nn.BatchNorm1d(2)
    assign_weights(model, model.state_dict(), "x", torch.float16)
    assert model.weight.dtype == model.running_mean.dtype == torch.float16
    assert model.num_batches_tracked.dtype == torch.int64


def test_what_does_not_fit_is_named():
    tensors = {"weight": torch.ones(2, 4), "beta": torch.ones(1)}
    with pytest.raises(ValueError) as caught:
        assign_weights(nn.Linear(3, 2), tensors, "some/folder")
    assert str(caught.value).split("\n") == [
        "the weights in 'some/folder' do not fit Linear:", "  missing: bias",
        "  wrong shape: weight is [2, 4] and should be [2, 3]", "  there, but not asked for: beta"]
    with pytest.raises(ValueError, match="and 88 more"):
        assign_weights(nn.ModuleList(nn.Linear(1, 1) for _ in range(50)), {}, "x")


def test_what_does_not_fit_changes_nothing():
    model = nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError):
        assign_weights(model, {"weight": torch.zeros(2, 3)}, "x")
    assert same(dict(model.state_dict()), before)


def test_optional_tensors_may_be_missing():
    model = nn.Linear(3, 2)
    bias = model.bias.detach().clone()
    assign_weights(model, {"weight": torch.zeros(2, 3)}, "x", optional=lambda name: name == "bias")
    assert torch.equal(model.bias, bias) and not model.weight.any()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.tokens.weight


@pytest.mark.parametrize("names", [["tokens.weight"], ["head.weight"], ["tokens.weight", "head.weight"]])
def test_a_tied_parameter_stays_one(names):
    with torch.device("meta"):
        model = Tied()
    assert assign_weights(model, {name: torch.ones(5, 3) for name in names}, "x", torch.float16) == []
    assert model.head.weight is model.tokens.weight and not model.head.weight.is_meta


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [
    (5, 5), ("7", 7), ("10GB", 10**10), ("1.5 MB", 1_500_000), (" 2kib ", 2048), ("1GiB", 2**30), (5e9, 5_000_000_000)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "0", 0, -1, "0.2", "5 apples", "1e3", "nan", None, True, "٣", "5G"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="give bytes, or text such as '500MB'"):
        parse_size(text)


@settings(deadline=None)
@given(st.integers(1, 10**12), st.sampled_from(["", "KB", "kb", "MiB", "GB", "GiB"]), st.sampled_from(["", " "]))
def test_sizes_have_units(number, unit, space):
    factor = {"": 1, "KB": 10**3, "MIB": 2**20, "GB": 10**9, "GIB": 2**30}[unit.upper()]
    assert parse_size(f"{number}{space}{unit}") == pytest.approx(number * factor, rel=1e-12)


@quick
@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.integers(1, 200))
def test_shards_hold_everything_once_in_order_and_within_the_limit(tmp_path_factory, lengths, limit):
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i:02d}": torch.full((length,), float(i)) for i, length in enumerate(lengths)}
    files = write_tensors(tensors, folder, STEM, max_shard_size=limit)
    shards = [read_tensors([file]) for file in files]
    assert [name for shard in shards for name in shard] == list(tensors)
    assert all(sum(tensor.nbytes for tensor in shard.values()) <= limit or len(shard) == 1 for shard in shards)
    assert weight_files(folder, STEM) == files and same(load(folder), tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64,
                                   torch.bool, torch.float64])
def test_types_pass_through(tmp_path, dtype):
    tensor = torch.tensor([[0.0, 1.0], [2.0, -3.0]]).to(dtype)
    write_tensors({"a": tensor, "empty": tensor[:0], "scalar": tensor[0, 0]}, tmp_path, STEM)
    back = load(tmp_path)
    assert back["a"].dtype == dtype and torch.equal(back["a"].double(), tensor.double())
    assert back["empty"].shape == (0, 2) and back["scalar"].shape == ()


def test_tensors_that_share_memory_or_are_not_contiguous(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "tied": base, "head": base[:2], "tail": base[1:], "turned": base.t(),
               "picture": torch.randn(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
               "parameter": nn.Parameter(base), "spread": torch.ones(1).expand(5)}
    write_tensors(tensors, tmp_path, STEM)
    assert same(load(tmp_path), tensors)
    assert tensors["tied"].data_ptr() == base.data_ptr() and tensors["turned"].stride() == (1, 4)  # as before


def test_a_tensor_without_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'b' has no data"):
        write_tensors({"a": torch.ones(1), "b": torch.ones(1, device="meta")}, tmp_path / "new", STEM)
    assert not (tmp_path / "new").exists()


def test_names_are_those_of_diffusers_and_other_files_stay(tmp_path):
    write_tensors(some_tensors(), tmp_path, STEM)
    write_tensors(some_tensors(), tmp_path, STEM, "fp16", max_shard_size="900")
    (tmp_path / "config.json").write_text("{}")
    both = {f"{STEM}.safetensors", f"{STEM}.fp16-00001-of-00002.safetensors", f"{STEM}.fp16-00002-of-00002.safetensors",
            f"{STEM}.safetensors.index.fp16.json", "config.json"}
    assert set(os.listdir(tmp_path)) == both
    index = json.loads((tmp_path / f"{STEM}.safetensors.index.fp16.json").read_text())
    assert index["metadata"] == {"total_size": 1600} and len(index["weight_map"]) == 4


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_an_earlier_save_left_in_another_division_goes(tmp_path, variant):
    other = None if variant else "fp16"
    write_tensors(some_tensors(9), tmp_path, STEM, other, max_shard_size="500")
    kept = contents(tmp_path)
    for i, limit in enumerate(["500", "10GB", "900", "500", "10GB"]):
        written = write_tensors(some_tensors(i), tmp_path, STEM, variant, max_shard_size=limit)
        assert same(load(tmp_path, variant), some_tensors(i))
        found = contents(tmp_path)
        assert kept.items() <= found.items()
        assert len(found) == len(kept) + len(written) + (len(written) > 1)


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_leaves_everything_as_it_was(tmp_path, monkeypatch, failing):
    write_tensors(some_tensors(), tmp_path / "old", STEM, max_shard_size="900")
    before, calls, real = contents(tmp_path), [], weights.save_file

    def save(tensors, path, **options):
        calls.append(path)
        if len(calls) == failing:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        real(tensors, path, **options)

    monkeypatch.setattr(weights, "save_file", save)
    for folder in ("old", "new"):
        calls.clear()
        with pytest.raises(OSError, match="No space left"):
            write_tensors(some_tensors(1), tmp_path / folder, STEM, max_shard_size="500")
    assert contents(tmp_path) == before and os.listdir(tmp_path) == ["old"]
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.skipif(sys.platform != "linux", reason="sets a limit of Linux")
def test_a_disk_that_is_full_is_named(tmp_path):
    import resource

    write_tensors(some_tensors(), tmp_path, STEM)
    before = contents(tmp_path)
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=f"cannot write '.*{STEM}.safetensors'.*File too large"):
            write_tensors({"a": torch.ones(10_000)}, tmp_path, STEM)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before


def test_permissions_are_those_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        files = write_tensors(some_tensors(), tmp_path / "new", STEM, max_shard_size="500")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o750
    for file in [*files, tmp_path / "new" / f"{STEM}.safetensors.index.json"]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o640


# -- Diffusers reads ours, we read its --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.UNet2DModel(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
                                 down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("limit", ["10GB", "50KB"])
def test_files_go_both_ways_between_us_and_diffusers(reference, tmp_path, variant, limit):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    reference.save_pretrained(theirs, variant=variant, max_shard_size=limit)
    tensors = load(theirs, variant)
    assert same(tensors, reference.state_dict())
    write_tensors(tensors, ours, STEM, variant, limit)
    reference.save_config(ours)
    assert sorted(os.listdir(ours)) == sorted(os.listdir(theirs))
    back = type(reference).from_pretrained(ours, variant=variant, use_safetensors=True, low_cpu_mem_usage=False)
    assert same(back.state_dict(), reference.state_dict())
