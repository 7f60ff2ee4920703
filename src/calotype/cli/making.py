"""From what was typed to pictures: the checkpoint is loaded, and its pictures are made in batches and saved."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from .. import hub
from ..additions import add
from ..console import is_terminal
from ..contents import content_hash, locate
from ..defaults import read_defaults
from ..files import to_json
from ..recipe import Recipe, versions
from ..scheduler_names import named_scheduler
from ..tasks import defaults, turned
from ..words import listing, some
from .options import Saving, Source
from .process import work_begins
from .saving import check_fits, check_writable, numbered, save_sheet, saved_beside

_MOST_TOGETHER, _PIXELS_TOGETHER = 4, 4 * 512 * 512  # pictures in a batch, and pixels in all of them


@dataclass(frozen=True)
class Wanted:
    """A picture that is to be made, and where it goes; `there` if it need not be made."""

    prompt: str
    seed: int
    path: Path | None = None
    there: bool = False
    negative: str = ""


def choose_device(wanted: str | None, offload: str | None = None) -> str:
    """`wanted`, which may be `"cuda:1"`, or the best that there is; with `offload`, one from which weights can be kept away.

    Raises:
        ValueError: there is none such; says what there is.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    here = [device for device, usable in there.items() if usable]
    kind, _, number = (wanted or "auto").partition(":")
    if kind == "auto":
        if offload and here[0] == "cpu":
            raise ValueError("--offload keeps weights on the CPU until an accelerator needs them, and there is none here")
        return here[0]
    if kind not in here:
        why = " (this PyTorch was built without CUDA)" if kind == "cuda" and torch.version.cuda is None else ""
        raise ValueError(f"no device {wanted!r} here: there is {listing(here)}{why}")
    if number and int(number) >= torch.cuda.device_count():
        raise ValueError(f"no device {wanted!r} here: there is {listing(f'cuda:{i}' for i in range(torch.cuda.device_count()))}")
    return str(wanted)


def place(pipeline: Any, device: str, offload: str | None) -> Any:
    """The pipeline, ready to work on a device, and silent."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.offload(offload, device) if offload else pipeline.to(device)


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
    beside = ThreadPoolExecutor(1)
    try:
        content = beside.submit(content_hash, root, variant) if root else None  # while torch is imported
        import torch

        from ..pipelines.base import DiffusionPipeline

        device = choose_device(source.device, source.offload)
        additions = source.additions()
        dtype = source.dtype or ("float16" if device.startswith("cuda") else "float32")
        loaded: Any = DiffusionPipeline.from_pretrained(
            model, revision=revision, variant=variant, torch_dtype=getattr(torch, dtype))
        pipeline = turned(loaded, task, model)
        add(pipeline, additions)
        said = read_defaults(locate(model, revision)[1])
        if solver := source.scheduler or said.scheduler:
            pipeline.scheduler = named_scheduler(solver, pipeline.scheduler.config)
        if source.compiled:
            pipeline.compile()
        place(pipeline, device, source.offload)
        content = content or beside.submit(content_hash, locate(model, revision)[1], variant)
        facts = facts_of(pipeline, model, revision, variant, content.result())
    finally:
        beside.shutdown(wait=False)  # after an error, nobody waits for the hash of a large checkpoint
    noted = {f"{kind}s": [dict(one.noted) for one in found] for kind, found in additions.items()}
    call = defaults(pipeline) | said.call()
    return pipeline, {"task": task, **call, **facts, **noted, "compiled": source.compiled}


def plan(
    saving: Saving, name: str, read: Callable[[int], tuple[str, str]] = lambda seed: ("", ""), inputs: Sequence[Path] = (),
) -> list[Wanted]:
    """The pictures of one prompt: their seeds and files, which are checked.

    Args:
        read: gives the prompt and the negative prompt for a seed.
    """
    seeds = [saving.first_seed + i for i in range(saving.count)]
    paths: Sequence[Path | None] = [None] * saving.count
    if saving.output or not saving.grid:
        paths = numbered(saving.output or Path(f"{name}-{saving.first_seed}.png"), saving.count)
    check_all(paths, saving, inputs)
    return [Wanted(prompt, seed, path, negative=negative)
            for seed, path, (prompt, negative) in zip(seeds, paths, map(read, seeds), strict=True)]


def check_all(paths: Sequence[Path | None], saving: Saving, inputs: Sequence[Path] = ()) -> None:
    """Find out before the work whether the pictures and their contact sheet can be saved."""
    if saving.grid and saving.grid.absolute() in [path.absolute() for path in paths if path]:
        raise FileExistsError(f"{str(saving.grid)!r} is a picture's name already; the contact sheet needs another")
    check_writable([path for path in (*paths, saving.grid) if path], saving.overwrite, inputs)


def make(
    wanted: Sequence[Wanted], pipeline: Any, saving: Saving, given: Mapping[str, Any] | None = None, columns: int | None = None,
    **facts: Any,
) -> None:
    """Make and save pictures, in batches of those that have the same texts; `facts` are a recipe's, and `given` its inputs.

    Then the contact sheet, in `columns`.
    """
    start, made = time.perf_counter(), {}
    size = given["image"].size if given and facts.get("overlay") else (facts["width"], facts["height"])
    if saving.grid:
        from ..images.grids import sheet_size

        _, width, height = sheet_size(len(wanted), size[0], size[1], columns)
        check_fits(saving.grid, width, height)
    work_begins()
    with saved_beside() as keep:
        for batch in _batches([one for one in wanted if not one.there], facts["height"] * facts["width"]):
            for one, recipe, picture in _make_together(batch, pipeline, given, facts):
                if one.path:
                    keep(recipe, picture, one.path, f", {time.perf_counter() - start:.1f} s")
                if saving.grid:
                    made[id(one)] = picture
    if saving.grid:
        save_sheet([made[id(one)] if id(one) in made else _opened(one.path) for one in wanted], saving.grid, columns)


def _make_together(
    batch: Sequence[Wanted], pipeline: Any, given: Mapping[str, Any] | None, facts: Mapping[str, Any]
) -> Iterator[tuple[Wanted, Recipe, Any]]:
    """The pictures of a batch, each with its recipe."""
    first = batch[0]
    together = Recipe(prompt=first.prompt, negative_prompt=first.negative, seed=first.seed, batch=len(batch), **facts)
    with progress(some([one.path.name if one.path else f"seed {one.seed}" for one in batch], 2)) as on_step:
        pictures = together.pictures(pipeline, on_step, given)
    for i, (one, picture) in enumerate(zip(batch, pictures, strict=True)):
        size = {"height": picture.height, "width": picture.width} if together.task == "unconditional" else {}
        yield one, replace(together, seed=one.seed, index=i, **size), picture


def _batches(wanted: Sequence[Wanted], pixels: int) -> Iterator[list[Wanted]]:
    """Divide pictures into those that are made together: of the same texts, with seeds that follow each other."""
    most = max(1, min(_MOST_TOGETHER, _PIXELS_TOGETHER // pixels))
    batch: list[Wanted] = []
    for one in wanted:
        last = batch[-1] if batch else one
        if batch and (len(batch) == most or (one.prompt, one.negative, one.seed) != (last.prompt, last.negative, last.seed + 1)):
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
    if not is_terminal():
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
