"""The pictures that a checkpoint makes of prompts: each from a generator of its own, and kept where they are not made twice."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import local_path, staged_file, to_json
from ..inputs import read_input
from ..made import note_made
from .data import Prompt


def takes_prompts(pipeline: Any) -> bool:
    """Whether a pipeline makes pictures of texts, or of nothing at all.

    Raises:
        ValueError: of neither.
    """
    takes = inspect.signature(pipeline.__call__).parameters
    needs = [name for name in ("image", "class_labels", "prompt_embeds") if name in takes
             and takes[name].default is inspect.Parameter.empty]
    if needs or "image" in takes or not {"prompt", "batch_size"} & takes.keys():
        raise ValueError(f"a {type(pipeline).__name__} cannot be evaluated: it makes pictures of more than a text, or nothing")
    return "prompt" in takes


def generated(
    pipeline: Any, prompts: Sequence[Prompt], *, steps: int | None = None, guidance: float | None = None, batch: int = 8,
    folder: str | Path | None = None, on_done: Callable[[int, int], object] = lambda done, total: None,
) -> list[Any]:
    """A PIL image for each prompt, with the seed that it says; of an unconditional pipeline, which sees the seeds alone.

    Args:
        pipeline: of texts or of nothing. steps, guidance: as its call has them; by default the pipeline's own.
        batch: pictures made together; it changes them by rounding alone.
        folder: where pictures are kept, each as soon as its batch is done. What lies there already, of the same weights,
            scheduler, settings, prompt and seed, is not made again.
        on_done: is told the pictures there are and how many are wanted.
    """
    conditional = takes_prompts(pipeline)
    given = {"num_inference_steps": steps, "guidance_scale": guidance if conditional else None}
    settings = {name: value for name, value in given.items() if value is not None}
    paths: list[Path | None] = [None] * len(prompts)
    if folder is not None:  # which may lie in the data: what is made is none of it
        made_by = fingerprint(pipeline) + json.dumps(settings, sort_keys=True)
        folder = local_path(folder)
        paths = [folder / _name(one if conditional else Prompt("", one.seed), made_by) for one in prompts]
        note_made(folder, [path.name for path in paths if path])
    pictures: list[Any] = [read_input(path) if path and path.is_file() else None for path in paths]
    todo = [i for i, picture in enumerate(pictures) if picture is None]
    on_done(len(prompts) - len(todo), len(prompts))
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(todo), batch):
        chosen = todo[start:start + batch]
        own = {"prompt": [prompts[i].prompt for i in chosen]} if conditional else {"batch_size": len(chosen)}
        generators = [torch.Generator().manual_seed(prompts[i].seed) for i in chosen]
        for i, picture in zip(chosen, pipeline(**own, generator=generators, **settings).images, strict=True):
            pictures[i] = picture.convert("RGB")
            if path := paths[i]:
                with staged_file(path) as scratch:
                    pictures[i].save(scratch)
        on_done(len(prompts) - len(todo) + start + len(chosen), len(prompts))
    return pictures


def _name(prompt: Prompt, made_by: str) -> str:
    """`a-red-apple-7-9f86d081884c.png`: what it shows, its seed, and a hash of all that it follows from."""
    words = re.sub(r"\W+", "-", prompt.prompt.lower())[:40].strip("-_") or "picture"
    digest = hashlib.sha256(json.dumps([made_by, prompt.prompt, prompt.seed]).encode()).hexdigest()
    return f"{words}-{prompt.seed}-{digest[:12]}.png"


def fingerprint(pipeline: Any) -> str:
    """A hash of a pipeline's weights and of the configs of its parts: of what its pictures follow from besides the call."""
    digest = hashlib.sha256(type(pipeline).__name__.encode())
    for name, part in sorted(pipeline.components.items()):
        config = getattr(part, "config", None)
        entries = {key: value for key, value in (dict(config) if config else {}).items() if not key.startswith("_")}
        digest.update(f"{name} {type(part).__name__} {to_json(entries)}".encode())
        if isinstance(part, nn.Module):
            for key, value in sorted(part.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
