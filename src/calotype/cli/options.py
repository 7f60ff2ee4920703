"""What can be typed after more than one command, and how it is checked."""

from __future__ import annotations

import copy
import functools
import glob
import inspect
import os
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer import Option

from ..additions import Addition, find_adapter, find_embedding, parse_adapter
from ..hub import BUNDLED
from ..pipelines.quality import QUALITIES
from ..recipe import DTYPES, SYNTAXES
from ..registry import SCHEDULERS
from ..scheduler_names import SHORT_NAMES, meaning
from ..words import listing, nearest

FORMATS = (".png", ".jpg", ".jpeg", ".webp")
CHECKPOINT = "A bundled name, a folder, or a Hub repository."
DEFAULT_MODEL = "calotype/emoji"
OFFLOADS = ("model", "layers")
_DEVICES = ("auto", "cpu", "cuda", "cuda:1", "mps")
_NATURAL = "the model's, or the given picture's"


def one_of(what: str, allowed: Sequence[str], read: Callable[[Any], str] = str) -> Callable[[Any], Any]:
    """A check of an option, that what `read` sees in it is one of `allowed`."""

    def check(given: Any) -> Any:
        if given is not None and read(given) not in allowed:
            raise typer.BadParameter(f"{what} is {read(given)!r}, but must be {listing(allowed)}{nearest(read(given), allowed)}")
        return given

    return check


def starting(words: Iterable[str], folders: bool = False) -> Callable[[str], list[str]]:
    """What a shell offers for the beginning of a word: those of `words`, and, if wanted, folders that there are."""

    def offered(incomplete: str) -> list[str]:
        found = [word for word in words if word.startswith(incomplete)]
        if folders and (incomplete or not found):
            found += sorted(glob.glob(f"{glob.escape(incomplete)}*/"))
        return found

    return offered


def choice(what: str, allowed: Sequence[str], **named: Any) -> Any:
    """An option that is one of a few words."""
    return Option(callback=one_of(what, allowed), autocompletion=starting(allowed), **named)


def _solver(given: str | None) -> str | None:
    try:
        return given and meaning(given) and given
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _device(given: str | None) -> str | None:
    if given is not None and not re.fullmatch(r"(auto|cpu|mps|cuda(:\d{1,3})?)", given, re.ASCII):
        raise typer.BadParameter(f"device is {given!r:.80}, but must be {listing(_DEVICES)}{nearest(given, _DEVICES)}")
    return given


def file_name(given: Path | None) -> Path | None:
    """A check of a file to be written: that its extension says a format."""
    if given is not None and given.is_dir() and not given.suffix:
        raise typer.BadParameter(f"{str(given)!r} is a folder; name a file in it, such as {str(given / 'picture.png')!r}")
    return saved_as(given)


def text(given: str | None) -> str | None:
    """A check that what is typed is text. Where the locale is not one of UTF-8, what is typed may be in UTF-8 all the same."""
    try:
        if given:
            given.encode()
        return given
    except UnicodeEncodeError:  # bytes that Python could not decode
        pass
    try:
        return os.fsencode(str(given)).decode()
    except UnicodeError:
        raise typer.BadParameter(f"{given!r:.80} is no text in UTF-8") from None


def _weighted(given: list[str] | None) -> list[str] | None:
    for one in given or ():
        try:
            parse_adapter(one)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return given


saved_as = one_of("the file's extension", FORMATS, lambda path: path.suffix.lower())

Device = Annotated[str | None, Option(
    callback=_device, autocompletion=starting(_DEVICES), help=f"{', '.join(_DEVICES)}.", show_default="auto: the best there is")]
Overwrite = Annotated[bool, Option("--overwrite", "-f", help="Replace files that exist.")]
Offload = Annotated[str | None, choice("offload", OFFLOADS, help=(
    f"Keep weights on the CPU until they are used, a model or a few layers at a time: {', '.join(OFFLOADS)}. "
    "Needs less memory on the accelerator; the picture stays the same."))]
Variant = Annotated[str | None, Option(help="The weights of this variant (fp16) where there are such.")]
Revision = Annotated[str | None, Option(help="Branch, tag or commit of a Hub repository.")]
Steps = Annotated[int | None, Option(
    min=1, max=10_000, help="More is slower and, up to a point, better.", show_default="the pipeline's, mostly 50")]
