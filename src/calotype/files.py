"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_unfinished: set[Path] = set()  # the scratch files and folders that there are now


def local_path(path: str | os.PathLike[str]) -> Path:
    """The path as this machine has it: `~` is the home folder, wherever the library reads or writes."""
    return Path(os.path.expanduser(path))


@contextmanager
def staged_folder(
    folder: str | os.PathLike[str], stale: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """A scratch folder inside `folder` whose files move into `folder`, each by one rename, when the block ends well.

    After an error nothing of the block is left and what `folder` held before is untouched. The scratch folder is
    inside, and not beside, since the folder may be a mounted volume, and a rename cannot cross file systems. The JSON
    that is replaced goes first, and the new comes last, deepest first: an index never names a file that is not there yet,
    and a process that is killed in between leaves what cannot be loaded, not a mixture of two saves.

    Args:
        folder: made if need be.
        stale: the files that this save replaces as a set (weights in other shards, say), by their paths in `folder`.
            Such files in the folders written to, but not written by the block, are removed in the end.
    """
    folder = local_path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"cannot save to {str(folder)!r}: it is a file, and a folder is needed")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    scratch = folder / f".{uuid.uuid4().hex}.partial"
    _unfinished.add(scratch)
    try:
        scratch.mkdir(parents=True)
        usual = _usual_mode(scratch)
        yield scratch
        targets = {path: folder / path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file()}
        order = sorted(targets, key=lambda path: (path.suffix == ".json", -len(path.parts), path.name))
        indices = [path for path in order if path.suffix == ".json"]
        for path in indices if len(order) > 1 else ():
            targets[path].unlink(missing_ok=True)
        for path in order:
            if path in indices[:1]:
                _remove_stale(folder, targets.values(), stale)
            targets[path].parent.mkdir(parents=True, exist_ok=True)
            path.chmod(usual)  # safetensors makes private files; what users save is theirs to share
            os.replace(path, targets[path])
        _remove_stale(folder, targets.values(), stale)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _unfinished.discard(scratch)
        for path in made:  # empty ones only: after a good end they are not
            with suppress(OSError):
                path.rmdir()


def _remove_stale(folder: Path, kept: Collection[Path], stale: Callable[[str], bool]) -> None:
    for parent in {path.parent for path in kept}:
        for path in parent.iterdir() if parent.is_dir() else ():
            if stale(path.relative_to(folder).as_posix()) and path.is_file() and path not in kept:
                path.unlink()


@contextmanager
def staged_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch path beside `path`, of the same suffix, that replaces it when the block ends well."""
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    usual = _usual_mode(path.parent)
    _unfinished.add(scratch)
    try:
        yield scratch
        scratch.chmod(usual)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
        _unfinished.discard(scratch)


def remove_unfinished() -> None:
    """Remove what blocks of `staged_folder` and `staged_file` hold now, for a process that ends before they do."""
    for path in tuple(_unfinished):
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink()


def check_folder(folder: str | os.PathLike[str], called: str) -> None:
    """Find out before the work whether files can be written into a folder, which need not be there. Nothing of it stays.

    Raises:
        OSError: they cannot; says so of what the folder is `called`.
    """
    absolute = Path(folder).absolute()
    there = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=there))
    except OSError as error:
        where = "it" if there == absolute else repr(str(there))
        why = f"{where} is a file" if there.is_file() else f"into {where} nothing can be written ({error.strerror})"
        raise type(error)(f"{called} is {str(folder)!r}, but {why}") from None


def _usual_mode(folder: Path) -> int:
    """The permissions of a new file. Found by making one: asking for the umask means changing it, for all threads."""
    probe = folder / f".{uuid.uuid4().hex}"
    _unfinished.add(probe)
    try:
        probe.touch(exist_ok=False)
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
        _unfinished.discard(probe)


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in `path`; a file that holds none is an error that names it."""
    try:
        content = json.loads(local_path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or a million brackets
        raise ValueError(f"{str(path)!r} is damaged: it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a JSON {type(content).__name__}, and an object is needed")
    return content


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write `content` as the Diffusers folder format has it: sorted keys, two spaces, a final newline."""
    text = to_json(content)
    with staged_file(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def to_json(content: Mapping[str, Any]) -> str:
    """`content` as JSON text; paths, dtypes and NumPy or torch numbers become what JSON knows."""
    return json.dumps(content, indent=2, sort_keys=True, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, torch tensors
        return value.tolist()
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
