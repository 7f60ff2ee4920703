"""What comes on top of a checkpoint: LoRA adapters and learned words, known by the content of their files, and found again."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .words import some

OPTIONS = {"adapter": "--lora", "embedding": "--embedding"}
"""The kinds, and how the command line is told of them."""

_OWN = {"adapter": "weight", "embedding": "token"}  # what a recipe keeps of each beside its file
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_MOST = 1000  # times an adapter counts
_ON_HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Addition:
    """An adapter or an embedding that is on this machine.

    Attributes:
        path: its file. noted: what a recipe keeps of it, as `check_noted` has it.
    """

    path: Path
    noted: Mapping[str, Any]


def check_noted(kind: str, noted: Any) -> None:
    """Check what a recipe says of an adapter or an embedding.

    That is `"file"`, the last name of its file or folder, or the name of its Hub repository; the `"revision"` of that;
    `"content"`, the hash of its content; and the `"weight"` of an adapter, or the `"token"` of an embedding, if not its own.
    """
    own = _OWN[kind]
    if not isinstance(noted, dict) or noted.keys() != {"file", "revision", "content", own}:
        raise TypeError(f"a recipe's {kind} has a file, a revision, a content and a {own}, and this is {noted!r:.80}")
    if not isinstance(noted["file"], str) or not isinstance(noted["content"], str):
        raise TypeError(f"a recipe's {kind} has texts for its file and its content, and this is {noted!r:.80}")
    if not re.fullmatch(r"[0-9a-f]{64}", noted["content"]):
        raise ValueError(f"a recipe's {kind} has content {noted['content']!r:.80}, but must have 64 hexadecimal digits")
    if noted["revision"] is not None and not re.fullmatch(r"[0-9a-f]{40}", str(noted["revision"])):
        raise ValueError(f"a recipe's {kind} has revision {noted['revision']!r:.80}, but must have 40 hexadecimal digits or none")
    if kind == "adapter":
        _check_weight(noted["weight"])
    elif not (noted["token"] is None or (isinstance(noted["token"], str) and noted["token"].strip())):
        raise ValueError(f"a recipe's embedding has token {noted['token']!r:.80}, but must have a word or none")


def _check_weight(weight: Any) -> None:
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not number or not abs(weight) <= _MOST:  # NaN is neither
        raise ValueError(f"an adapter's weight is {weight!r:.80}, but must be a number from {-_MOST} to {_MOST}")


# -- as it is typed ------------------------------------------------------------------------------------------------------


def parse_adapter(text: str) -> tuple[str, float]:
    """Name and weight of `NAME[=WEIGHT]`.

    Raises:
        ValueError: the weight is no number, or out of bounds.
    """
    name, told = _divided(text)
    try:
        weight = 1.0 if told is None else float(told)
    except ValueError:
        raise ValueError(f"{text!r}: the weight is {told!r}, but must be a number, as in {name}=0.8") from None
    _check_weight(weight)
    return name, weight


def parse_embedding(text: str) -> tuple[str, str | None]:
    """Name and token of `NAME[=TOKEN]`."""
    name, token = _divided(text)
    return name, token or None


def _divided(text: str) -> tuple[str, str | None]:
    """What stands before and after an equals sign; a file's name may have one too."""
    places = [i for i, character in enumerate(text) if character == "="]
    if not places or os.path.exists(os.path.expanduser(text)):
        return text, None
    place = next((i for i in places if os.path.exists(os.path.expanduser(text[:i]))), places[0])
    return text[:place], text[place + 1:]


def find_adapter(text: str) -> Addition:
    """The adapter that `NAME[=WEIGHT]` names: a file, a folder, or a Hub repository, of which it is fetched."""
    name, weight = parse_adapter(text)
    return _found("adapter", name, weight=weight)


def find_embedding(text: str) -> Addition:
    """The embedding that `NAME[=TOKEN]` names: a file, a folder, or a Hub repository, of which it is fetched."""
    name, token = parse_embedding(text)
    return _found("embedding", name, token=token)


def told_name(name: str) -> str:
    """What a recipe calls a file, a folder or a Hub repository: where files are is nobody's business."""
    path = os.path.expanduser(name)
    return Path(path).resolve().name if os.path.exists(path) else name


def _found(kind: str, name: str, **own: Any) -> Addition:
    path = _locate(kind, name)
    from_hub = not os.path.exists(os.path.expanduser(name)) and re.fullmatch(r"[0-9a-f]{40}", path.parent.name)
    return Addition(path, {"file": told_name(name), "revision": path.parent.name if from_hub else None,
                           "content": _content(path), **own})


