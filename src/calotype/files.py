"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def staged_folder(
    folder: str | os.PathLike[str], stale: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """A scratch folder inside `folder` whose files move into `folder`, each by one rename, when the block ends well.

    After an error nothing of the block is left and what `folder` held before is untouched. The scratch folder is
    inside, and not beside, since the folder may be a mounted volume, and a rename cannot cross file systems. Files
    move deepest first and JSON last, so that an index never names a file that is not there yet.

    Args:
        folder: made if need be.
        stale: the file names that this save replaces as a set (weights in other shards, say). Such files in the
            folders written to, but not written by the block, are removed in the end.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"cannot save to {str(folder)!r}: it is a file, and a folder is needed")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    scratch = folder / f".{uuid.uuid4().hex}.partial"
    try:
        scratch.mkdir(parents=True)
        usual = _usual_mode(scratch)
        yield scratch
        files = [path for path in scratch.rglob("*") if path.is_file()]
        targets = {path: folder / path.relative_to(scratch) for path in files}
        for path in sorted(files, key=lambda path: (-len(path.parts), path.suffix == ".json", path.name)):
            targets[path].parent.mkdir(parents=True, exist_ok=True)
            path.chmod(usual)  # safetensors makes private files; what users save is theirs to share
            os.replace(path, targets[path])
        for parent in {target.parent for target in targets.values()}:
            for path in parent.iterdir():
                if stale(path.name) and path.is_file() and path not in targets.values():
                    path.unlink()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for path in made:  # empty ones only: after a good end they are not
            with suppress(OSError):
                path.rmdir()


@contextmanager
def staged_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A scratch path beside `path`, of the same suffix, that replaces it when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    usual = _usual_mode(path.parent)
    try:
        yield scratch
        scratch.chmod(usual)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


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
    probe.touch(exist_ok=False)
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return mode


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in `path`; a file that holds none is an error that names it."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
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
