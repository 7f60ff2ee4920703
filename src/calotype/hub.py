"""From a name to files: a bundled checkpoint, a local folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .files import local_path
from .words import listing, nearest, some

BUNDLED = {f"calotype/{name}": Path(__file__).parent / "checkpoints" / name for name in ("emoji", "cats")}
"""The checkpoints that come with the library, by name."""

_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)  # so "./x", "../x", "/x" and "~/x" are none
_FILES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".json", ".png")  # ends of names that are files', never repositories'
_log = logging.getLogger(__name__)
Choose = Callable[[list[str]], Iterable[str]]


@dataclass(frozen=True)
class Source:
    """Where the files of a checkpoint come from.

    Args:
        name: a name in `BUNDLED`, a local folder, or a Hub repository (`"owner/name"`). A path object is always local, and
            so is what would lie in a local checkpoint: the Hub is not asked for what a folder lacks.
        subfolder: the folder inside it that is meant.
        revision: branch, tag or commit of a Hub repository.
        token: access token for private repositories (default: the one that `hf auth login` stored).
        cache_dir: where Hub files are kept (default: the Hub's own cache).
        local_files_only: take Hub files from the cache and ask no server; `HF_HUB_OFFLINE=1` does the same.
        force_download: fetch Hub files anew even when the cache has them.
    """

    name: str | os.PathLike[str]
    subfolder: str | None = None
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "subfolder", str(self.subfolder or "").replace("\\", "/").strip("/") or None)
        if self.cache_dir is not None:
            object.__setattr__(self, "cache_dir", local_path(self.cache_dir))

    @property
    def local(self) -> Path | None:
        """The folder on this machine, or `None` for a Hub repository."""
        name = str(self.name)
        folder = BUNDLED.get(name) or local_path(name)
        if folder.is_dir():
            return folder
        if folder.is_file():
            raise NotADirectoryError(f"{name!r} is a file; a checkpoint is a folder")
        if (folder.parent / "model_index.json").is_file():
            held = sorted(path.name for path in folder.parent.glob("*") if path.is_dir())
            raise FileNotFoundError(f"{str(folder.parent)!r} is a checkpoint on this machine, which has no {folder.name!r}"
                                    f"{nearest(folder.name, held)} (there is {some(held) or 'no folder'})")
        if name in BUNDLED or not _REPOSITORY.fullmatch(name) or name.endswith(_FILES):
            raise self._not_found("it cannot be the name of a Hub repository ('owner/name')")
        if isinstance(self.name, os.PathLike):
            raise self._not_found("a path object is no name of a Hub repository")
        return None

    def file(self, filename: str) -> Path:
        """The local path of one file, fetched if need be."""
        inside = f"{self.subfolder}/{filename}" if self.subfolder else filename
        root = self.local or self._fetch(lambda names: [inside] if inside in names else [], f"the file {inside!r}")
        if not (root / inside).is_file():
            held = sorted(path.name for path in (root / inside).parent.glob("*"))
            raise FileNotFoundError(f"{str(self.name)!r} has no file {inside!r} (there is {some(held) or 'nothing'})")
        return root / inside

    def folder(self, choose: Choose) -> Path:
        """The local folder, the root or the subfolder that is set, with the files in it that `choose` picks.

        `choose` is given the names of all files in that folder, relative to it, and returns some of them. Of a local
        folder it is not asked.
        """
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        root = self.local or self._fetch(lambda names: [prefix + name for name in choose(
            [name.removeprefix(prefix) for name in names if name.startswith(prefix)])])
        folder = root / (self.subfolder or "")
        if not folder.is_dir():
            held = sorted(path.name for path in root.glob("*") if path.is_dir())
            near = nearest(self.subfolder, held) or f" (there is {some(held) or 'none'})"
            raise FileNotFoundError(f"{str(self.name)!r} has no folder {self.subfolder!r}{near}")
        return folder

    def _fetch(self, choose: Choose, needed: str = "a file that is needed") -> Path:
        """Bring the chosen files of a Hub repository into the cache, and return the root of the snapshot.

        One question to the Hub is enough where the cache has them; with no answer, what the cache has is all there is.
        """
        from huggingface_hub import HfApi, errors, snapshot_download

        cached = None
        with suppress(FileNotFoundError):
            cached = self._from_hub(snapshot_download, local_files_only=True, allow_patterns=[])
        try:
            if self.local_files_only:
                raise errors.OfflineModeIsEnabled
            info = HfApi(token=self.token).model_info(str(self.name), revision=self.revision, timeout=10)
            asked, commit, names = "the Hub", info.sha, [file.rfilename for file in info.siblings or []]
        except Exception as error:
            if cached is None or self.force_download or isinstance(error, errors.RevisionNotFoundError):
                raise self._explained(error) from error
            if not isinstance(error, errors.OfflineModeIsEnabled):
                _log.warning("%r comes from the cache, since the Hub does not give it (%s)", self.name, _brief(error))
            asked, commit = "the cache of Hub files", cached.name
            names = [path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file()]
        wanted = list(choose(names))
        if not wanted:
            raise self._not_found(f"{asked} has it without {needed} (there is {some(sorted(names)) or 'nothing'})")
        if cached and cached.name == commit and not self.force_download and all((cached / n).is_file() for n in wanted):
            return cached
        return self._from_hub(snapshot_download, allow_patterns=[glob.escape(name) for name in wanted])

    def _from_hub(self, download: Callable[..., str], **options: Any) -> Path:
        try:
            return Path(download(str(self.name), revision=self.revision, token=self.token, cache_dir=self.cache_dir,
                                 force_download=self.force_download, **options))
        except Exception as error:  # of httpx, of the Hub, of the operating system: whatever stands in the way
            if isinstance(error, OSError) and error.errno:
                raise  # this machine's fault: no room on the disk, no permission
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> FileNotFoundError:
        from huggingface_hub import constants, errors

        return self._not_found(next(reason for kind, reason in (
            (errors.RevisionNotFoundError, "the Hub has no such revision of it"),
            (errors.GatedRepoError, "the Hub wants its conditions accepted there, and then a `token`"),
            (errors.RepositoryNotFoundError, "the Hub has no such repository, or a private one that needs a `token`"),
            (Exception, "not in the cache of Hub files, and asking the Hub is switched off"
             if self.local_files_only or constants.HF_HUB_OFFLINE else f"not to be had from the Hub ({_brief(error)})"),
        ) if isinstance(error, kind)))

    def _not_found(self, on_the_hub: str) -> FileNotFoundError:
        name, parts = str(self.name), {"subfolder": self.subfolder, "revision": self.revision}
        meant = "".join(f", {word} {value!r}" for word, value in parts.items() if value)
        return FileNotFoundError(
            f"no checkpoint {name!r}{meant}: not a bundled name ({listing(BUNDLED)}{nearest(name, BUNDLED)}), "
            f"not a folder on this machine, and {on_the_hub}")


def split_options(name: str | os.PathLike[str], options: dict[str, Any]) -> tuple[Source, dict[str, Any]]:
    """Take the options of a `Source` out of keyword arguments: the source, and what is left."""
    known = {field.name: options[field.name] for field in fields(Source)[1:] if field.name in options}
    return Source(name, **known), {key: value for key, value in options.items() if key not in known}


def _brief(error: BaseException) -> str:
    return str(error.__cause__ or error).strip().split("\n")[0].rstrip(".") or type(error).__name__
