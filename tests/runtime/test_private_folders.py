"""Planted code: what somebody else can have put into a cache is neither unpickled nor loaded."""

from __future__ import annotations

import logging
import os
import stat
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from calotype.runtime import compiled, private_folders
from calotype.runtime.private_folders import Untrusted, check_folder, compiler_folder, folder, keep_triton_private, read

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners here")
SOMEBODY = 12345


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the caches, and nothing said yet."""
    monkeypatch.setattr(private_folders, "_reported", set())
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "caches" / "calotype"))
    return tmp_path / "caches" / "calotype"


def give(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it somebody else's: really, where that is allowed; else by what is told of it."""
    if os.getuid() == 0:
        os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)
        return
    own, name = path.lstat(), str(path)

    def told(found: os.stat_result) -> os.stat_result:
        same = (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)
        return os.stat_result((*found[:4], SOMEBODY, *found[5:])) if same else found

    for function in ("stat", "lstat", "fstat"):
        plain = getattr(os, function)
        monkeypatch.setattr(os, function, lambda *args, plain=plain, **kwargs: told(plain(*args, **kwargs)))
    assert os.lstat(name).st_uid == SOMEBODY


def test_a_private_folder_is_made_for_this_user_alone(cache: Path) -> None:
    old = os.umask(0o002)
    try:
        made = folder("compiled")
    finally:
        os.umask(old)
    assert made == cache / "compiled"
    assert [stat.S_IMODE(each.stat().st_mode) for each in (made, cache, cache.parent)] == [0o700] * 3
    (made / "code.bin").write_bytes(b"code")
    assert folder("compiled") == made and read(made / "code.bin") == b"code"


OTHERS = {"group": stat.S_IWGRP, "world": stat.S_IWOTH}


@pytest.mark.parametrize("which", ["compiled", "calotype", "caches"])
@pytest.mark.parametrize("who", OTHERS)
def test_a_folder_that_others_can_write_is_not_used(cache: Path, which: str, who: str, caplog: pytest.LogCaptureFixture) -> None:
    made = folder("compiled")
    assert made is not None
    (made / "code.bin").write_bytes(b"code")
    open_one = {"compiled": made, "calotype": cache, "caches": cache.parent}[which]
    open_one.chmod(0o700 | OTHERS[who])
    with pytest.raises(Untrusted, match=f"others can write '{open_one}'"):
        read(made / "code.bin")
    assert folder("compiled") is None and folder("compiled") is None
    assert [record.message for record in caplog.records if str(open_one) in record.message] == [
        f"compiled code is not kept on disk: others can write {str(open_one)!r} (see `chmod go-w`)"]


def test_a_shared_folder_where_nobody_can_replace_what_is_ours(cache: Path) -> None:
    made = folder("compiled")
    assert made is not None
    cache.parent.chmod(0o1777)  # as /tmp is
    check_folder(made)
    made.chmod(0o1777)
    with pytest.raises(Untrusted, match="others can write"):
        check_folder(made)


@pytest.mark.parametrize("which", ["compiled", "calotype", "caches"])
def test_a_folder_of_somebody_else_is_not_used(cache: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was made first, by a name that can be guessed."""
    made = folder("compiled")
    assert made is not None
    (made / "code.bin").write_bytes(b"code")
    give({"compiled": made, "calotype": cache, "caches": cache.parent}[which], monkeypatch)
    with pytest.raises(Untrusted, match="belongs to another user"):
        read(made / "code.bin")
    assert folder("compiled") is None


def test_links(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own may lead to a cache, and nothing may lead from it."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "code.bin").write_bytes(b"code")
    cache.parent.mkdir(mode=0o700)
    cache.symlink_to(elsewhere)
    made = folder("compiled")
    assert made is not None
    (made / "code.bin").symlink_to(elsewhere / "code.bin")
    with pytest.raises(Untrusted, match=r"code\.bin' is a link"):
        read(made / "code.bin")
    (cache / "linked").symlink_to(elsewhere)
    assert folder("linked") is None
    with pytest.raises(Untrusted, match="is no folder"):
        read(cache / "linked" / "code.bin")
    give(cache, monkeypatch)
    with pytest.raises(Untrusted, match=f"'{cache}' belongs to another user"):
        check_folder(made)


def test_links_that_lead_by_a_folder_of_others(cache: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "within").mkdir(parents=True)
    shared.chmod(0o777)
    cache.parent.mkdir()
    cache.symlink_to("../shared/within")
    assert folder("compiled") is None
    cache.unlink()
    cache.symlink_to(cache.name)
    assert folder("compiled") is None  # it leads to itself


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write_is_not_read(cache: Path, mode: int) -> None:
    made = folder("compiled")
    assert made is not None
    (made / "code.bin").write_bytes(b"code")
    (made / "code.bin").chmod(mode)
    with pytest.raises(Untrusted, match="others can write"):
        read(made / "code.bin")


def test_a_file_of_somebody_else_is_not_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder("compiled")
    assert made is not None
    (made / "code.bin").write_bytes(b"code")
    give(made / "code.bin", monkeypatch)
    with pytest.raises(Untrusted, match=r"code\.bin' belongs to another user"):
        read(made / "code.bin")
    os.mkfifo(made / "pipe")
    with pytest.raises(Untrusted, match="is no file"):
        read(made / "pipe")  # and nobody waits for what may come through it


def test_a_file_is_checked_as_it_was_opened(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever puts another file there after the check has come too late."""
    made = folder("compiled")
    assert made is not None
    (made / "code.bin").write_bytes(b"code")
    (tmp_path / "planted").write_bytes(b"planted")
    plain = os.fstat

    def exchanged(handle: int) -> os.stat_result:
        found = plain(handle)
        if (tmp_path / "planted").exists():
            os.replace(tmp_path / "planted", made / "code.bin")
        return found

    monkeypatch.setattr(os, "fstat", exchanged)
    assert read(made / "code.bin") == b"code" and not (tmp_path / "planted").exists()


def test_without_a_home_there_is_no_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("CALOTYPE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert folder("compiled") == tmp_path / "xdg" / "calotype" / "compiled"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert folder("compiled") == tmp_path / "home" / ".cache" / "calotype" / "compiled"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert folder("compiled") is None and folder("compiled") is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CALOTYPE_CACHE", str(tmp_path / "file"))
    assert folder("compiled") is None
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "there is no home folder", f"[Errno 20] Not a directory: {str(tmp_path / 'file' / 'compiled')!r}"]


