"""Folders for compiled code that nobody but this user can have put anything into.

Compiled code runs when it is read. So it is read only from a folder that belongs to this user, that nobody else can write, and
that nobody else can put another in the place of; and PyTorch's compiler and Triton, which keep code of their own, are given such
folders too: by themselves they would use a name in the folder for temporary files, which anybody can guess and make first.
"""

from __future__ import annotations

import atexit
import errno
import functools
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .torch_private import inductor_headers_in

_log = logging.getLogger(__name__)
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40


class Untrusted(Exception):
    """Somebody else can have put something there; the message says where and how."""


def root() -> Path | None:
    """`CALOTYPE_CACHE`, or `calotype` in the user's folder for caches; `None` if there is no telling where that is."""
    if own := os.environ.get("CALOTYPE_CACHE"):
        return Path(own).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(caches):  # others are to be ignored, says the specification
        return Path(caches) / "calotype"
    try:
        return Path.home() / ".cache" / "calotype"
    except RuntimeError:
        return None


def folder(name: str) -> Path | None:
    """The private folder of that name in `root()`, made if need be; `None`, and a line in the log, where there cannot be one."""
    base = root()
    if base is None:
        _report("there is no home folder")
        return None
    path = base / name
    try:
        for missing in [each for each in (path, *path.parents) if not os.path.lexists(each)][::-1]:
            with suppress(FileExistsError):
                missing.mkdir(mode=0o700)
        check_folder(path)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it cannot be written", str(path))
    except (OSError, Untrusted) as error:
        _report(str(error))
        return None
    return path


def check_folder(path: Path) -> None:
    """Raise `Untrusted` unless a folder is this user's alone, and so is the way to it."""
    if not hasattr(os, "getuid"):  # Windows: a user's own folder is closed to others, and of others there is no telling
        if not path.resolve().is_relative_to(Path.home().resolve()) or path.is_symlink():
            raise Untrusted(f"{str(path)!r} is not inside the home folder")
        return
    for step in _way(path.absolute()):
        found = os.lstat(step)
        if found.st_uid not in (os.getuid(), 0):
            raise Untrusted(f"{str(step)!r} belongs to another user")
        shared = found.st_mode & _OTHERS_WRITE and not stat.S_ISLNK(found.st_mode)
        if shared and not found.st_mode & stat.S_ISVTX:  # where that is set, nobody can replace what is another's
            raise Untrusted(f"others can write {str(step)!r} (see `chmod go-w`)")
    last = os.lstat(path)
    if not stat.S_ISDIR(last.st_mode):
        raise Untrusted(f"{str(path)!r} is no folder")
    _check_own(last, path)


def read(path: Path) -> bytes:
    """The content of a file in a private folder.

    What is checked is what was opened: nobody can put another file there in between.

    Raises:
        Untrusted: it is not this user's, others can write it, or it is no plain file.
        OSError: it cannot be read.
    """
    check_folder(path.parent)
    try:
        handle = os.open(path, os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_BINARY", "O_NOFOLLOW", "O_NONBLOCK")))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise Untrusted(f"{str(path)!r} is a link") from None
        raise
    with open(handle, "rb") as content:
        found = os.fstat(content.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise Untrusted(f"{str(path)!r} is no file")
        _check_own(found, path)
        return content.read()


def _check_own(found: os.stat_result, path: Path) -> None:
    if hasattr(os, "getuid"):
        if found.st_uid != os.getuid():
            raise Untrusted(f"{str(path)!r} belongs to another user")
        if found.st_mode & _OTHERS_WRITE:
            raise Untrusted(f"others can write {str(path)!r} (see `chmod go-w`)")


def _way(path: Path) -> Iterator[Path]:
    """Every folder and every link that is passed on the way to an absolute path, and itself."""
    here, links = Path(path.anchor), 0
    coming = list(path.parts[:0:-1])
    yield here
    while coming:
        part = coming.pop()
        if part == os.pardir:
            here = here.parent
            continue
        step = here / part
        yield step
        if not step.is_symlink():
            here = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = Path(os.readlink(step))
        here = Path(target.anchor) if target.is_absolute() else here
        coming += target.parts[:0:-1] if target.is_absolute() else target.parts[::-1]


_reported: set[str] = set()


def _report(reason: str) -> None:
    """Say once why nothing is kept."""
    if reason not in _reported:
        _reported.add(reason)
        _log.warning("compiled code is not kept on disk: %s", reason)


# -- the compilers' own -----------------------------------------------------------------------------------------------------

_lock = threading.RLock()


@functools.cache
def _for_this_process() -> Path:
    """A folder that ends with the process; its name cannot be guessed."""
    path = Path(tempfile.mkdtemp(prefix="calotype-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def compiler_folder(name: str) -> Path:
    """A private folder for what a compiler keeps: for good, or else as long as the process lives."""
    path = folder(name) or _for_this_process() / name
    path.mkdir(mode=0o700, exist_ok=True)
    return path


@contextmanager
def compilers_kept_private() -> Iterator[None]:
    """A block in which PyTorch's compiler, and Triton under it, keep their files in private folders.

    They take them from the environment, which all threads share: one block at a time.
    """
    inductor = compiler_folder("inductor")
    told = {"TORCHINDUCTOR_CACHE_DIR": str(inductor), "TRITON_CACHE_DIR": str(compiler_folder("triton"))}
    with _lock, _replaced(os.environ, told), inductor_headers_in(inductor / "headers"):
        yield


@contextmanager
def _replaced(entries: MutableMapping[str, Any], by: Mapping[str, Any]) -> Iterator[None]:
    """A block in which a mapping has other entries; those that it had, or lacked, are as before afterwards."""
    before = {name: entries[name] for name in by if name in entries}
    entries.update(by)
    try:
        yield
    finally:
        for name in by:
            if name in before:
                entries[name] = before[name]
            else:
                entries.pop(name, None)


def keep_triton_private() -> None:
    """Have Triton keep what it compiles in a private folder from now on, wherever it is not told one that is private already."""
    with _lock:
        told = os.environ.get("TRITON_CACHE_DIR")
        if told:
            with suppress(OSError, Untrusted):
                Path(told).mkdir(mode=0o700, parents=True, exist_ok=True)
                check_folder(Path(told))
                return
        os.environ["TRITON_CACHE_DIR"] = str(compiler_folder("triton"))