Strength = Annotated[float, Option(help="How much of it is made anew: above 0, to 1.")]
Dtype = Annotated[str | None, choice("dtype", DTYPES, help=f"{', '.join(DTYPES)}.", show_default="float16 on cuda, else float32")]
Model = Annotated[str, Option(help=CHECKPOINT, autocompletion=starting(BUNDLED, folders=True))]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint, and how it runs."""

    model: Model
    scheduler: Annotated[str | None, Option(
        callback=_solver, autocompletion=starting([*SHORT_NAMES, *SCHEDULERS]), help=(
            "Another solver, by class or short name; see `calotype schedulers`."))] = None
    device: Device = None
    dtype: Dtype = None
    variant: Variant = None
    revision: Revision = None
    offload: Offload = None
    compiled: Annotated[bool, Option("--compile", help=(
        "Compile the steps: the first picture takes a minute longer, others are quicker. Pictures change by rounding."))] = False

    def additions(self) -> dict[str, list[Addition]]:
        """The adapters and embeddings that it is used with, found, by kind."""
        return {}


@dataclass(frozen=True, kw_only=True)
class TextSource(Source):
    """The checkpoint, and how it runs."""

    model: Model = DEFAULT_MODEL
    lora: Annotated[list[str] | None, Option(callback=_weighted, metavar="NAME_OR_FILE[=WEIGHT]", help=(
        "A LoRA adapter: a file, a folder or a Hub repository, and how much it counts. May be repeated."))] = None
    embedding: Annotated[list[str] | None, Option(metavar="NAME_OR_FILE[=TOKEN]", help=(
        "A learned word (textual inversion): a file, a folder or a Hub repository, and what to call it in prompts. "
        "May be repeated."), show_default=False)] = None

    def additions(self) -> dict[str, list[Addition]]:
        return {"adapter": [find_adapter(one) for one in self.lora or ()],
                "embedding": [find_embedding(one) for one in self.embedding or ()]}


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The prompt."""

    steps: Steps = None
    guidance: Annotated[float | None, Option(
        help="How much the prompt counts; up to 1 not at all, which is faster.",
        show_default="the pipeline's, mostly 7.5")] = None
    negative: Annotated[str, Option(callback=text, help="What should not be seen.")] = ""
    syntax: Annotated[str | None, choice("syntax", SYNTAXES, help=(
        "How weights are written in prompts: a1111, as (red:1.3), or compel, as red++."), show_default="there are none")] = None
    wildcards: Annotated[bool, Option("--wildcards", help="Of {red|blue}, each picture has one, by its seed.")] = False
    long: Annotated[bool, Option("--long", help="Read prompts to their end, in chunks, where the model would cut them.")] = False
    clip_skip: Annotated[int | None, Option(min=0, max=100, help="Leave out that many last layers of the text encoder.")] = None
    quality: Annotated[str, choice("quality", QUALITIES, help=(
        f"{', '.join(QUALITIES)}: how much may be approximated, to be quicker."))] = "exact"

    def read(self, prompt: str, seed: int) -> str:
        """The prompt of the picture with this seed."""
        if not self.wildcards:
            return prompt
        from ..prompts.wildcards import expand_wildcards

        return expand_wildcards(prompt, seed)

    def facts(self) -> dict[str, Any]:
        """What a recipe says of them; what is the pipeline's to say is left out."""
        given = {"steps": self.steps, "guidance": self.guidance}
        return {"negative_prompt": self.negative, "prompt_syntax": self.syntax, "long_prompts": self.long,
                "clip_skip": self.clip_skip, "quality": self.quality,
                **{name: value for name, value in given.items() if value is not None}}


@dataclass(frozen=True, kw_only=True)
class Saving:
    """The pictures."""

    output: Annotated[Path | None, Option("--output", "-o", callback=file_name, help=(
        f"Where to save it: {', '.join(FORMATS)}. PNG keeps the recipe."), show_default="NAME-SEED.png")] = None
    grid: Annotated[Path | None, Option(callback=file_name, help=(
        "Save a contact sheet of all pictures here; without -o or --out-dir, nothing else."))] = None
    seed: Annotated[int | None, Option(
        min=0, max=2**52, help="Picture i has the seed SEED + i.", show_default="random")] = None
    count: Annotated[int, Option(min=1, help="How many pictures: NAME-0.png, NAME-1.png, …")] = 1
    overwrite: Overwrite = False

    @functools.cached_property
    def first_seed(self) -> int:
        """The seed, or a random one."""
        return secrets.randbelow(2**32) if self.seed is None else self.seed


@dataclass(frozen=True, kw_only=True)
class Size:
    """The pictures."""

    height: Annotated[int | None, Option(min=1, help="In pixels.", show_default=_NATURAL)] = None
    width: Annotated[int | None, Option(min=1, help="In pixels.", show_default=_NATURAL)] = None


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command have the fields of its dataclass parameters as options of their own, after those it names itself."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    shown = [parameter.replace(annotation=hints[name]) for name, parameter in inspect.signature(command).parameters.items()
             if name not in groups]
    for group in groups.values():
        options = get_type_hints(group, include_extras=True)
        shown += [inspect.Parameter(
            entry.name, inspect.Parameter.KEYWORD_ONLY, annotation=_in_panel(options[entry.name], group.__doc__),
            default=inspect.Parameter.empty if entry.default is MISSING else entry.default) for entry in fields(group)]

    @functools.wraps(command)
    def called(**given: Any) -> None:
        settings = {name: group(**{entry.name: given.pop(entry.name) for entry in fields(group)})
                    for name, group in groups.items()}
        return command(**given, **settings)

    called.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return called


def _in_panel(annotation: Any, name: str) -> Any:
    """The same option, shown under a heading in the help."""
    option = copy.copy(annotation.__metadata__[0])
    option.rich_help_panel = name.rstrip(".")
    return Annotated[annotation.__origin__, option]
