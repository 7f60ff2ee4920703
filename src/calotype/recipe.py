"""How a picture was made, kept in its own file: enough to make it again, and to tell whether it is the same.

A recipe comes with a picture, from anywhere. It is data: types and ranges are checked, class names are looked up, and it
cannot make this machine open a folder or ask the network.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from . import __version__
from .additions import Addition, add, check_noted, find_noted
from .files import staged_file
from .hub import BUNDLED
from .picture_files import read_picture
from .pipelines.quality import QUALITIES
from .registry import SCHEDULERS, find, known
from .tasks import TASKS, OnStep, perform, turned
from .words import check_choice, check_keywords, listing, nearest

FORMAT = 3  # of recipes; older ones stay readable. 1 had texts alone: no inputs, nor what goes with them; 2 no adapters
DTYPES = ("float32", "float16", "bfloat16")
SYNTAXES = ("a1111", "compel")
KEY = "calotype"  # of the PNG's text chunk

_KINDS: dict[Any, Any] = {"str": str, "str | None": (str, type(None)), "int": int, "int | None": (int, type(None)),
                          "float": (int, float), "bool": bool, "dict": dict, "list": list}
_LIMITS = {"steps": (1, 10_000), "height": (1, 8192), "width": (1, 8192), "seed": (0, 2**53), "batch": (1, 64),
           "index": (0, 63), "guidance": (-1e4, 1e4), "strength": (0, 1), "padding": (0, 8192), "blur": (0, 1024),
           "clip_skip": (0, 100)}
_DIGITS = {"model_hash": 64, "pixels": 64, "revision": 40}
_CHOICES = {"dtype": DTYPES, "task": tuple(TASKS), "generator": ("torch CPU mt19937",), "format": (FORMAT,),
            "prompt_syntax": (None, *SYNTAXES), "quality": QUALITIES}


def versions() -> dict[str, str]:
    """What a picture's last bits depend on."""
    import torch

    return {"calotype": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def pixel_hash(picture: Any) -> str:
    """sha256 of a PIL image's RGB bytes, row by row."""
    return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


@dataclass(frozen=True)
class Recipe:
    """Everything that a picture follows from. Every field is checked; an error names it.

    Attributes:
        model, revision, variant: the checkpoint's name (of a local folder its last name only), its Hub commit, its variant.
        model_hash: sha256 of the checkpoint's content. scheduler, scheduler_config: its class and whole config.
        seed: of this picture's own generator. index, batch: it was picture `index` of `batch` made together, whose seeds
            follow each other. Alone it would be the same but for rounding; in such a batch it is the same.
        device: the type of device. versions: see `versions`. pixels: its `pixel_hash`, set when it is saved.
        task: one of `TASKS`. inputs: the pictures it was made of: for each role the name of its `"file"` and the hash of its
            `"pixels"`. strength, padding, blur, overlay: as the command line has them.
        prompt_syntax, long_prompts, clip_skip, quality: as `Request` has them.
        adapters, embeddings: the LoRA adapters and learned words that were used, as `additions.check_noted` has them.
        compiled: its steps were compiled, which changes a picture by rounding.
    """

    model: str
    model_hash: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    height: int
    width: int
    scheduler: str
    scheduler_config: dict
    negative_prompt: str = ""
    revision: str | None = None
    variant: str | None = None
    index: int = 0
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"
    generator: str = "torch CPU mt19937"
    versions: dict = field(default_factory=versions)
    pixels: str = ""
    task: str = "text-to-image"
    inputs: dict = field(default_factory=dict)
    strength: float = 1.0
    padding: int | None = None
    blur: int = 0
    overlay: bool = False
    prompt_syntax: str | None = None
    long_prompts: bool = False
    clip_skip: int | None = None
    quality: str = "exact"
    adapters: list = field(default_factory=list)
    embeddings: list = field(default_factory=list)
    compiled: bool = False
    format: int = FORMAT

    def __post_init__(self) -> None:
        for name, kind, value in ((entry.name, entry.type, getattr(self, entry.name)) for entry in fields(self)):
            if not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "bool"):
                raise TypeError(f"a recipe's {name} is {kind}, and this is {value!r:.80}")
            if name in _LIMITS and value is not None and not _LIMITS[name][0] <= value <= _LIMITS[name][1]:  # NaN is neither
                raise ValueError(f"a recipe's {name} is {value!r:.80}, but must be from %g to %g" % _LIMITS[name])
            if name in _CHOICES:
                check_choice(f"a recipe's {name}", value[:80] if isinstance(value, str) else value, _CHOICES[name])
            if name in _DIGITS and value and not re.fullmatch(rf"[0-9a-f]{{{_DIGITS[name]}}}", value):
                raise ValueError(f"a recipe's {name} is {value!r:.80}, but must be {_DIGITS[name]} hexadecimal digits")
        if self.index >= self.batch or self.index > self.seed:
            raise ValueError(f"a recipe's picture {self.index} with seed {self.seed} cannot be one of {self.batch}")
        for key, value in self.scheduler_config.items():
            large = isinstance(value, (int, float)) and not abs(value) <= 1e6  # NaN too
            if not key.isidentifier() or (large and (key, value) != ("lambda_min_clipped", float("-inf"))):
                raise ValueError(f"a recipe's scheduler_config cannot have {key!r:.80}: {value!r:.80}")
        for kind, noted in self._noted().items():
            for one in noted:
                check_noted(kind, one)
        self._check_inputs()
        for name in ("guidance", "strength"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def _check_inputs(self) -> None:
        task = TASKS[self.task]
        for role, noted in self.inputs.items():
            check_choice(f"an input of {self.task!r}", role[:80], [*task.inputs, *task.optional])
            good = isinstance(noted, dict) and noted.keys() == {"file", "pixels"}
            if not good or not all(isinstance(value, str) for value in noted.values()):
                raise TypeError(f"a recipe's {role} is its file and its pixels, and this is {noted!r:.80}")
            if not re.fullmatch(r"[0-9a-f]{64}", noted["pixels"]):
                raise ValueError(f"a recipe's {role} has pixels {noted['pixels']!r:.80}, but must have 64 hexadecimal digits")
        if lacking := [role for role in task.inputs if role not in self.inputs]:
            raise ValueError(f"a recipe of {self.task!r} names no {listing(lacking)}")

    def _noted(self) -> dict[str, list[Any]]:
        return {"adapter": self.adapters, "embedding": self.embeddings}

    def to_json(self) -> str:
        """The recipe as JSON text, in ASCII."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, anyway: bool = False) -> Recipe:
        """The recipe in `text`; `anyway` takes what it can from a newer format."""
        try:
            content = dict(json.loads(text).items())  # numbers and lists have no items
        except (ValueError, RecursionError, AttributeError) as error:
            raise ValueError(f"the recipe is damaged: it is no JSON object ({error})") from None
        version, names = content.get("format"), [entry.name for entry in fields(cls)]
        if isinstance(version, int) and version > FORMAT:
            if not anyway:
                raise ValueError(f"the recipe has format {version!r:.20}, newer than {FORMAT}; --anyway takes what it can")
            content = {name: value for name, value in content.items() if name in names} | {"format": FORMAT}
        if version in range(1, FORMAT) and not isinstance(version, bool):
            content["format"] = FORMAT  # what it lacks has defaults that say the same
        check_keywords("a recipe", content, names)
        return cls(**content)

    @classmethod
    def from_png(cls, path: str | os.PathLike[str], anyway: bool = False) -> Recipe:
        """The recipe in a PNG. A file that is damaged, is no PNG or has no good recipe is a `ValueError` that says so."""
        text = read_picture(path, formats=("PNG",)).text  # type: ignore[attr-defined]
        try:
            if KEY not in text:
                raise ValueError("no recipe in it; only a PNG as Calotype saved it has one")
            return cls.from_json(text[KEY], anyway)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r}: {error}") from None

    def save_png(self, picture: Any, path: str | os.PathLike[str]) -> None:
        """Write a PIL image with this recipe and the hash of its pixels, whole or not at all."""
        from PIL.PngImagePlugin import PngInfo

        unwanted = f"\nNegative prompt: {self.negative_prompt}" if self.negative_prompt else ""
        others = f"Denoising strength: {self.strength:g}, " if self.inputs else ""
        others += f"Clip skip: {self.clip_skip + 1}, " if self.clip_skip is not None else ""  # their 1 leaves out no layer
        others += f"Quality: {self.quality}, " if self.quality != "exact" else ""
        others += "".join(f"LoRA: {one['file']} {one['weight']:g}, " for one in self.adapters)
        others += "".join(f"Embedding: {one['file']}, " for one in self.embeddings)
        shown = (f"{self.prompt}{unwanted}\nSteps: {self.steps}, Sampler: {self.scheduler}, CFG scale: {self.guidance:g}, "
                 f"Seed: {self.seed}, Size: {self.width}x{self.height}, Model hash: {self.model_hash[:10]}, "
                 f"Model: {self.model}, {others}Version: Calotype {__version__}")
        text = PngInfo()
        text.add_itxt(KEY, replace(self, pixels=pixel_hash(picture)).to_json())
        text.add_text("parameters", shown.encode("utf-8", "replace").decode())
        with staged_file(path) as scratch:
            picture.save(scratch, "PNG", pnginfo=text)

    def additions(
        self, given: Mapping[str, Iterable[str | os.PathLike[str]]] | None = None, beside: str | os.PathLike[str] | None = None,
        allow_download: bool = False,
    ) -> tuple[dict[str, list[Addition]], list[str]]:
        """The adapters and embeddings that it was made with, and a sentence for each that is not what it was.

        Args:
            given: where they are: files or folders, as `{"adapter": […], "embedding": […]}`.
            beside: a folder where others may be, by their names. allow_download: ask the Hub too.

        Raises:
            FileNotFoundError: one is not found. ValueError: one is given that is not asked for.
        """
        found, unlike = {}, []
        for kind, noted in self._noted().items():
            found[kind], said = find_noted(kind, noted, (given or {}).get(kind, ()), beside, allow_download)
            unlike += said
        return found, unlike

    def load(
        self, model: str | None = None, allow_download: bool = False, anyway: bool = False,
        additions: Mapping[str, Sequence[Addition]] | None = None,
    ) -> Any:
        """The pipeline that this recipe asks for, on the CPU.

        `model` is used instead of the checkpoint named, which is otherwise looked for among those that came with the library
        and in the cache of Hub files; `allow_download` asks the Hub too. `anyway` forgives an unknown scheduler, and adapters
        or embeddings that are not what they were; these are `additions`, as `self.additions` gives them.
        """
        if additions is None:
            additions, unlike = self.additions(allow_download=allow_download)
            if unlike and not anyway:
                raise ValueError("; ".join(unlike))
        import torch

        from .pipelines.base import DiffusionPipeline

        on_hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.model, re.ASCII) and not os.path.lexists(self.model)
        if not (model or on_hub or self.model in BUNDLED):
            raise FileNotFoundError(f"the recipe names a local model, {self.model!r:.80}, and no folder is opened "
                                    "because a picture names it: say where it is with --model FOLDER")
        usable = self.scheduler in SCHEDULERS or (self.scheduler.endswith("Scheduler") and known(self.scheduler))
        if not usable and not anyway:
            raise ValueError(f"no scheduler {self.scheduler!r:.80}, as the recipe has it{nearest(self.scheduler, SCHEDULERS)}")
        pipeline: Any = DiffusionPipeline.from_pretrained(
            model or self.model, revision=None if model else self.revision, variant=self.variant,
            torch_dtype=getattr(torch, self.dtype), local_files_only=not (model or allow_download))
        pipeline = turned(pipeline, self.task, model or self.model)
        if usable:  # last, since what is made of an old config is put right when a pipeline is made
            pipeline.scheduler = find(self.scheduler).from_config(self.scheduler_config)
        add(pipeline, additions)
        return pipeline.compile() if self.compiled else pipeline

    def pictures(
        self, pipeline: Any, on_step: OnStep = lambda done, total: None, inputs: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """All pictures of this one's batch, as PIL images.

        Args:
            pipeline: one for the task, as `load` gives it.
            on_step: is told the model calls done and how many there are.
            inputs: for each role in the recipe's `inputs` the picture, as `inputs.read_input` reads it.
        """
        return perform(self, pipeline, inputs or {}, on_step)

    def generate(self, pipeline: Any = None, inputs: Mapping[str, Any] | None = None) -> Any:
        """The picture, as a PIL image; by `pipeline`, or by the one that `load` finds. `inputs` as for `pictures`."""
        return self.pictures(pipeline or self.load(), inputs=inputs)[self.index]
