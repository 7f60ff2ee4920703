"""From what was typed to pictures: the checkpoint is loaded, and its pictures are made in batches and saved."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from .. import hub
from ..contents import content_hash, locate
from ..defaults import read_defaults
from ..files import to_json
from ..recipe import Recipe, versions
from ..scheduler_names import named_scheduler
from ..tasks import defaults, turned
from ..words import listing, nearest, some
from .options import Saving, Source
from .saving import check_writable, numbered, save_sheet, saved_beside

_MOST_TOGETHER, _PIXELS_TOGETHER = 4, 4 * 512 * 512  # pictures in a batch, and pixels in all of them


@dataclass(frozen=True)
class Wanted:
    """A picture that is to be made, and where it goes; `there` if it need not be made."""

    prompt: str
    seed: int
    path: Path | None = None
    there: bool = False


def choose_device(wanted: str | None) -> str:
    """`wanted`, which may be `"cuda:1"`, or the best that there is."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [device for device, usable in there.items() if usable]
    if wanted is not None and wanted.partition(":")[0] not in here:
        raise ValueError(f"no device {wanted!r:.80} here: there is {listing(here)}{nearest(wanted, here)}")
    return wanted or here[0]


def facts_of(pipeline: Any, model: str, revision: str | None, variant: str | None, content: str) -> dict[str, Any]:
    """What a recipe says of the pipeline that follows it. The path of a folder is nobody's business."""
    kind, root = locate(model, revision)
    config = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    return {"model": root.resolve().name if kind == "folder" else model, "model_hash": content, "variant": variant,
            "revision": root.name if kind == "Hub cache" else None, "dtype": str(pipeline.dtype).removeprefix("torch."),
            "scheduler": type(pipeline.scheduler).__name__, "scheduler_config": json.loads(to_json(config)),
            "device": pipeline.device.type, "versions": versions()}


def load(source: Source, task: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline for a task, and what a recipe says of it and of a call that says nothing."""
    model, revision, variant = source.model, source.revision, source.variant
    root = hub.Source(model).local
    with ThreadPoolExecutor(1) as beside:
        content = beside.submit(content_hash, root, variant) if root else None  # while torch is imported
        import torch

        from ..pipelines.base import DiffusionPipeline

        device = choose_device(source.device)
        dtype = source.dtype or ("float16" if device.startswith("cuda") else "float32")
        loaded: Any = DiffusionPipeline.from_pretrained(
            model, revision=revision, variant=variant, torch_dtype=getattr(torch, dtype))
        pipeline = turned(loaded, task, model).to(device)
        said = read_defaults(locate(model, revision)[1])
        if solver := source.scheduler or said.scheduler:
            pipeline.scheduler = named_scheduler(solver, pipeline.scheduler.config)
        content = content or beside.submit(content_hash, locate(model, revision)[1], variant)
    pipeline.set_progress_bar_config(disable=True)
    call = defaults(pipeline) | said.call()
    return pipeline, {"task": task, **call, **facts_of(pipeline, model, revision, variant, content.result())}


def plan(
    saving: Saving, name: str, read: Callable[[int], str] = lambda seed: "", inputs: Sequence[Path] = ()
) -> list[Wanted]:
    """The pictures of one prompt: their seeds and files, which are checked. `read` gives the prompt for a seed."""
    seeds = [saving.first_seed + i for i in range(saving.count)]
    paths: Sequence[Path | None] = [None] * saving.count
    if saving.output or not saving.grid:
        paths = numbered(saving.output or Path(f"{name}-{saving.first_seed}.png"), saving.count)
    check_all(paths, saving, inputs)
    return [Wanted(read(seed), seed, path) for seed, path in zip(seeds, paths, strict=True)]


def check_all(paths: Sequence[Path | None], saving: Saving, inputs: Sequence[Path] = ()) -> None:
    """Find out before the work whether the pictures and their contact sheet can be saved."""
    for path in (*paths, saving.grid):
        if path:
            check_writable(path, saving.overwrite is not False, inputs)
    if saving.grid and saving.grid.absolute() in [path.absolute() for path in paths if path]:
        raise FileExistsError(f"{str(saving.grid)!r} is a picture's name already; the contact sheet needs another")


def make(
    wanted: Sequence[Wanted], pipeline: Any, saving: Saving, given: Mapping[str, Any] | None = None, columns: int | None = None,
    **facts: Any,
) -> None:
    """Make and save pictures, in batches of those that have one prompt; `facts` are a recipe's, and `given` its inputs.

    Then the contact sheet, in `columns`.
    """
    start, made = time.perf_counter(), {}
    with saved_beside() as keep:
        for batch in _batches([one for one in wanted if not one.there], facts["height"] * facts["width"]):
            recipe = Recipe(prompt=batch[0].prompt, seed=batch[0].seed, batch=len(batch), **facts)
            names = [one.path.name if one.path else f"seed {one.seed}" for one in batch]
            with progress(some(names, 2)) as on_step:
                pictures = recipe.pictures(pipeline, on_step, given)
            for i, (one, picture) in enumerate(zip(batch, pictures, strict=True)):
                if one.path:
                    height, width = (picture.height, picture.width) if recipe.task == "unconditional" else (
                        recipe.height, recipe.width)
                    keep(replace(recipe, seed=one.seed, index=i, height=height, width=width), picture, one.path,
                         f", {time.perf_counter() - start:.1f} s")
                if saving.grid:
                    made[id(one)] = picture
    if saving.grid:
        save_sheet([made[id(one)] if id(one) in made else _opened(one.path) for one in wanted], saving.grid, columns)


def _batches(wanted: Sequence[Wanted], pixels: int) -> Iterator[list[Wanted]]:
    """Divide pictures into those that are made together: of one prompt, with seeds that follow each other."""
    most = max(1, min(_MOST_TOGETHER, _PIXELS_TOGETHER // pixels))
    batch: list[Wanted] = []
    for one in wanted:
        if batch and (len(batch) == most or (one.prompt, one.seed) != (batch[-1].prompt, batch[-1].seed + 1)):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _opened(path: Path | None) -> Any:
    from ..inputs import read_input

    assert path is not None
    return read_input(path)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], object]]:
    """A progress bar on a terminal, and nothing elsewhere; to be told the steps done and how many there are."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def note(text: str) -> None:
    """Say something that the user may want to know, on stderr."""
    typer.echo(f"note: {text}", err=True)