def test_on_windows_a_users_own_folder_is_private(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "getuid")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    made = folder("compiled")
    assert made == cache / "compiled"
    (made / "code.bin").write_bytes(b"code")
    assert read(made / "code.bin") == b"code"
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "another")
    assert folder("compiled") is None


# -- used ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A compiler that is quick: it notes its environment; and what is loaded."""
    import torch._inductor
    from torch._inductor import standalone_compile

    seen: list[Any] = []

    def compile_graph(graph: Any, given: Any, dynamic_shapes: str) -> Any:
        seen.append({name: os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")} | {
            name: getattr(sys.modules["torch._inductor.codecache"], name, None) for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR")})
        return _Made(graph)

    def load(path: str, format: str) -> Any:
        seen.append(Path(path).read_bytes())
        return _Made(None)

    monkeypatch.setattr(torch._inductor, "standalone_compile", compile_graph)
    monkeypatch.setattr(sys.modules[standalone_compile.__module__].CompiledArtifact, "load", staticmethod(load))
    return seen


class _Made:
    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def __call__(self, *tensors: torch.Tensor) -> Any:
        return self.graph(*tensors) if self.graph is not None else (tensors[0].tanh(),)

    def save(self, path: str, format: str) -> None:
        Path(path).write_bytes(b"honest")


def compile_it() -> None:
    x = torch.ones(2, 2)
    with torch.no_grad():
        compiled.Compiled(lambda: x.tanh())


@pytest.mark.parametrize("attack", ["owner", "group", "link", "folder", "root"])
def test_planted_code_is_not_loaded(
    attack: str, cache: Path, compiler: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    compile_it()
    compile_it()
    assert len(compiler) == 2 and compiler[1] == b"honest"  # what is this user's alone is used
    (code,) = (cache / "compiled").iterdir()
    assert stat.S_IMODE(code.stat().st_mode) == 0o600
    code.write_bytes(b"planted")
    if attack == "link":
        os.replace(code, tmp_path / "planted")
        code.symlink_to(tmp_path / "planted")
    elif attack == "owner":
        give(code, monkeypatch)
    else:
        {"group": code, "folder": code.parent, "root": cache}[attack].chmod(0o775)
    compile_it()
    assert b"planted" not in compiler and len(compiler) == 3 and isinstance(compiler[2], dict)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_compilers_keep_their_own_in_private_folders(cache: Path, compiler: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "torchinductor_somebody"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    before = dict(os.environ)
    compile_it()
    assert os.environ == before
    told = [value for value in compiler[0].values() if value is not None]
    assert len(told) >= 2 and all(Path(value).is_relative_to(cache) for value in told)
    for name in ("inductor", "triton"):
        check_folder(cache / name)


def test_without_a_private_folder_compilers_have_one_for_the_process(
    cache: Path, compiler: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    private_folders._for_this_process.cache_clear()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compile_it()
    private_folders._for_this_process.cache_clear()
    (made,) = tmp_path.glob("calotype-*")
    told = [Path(value) for value in compiler[0].values() if value is not None]
    assert all(value.is_relative_to(made) for value in told) and stat.S_IMODE(made.stat().st_mode) == 0o700
    assert not [path for path in cache.rglob("*") if path.is_file()] and len(compiler) == 1


def test_triton_by_itself(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "mine"))
    keep_triton_private()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "mine")
    (tmp_path / "mine").chmod(0o777)
    keep_triton_private()
    assert os.environ["TRITON_CACHE_DIR"] == str(cache / "triton") == str(compiler_folder("triton"))
    monkeypatch.delenv("TRITON_CACHE_DIR")
    keep_triton_private()
    assert os.environ["TRITON_CACHE_DIR"] == str(cache / "triton")


def test_the_compiler_is_as_it_was_afterwards(cache: Path) -> None:
    from torch._inductor import codecache

    before = {name: value for name, value in vars(codecache).items() if name.startswith("_HEADER")}
    with pytest.raises(ZeroDivisionError), private_folders.compilers_kept_private():
        raise ZeroDivisionError
    assert {name: value for name, value in vars(codecache).items() if name.startswith("_HEADER")} == before
    empty = ModuleType("codecache")  # of a release without such headers
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr("torch._inductor.codecache", empty, raising=True)
        with private_folders.compilers_kept_private():
            assert not vars(empty).get("_HEADER_DIR")