def _locate(kind: str, name: str, **where: Any) -> Path:
    """The file of an adapter or an embedding."""
    from .hub import split_options
    from .pipelines.lora_sources import adapter_file

    path = Path(name).expanduser()
    if path.is_file():
        return path
    if not path.is_dir() and (name.endswith(_WEIGHT_FILES) or not _ON_HUB.fullmatch(name)):  # those the Hub is not asked for
        raise FileNotFoundError(
            f"no {kind} {name!r:.200}: there is no such file or folder, and it is no name of a Hub repository ('owner/name')")
    try:
        if kind == "adapter":
            return adapter_file(name, **where)
        return split_options(name, where)[0].file("learned_embeds.safetensors")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no {kind} {name!r}: {error}") from None


def _content(path: Path) -> str:
    """sha256 of a file, and of the config that PEFT has beside it."""
    digest = hashlib.sha256()
    for part in (path, path.with_name("adapter_config.json")):
        if part == path or (path.name == "adapter_model.safetensors" and part.is_file()):
            with part.open("rb") as content:
                while piece := content.read(1 << 20):
                    digest.update(piece)
    return digest.hexdigest()


# -- as a recipe has it --------------------------------------------------------------------------------------------------


def find_noted(
    kind: str, noted: Sequence[Mapping[str, Any]], given: Iterable[str | os.PathLike[str]] = (),
    beside: str | os.PathLike[str] | None = None, allow_download: bool = False,
) -> tuple[list[Addition], list[str]]:
    """The adapters or embeddings that a recipe notes.

    They are looked for by their content among the files and folders `given`, then by their names in the folder `beside` and in
    the cache of Hub files. A recipe comes from anywhere: it leads to no other folder, and asks the Hub only if that is allowed.

    Returns:
        All that are noted, in their order; and a sentence for each that is not what is noted.

    Raises:
        FileNotFoundError: one is not found; says how to give it. ValueError: one is given that is not noted.
    """
    left = [_locate(kind, os.fspath(one)) for one in given]
    option, found, unlike = OPTIONS[kind], {}, []
    contents = {path: _content(path) for path in left}
    for i, one in enumerate(noted):  # those that are right first: another may take what is left
        for path in left:
            if i not in found and contents[path] == one["content"]:
                found[i] = path
                left.remove(path)
    for i, one in enumerate(noted):
        if i in found:
            continue
        other = left.pop(0) if left else _lying_about(kind, one, beside, allow_download)
        if other is None:
            raise FileNotFoundError(f"the picture was made with another file ({kind}, {one['file']!r:.80}), which is not found: "
                                    f"say where it is with {option} FILE")
        found[i] = other
        if (content := _content(other)) != one["content"]:
            unlike.append(f"{str(other)!r} is not the {kind} that the picture was made with: the hash of its content is "
                          f"{content[:12]}…, and the recipe says {one['content'][:12]}… ({option} FILE names another)")
    if left:
        made = f"with {some([repr(one['file'])[:80] for one in noted])}" if noted else "with none"
        raise ValueError(f"{option} {str(left[0])!r} is given, but the picture was made {made}")
    return [Addition(found[i], one) for i, one in enumerate(noted)], unlike


def _lying_about(
    kind: str, noted: Mapping[str, Any], beside: str | os.PathLike[str] | None, allow_download: bool
) -> Path | None:
    """Where a recipe's file is if nobody says so."""
    name = noted["file"]
    plain = name not in ("", "..") and Path(name).name == name and name.isprintable() and not {*"\\:"} & {*name}
    try:
        if plain and beside is not None and os.path.exists(Path(beside) / name):
            return _locate(kind, str(Path(beside) / name))
        if _ON_HUB.fullmatch(name) and not os.path.lexists(name):
            return _locate(kind, name, revision=noted["revision"], local_files_only=not allow_download)
    except FileNotFoundError:
        pass
    return None


# -- on a pipeline ---------------------------------------------------------------------------------------------------------


def add(pipeline: Any, additions: Mapping[str, Sequence[Addition]]) -> None:
    """Let a pipeline use embeddings and adapters, by kind; all of them together.

    Raises:
        ValueError: it takes none, or a file does not fit its models or is damaged; names it.
    """
    adapters, embeddings = additions.get("adapter", ()), additions.get("embedding", ())
    for kind, wanted, method in (("adapter", adapters, "load_lora_weights"), ("embedding", embeddings, "load_textual_inversion")):
        if wanted and not hasattr(pipeline, method):
            raise ValueError(f"a {type(pipeline).__name__} takes no {kind} ({OPTIONS[kind]})")
    for one in embeddings:
        try:
            pipeline.load_textual_inversion(one.path, token=one.noted["token"])
        except ValueError as error:
            raise ValueError(f"{str(one.path)!r}: {error}") from None
    names = [f"adapter_{i}" for i in range(len(adapters))]
    for name, one in zip(names, adapters, strict=True):
        pipeline.load_lora_weights(one.path, adapter_name=name)
    if names:
        pipeline.set_adapters(names, [one.noted["weight"] for one in adapters])
