"""What a checkpoint says of its calls: `calotype.json` beside its `model_index.json`.

    {"format": 1, "guidance_scale": 3.0, "num_inference_steps": 20, "scheduler": "dpmpp_2m_karras", "prompts": ["a rocket"]}

Every entry but `format` may be left out. The command line goes by it where an option is not given; calls in Python have the
pipelines' own defaults. Diffusers knows no such file and passes over it. It may come from the Hub, from anyone: it is data, and
every entry is checked.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .files import read_json, write_json
from .scheduler_names import meaning
from .words import nearest

FILE = "calotype.json"
FORMAT = 1
_GUIDANCE, _STEPS, _PROMPTS, _LENGTH = 100, 1000, 24, 400  # the most of each


@dataclass(frozen=True)
class Defaults:
    """What a call goes by where it says nothing; `None` is the pipeline's own. Every field is checked; an error names it.

    Attributes:
        guidance_scale: from 0 to 100. num_inference_steps: from 1 to 1000.
        scheduler: a class, or one of the short names of `scheduler_names`, made from the checkpoint's own config.
        prompts: some that the checkpoint does well.
    """

    guidance_scale: float | None = None
    num_inference_steps: int | None = None
    scheduler: str | None = None
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        guidance, steps, prompts = self.guidance_scale, self.num_inference_steps, self.prompts
        if guidance is not None:
            number = isinstance(guidance, (int, float)) and not isinstance(guidance, bool)
            if not number or not math.isfinite(guidance) or not 0 <= guidance <= _GUIDANCE:
                raise ValueError(f"guidance_scale is {guidance!r:.80}, but must be a number from 0 to {_GUIDANCE}")
            object.__setattr__(self, "guidance_scale", float(guidance))
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= _STEPS):
            raise ValueError(f"num_inference_steps is {steps!r:.80}, but must be a whole number from 1 to {_STEPS}")
        if self.scheduler is not None:
            if not isinstance(self.scheduler, str):
                raise ValueError(f"scheduler is {self.scheduler!r:.80}, but must be the name of a solver")
            meaning(self.scheduler)
        texts = isinstance(prompts, (list, tuple)) and len(prompts) <= _PROMPTS
        if not texts or not all(isinstance(one, str) and 0 < len(one) <= _LENGTH and one.isprintable() for one in prompts):
            raise ValueError(f"prompts is {prompts!r:.80}, but must be a list of at most {_PROMPTS} texts of one line, of at "
                             f"most {_LENGTH} letters each")
        object.__setattr__(self, "prompts", tuple(prompts))

    def facts(self) -> dict[str, Any]:
        """The entries that say something."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}

    def call(self) -> dict[str, Any]:
        """What they say of steps and guidance, in the words of a recipe."""
        said = {"steps": self.num_inference_steps, "guidance": self.guidance_scale}
        return {name: value for name, value in said.items() if value is not None}


def read_defaults(folder: Path) -> Defaults:
    """What the checkpoint in `folder` says; nothing if it has no such file.

    Raises:
        ValueError: the file is damaged, of a newer format, or says what cannot be; names it and what is wrong.
    """
    file = folder / FILE
    if not file.is_file():
        return Defaults()
    try:
        entries = read_json(file)
        version = entries.pop("format", None)
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ValueError(f"format is {version!r:.80}, but must be {FORMAT}")
        if version > FORMAT:
            raise ValueError(f"format is {version}, which a newer Calotype reads: this one knows {FORMAT}")
        known = list(Defaults.__dataclass_fields__)
        for name in entries:
            if name not in known:
                raise ValueError(f"there is no entry {name!r:.80}{nearest(name, known)}")
        return Defaults(**entries)
    except ValueError as error:
        about = str(error) if str(file) in str(error) else f"{str(file)!r}: {error}"
        raise ValueError(f"{about}. Without that file the pipeline's own defaults hold") from None


def write_defaults(defaults: Defaults, folder: Path) -> None:
    """Write them as the file that `read_defaults` reads."""
    write_json(folder / FILE, {"format": FORMAT, **defaults.facts()})


def carry(source: Path | None, target: Path) -> None:
    """Let a checkpoint that is saved in `target` say what the one in `source`, from which it was loaded, says."""
    if source is not None and (source / FILE).is_file():
        shutil.copyfile(source / FILE, target / FILE)
