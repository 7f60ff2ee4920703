"""What can be typed after more than one command."""

from __future__ import annotations

import copy
import functools
import inspect
import secrets
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from typer import Option

from ..additions import Addition, find_adapter, find_embedding, parse_adapter, parse_embedding, told_name
from ..hub import BUNDLED
from ..pipelines.quality import QUALITIES
from ..recipe import DTYPES, SYNTAXES
from ..registry import SCHEDULERS
from ..scheduler_names import SHORT_NAMES
from . import checks
from .checks import choice, starting

CHECKPOINT = "A bundled name, a folder, or a Hub repository."
DEFAULT_MODEL = "calotype/emoji"
OFFLOADS = ("model", "layers")
_NATURAL = "the model's, or the given picture's"


Device = Annotated[str | None, Option(
    callback=checks.device, autocompletion=starting(checks.DEVICES), help=f"{', '.join(checks.DEVICES)}.",
    show_default="auto: the best there is")]
Overwrite = Annotated[bool, Option("--overwrite", "-f", help="Replace files that exist.")]
Offload = Annotated[str | None, choice("offload", OFFLOADS, help=(
    f"Keep weights on the CPU until they are used, a model or a few layers at a time: {', '.join(OFFLOADS)}. "
    "Needs less memory on the accelerator; the picture stays the same."))]
Variant = Annotated[str | None, Option(help="The weights of this variant (fp16) where there are such.")]
Revision = Annotated[str | None, Option(help="Branch, tag or commit of a Hub repository.")]
Steps = Annotated[int | None, Option(
    min=1, max=10_000, help="More is slower and, up to a point, better.", show_default="the checkpoint's, mostly 50")]
Scheduler = Annotated[str | None, Option(
    callback=checks.solver, autocompletion=starting([*SHORT_NAMES, *SCHEDULERS]), show_default="the checkpoint's",
    help="Another solver, by class or short name; see `calotype schedulers`.")]
Strength = Annotated[float, Option(help="How much of it is made anew: above 0, to 1.")]
Dtype = Annotated[str | None, choice("dtype", DTYPES, help=f"{', '.join(DTYPES)}.", show_default="float16 on cuda, else float32")]
Model = Annotated[str, Option(help=CHECKPOINT, autocompletion=starting(BUNDLED, folders=True))]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The checkpoint, and how it runs."""

    model: Model
    scheduler: Scheduler = None
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

    def facts(self) -> dict[str, Any]:
        """What a recipe says of them, as far as that is known without looking for anything."""
        return {"model": told_name(self.model), "compiled": self.compiled}


@dataclass(frozen=True, kw_only=True)
class TextSource(Source):
    """The checkpoint, and how it runs."""

    model: Model = DEFAULT_MODEL
    lora: Annotated[list[str] | None, Option(callback=checks.weighted, metavar="NAME_OR_FILE[=WEIGHT]", help=(
        "A LoRA adapter: a file, a folder or a Hub repository, and how much it counts. May be repeated."))] = None
    embedding: Annotated[list[str] | None, Option(metavar="NAME_OR_FILE[=TOKEN]", help=(
        "A learned word (textual inversion): a file, a folder or a Hub repository, and what to call it in prompts. "
        "May be repeated."), show_default=False)] = None

    def additions(self) -> dict[str, list[Addition]]:
        return {"adapter": [find_adapter(one) for one in self.lora or ()],
                "embedding": [find_embedding(one) for one in self.embedding or ()]}

    def facts(self) -> dict[str, Any]:
        adapters, embeddings = map(parse_adapter, self.lora or ()), map(parse_embedding, self.embedding or ())
        return super().facts() | {"adapters": [{"file": told_name(name), "weight": weight} for name, weight in adapters],
                                  "embeddings": [{"file": told_name(name), "token": token} for name, token in embeddings]}


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The prompt."""

    steps: Steps = None
    guidance: Annotated[float | None, Option(
        help="How much the prompt counts; up to 1 not at all, which is faster.",
        show_default="the checkpoint's, mostly 7.5")] = None
    negative: Annotated[str, Option(callback=checks.text, help="What should not be seen.")] = ""
    syntax: Annotated[str | None, choice("syntax", SYNTAXES, help=(
        "How weights are written in prompts: a1111, as (red:1.3), or compel, as red++."), show_default="there are none")] = None
    wildcards: Annotated[bool, Option("--wildcards", help="Of {red|blue}, each picture has one, by its seed.")] = False
    long: Annotated[bool, Option("--long", help="Read prompts to their end, in chunks, where the model would cut them.")] = False
    clip_skip: Annotated[int | None, Option(min=0, max=100, help="Leave out that many last layers of the text encoder.")] = None
    quality: Annotated[str, choice("quality", QUALITIES, help=(
        f"{', '.join(QUALITIES)}: how much may be approximated, to be quicker."))] = "exact"

    def read(self, prompt: str, seed: int) -> tuple[str, str]:
        """The prompt and the negative prompt of the picture with this seed."""
        if not self.wildcards:
            return prompt, self.negative
        from ..prompts.wildcards import expand_wildcards

        chosen, negative = expand_wildcards([prompt, self.negative], seed)
        return chosen, negative

    def facts(self) -> dict[str, Any]:
        """What a recipe says of them beside its texts; what is the pipeline's to say is left out."""
        given = {"steps": self.steps, "guidance": self.guidance}
        return {"prompt_syntax": self.syntax, "long_prompts": self.long, "clip_skip": self.clip_skip, "quality": self.quality,
                **{name: value for name, value in given.items() if value is not None}}


@dataclass(frozen=True, kw_only=True)
class Saving:
    """The pictures."""

    output: Annotated[Path | None, Option("--output", "-o", callback=checks.file_name, help=(
        f"Where to save it: {', '.join(checks.FORMATS)}. PNG keeps the recipe."), show_default="NAME-SEED.png")] = None
    grid: Annotated[Path | None, Option(callback=checks.file_name, help=(
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
