"""`evaluate`: checkpoints judged against a data set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..contents import content_hash, locate
from ..defaults import read_defaults
from ..hub import BUNDLED
from ..scheduler_names import named_scheduler
from ..words import some
from .checks import at_home, choice, starting
from .making import choose_device, note, progress
from .options import CHECKPOINT, Device, Dtype, Overwrite, Scheduler, Steps
from .process import work_begins
from .saving import check_writable, save_sheet

_FEATURES = ("encoder", "clip", "inception")


def evaluate(
    models: Annotated[list[str], Argument(autocompletion=starting(BUNDLED, folders=True), help=(
        f"{CHECKPOINT} One or several."), show_default=False)],
    data: Annotated[Path, Option(exists=True, file_okay=False, help="The data set: a folder of pictures with a metadata.jsonl.")],
    prompts: Annotated[Path | None, Option(exists=True, dir_okay=False, help=(
        "Rows of prompt, label, style, seed and split (.jsonl), or a text a line."), show_default="from the data set")] = None,
    count: Annotated[int | None, Option(
        min=2, help="Pictures that each checkpoint makes.", show_default="as many as prompts; without, 64")] = None,
    steps: Steps = None,
    guidance: Annotated[float | None, Option(help="How much the prompt counts.", show_default="the checkpoint's")] = None,
    scheduler: Scheduler = None,
    seed: Annotated[int, Option(min=0, max=2**52, help="Of pictures whose prompt names none, and of the loss's noise.")] = 0,
    batch: Annotated[int, Option(min=1, help="Pictures at once; results do not depend on it.")] = 8,
    measured: Annotated[int, Option(min=0, help=(
        "Pictures of the data set of which loss and reconstruction are measured; 0: neither is."))] = 128,
    split: Annotated[str | None, Option(help="Only of those with this split, as held_out.", show_default="all")] = None,
    features: Annotated[str | None, choice("features", _FEATURES, help=(
        f"What pictures are compared by: {', '.join(_FEATURES)}."), show_default="clip with --clip, else encoder")] = None,
    clip: Annotated[str | None, Option(help="The folder of a CLIP picture encoder.")] = None,
    output: Annotated[Path | None, Option("--output", "-o", callback=at_home, help="Save the report here, as JSON.")] = None,
    sheets: Annotated[Path | None, Option(
        callback=at_home, file_okay=False, help="Save a contact sheet of each checkpoint here.")] = None,
    pictures: Annotated[Path | None, Option(callback=at_home, file_okay=False, help=(
        "Keep the pictures here; what is there already is not made again."))] = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
) -> None:
    """Judge checkpoints by the same prompts, seeds and noise: a table, a report, and contact sheets."""
    names = _names(models)
    check_writable([*([output] if output else []), *(sheets / f"{name}.png" for name in names if sheets)], overwrite)
    from ..evaluation.data import prompts_of, read_prompts, read_rows
    from ..evaluation.features import make_features
    from ..evaluation.generating import takes_prompts
    from ..evaluation.judging import evaluate as judge
    from ..evaluation.reference import Reference
    from ..evaluation.report import plain, table
    from ..files import write_json

    rows = read_rows(data)
    wanted = read_prompts(prompts, seed, count) if prompts else None
    by = make_features(features, clip, choose_device(device))
    work_begins()
    typer.echo(f"{len(rows)} pictures, compared by {by.name!r}")
    with progress("data set") as tell:
        reference = Reference.of(rows, by, on_done=lambda done: tell(done, len(rows)))
    report: dict[str, Any] = {
        "data": data.resolve().name, "pictures": len(rows), "features": by.name, "seed": seed, "measured_split": split,
        "baseline": reference.baseline(), "checkpoints": {}}
    for model, name in zip(models, names, strict=True):
        pipeline, said = _load(model, by.device, dtype, scheduler), read_defaults(locate(model)[1]).call()
        chosen = wanted or (prompts_of(rows, count or 64, seed) if takes_prompts(pipeline) else _seeds(count or 64, seed))
        with progress(name) as tell:
            result, made = judge(
                pipeline, reference, chosen, steps=steps or said.get("steps"),
                guidance=said.get("guidance") if guidance is None else guidance, seed=seed, batch=batch, measured=measured,
                split=split, pictures=pictures / name if pictures else None, on_part=lambda part, done, total: tell(done, total))
        report["checkpoints"][name] = {
            "model_hash": content_hash(locate(model)[1]), "prompts_given": [vars(one) for one in chosen], **result}
        if sheets:
            save_sheet(made, sheets / f"{name}.png", min(10, len(made)))
        if output:  # after each checkpoint: what is done stays, whatever comes of the next
            write_json(output, plain(report))
    _show(table(report["checkpoints"], report["baseline"]))
    channels = reference.seen.all.shape[1]
    if any(result["count"] <= channels for result in report["checkpoints"].values()):
        note(f"FID is of {channels} channels, which fewer pictures do not settle: mind KID, which has no such bias")
    if output:
        typer.echo(f"saved {output}")


def _names(models: list[str]) -> list[str]:
    """What the checkpoints are called in the report, and in names of files."""
    names = [Path(model).name for model in models]
    if len({*names}) < len(names):
        names = [re.sub(r"[\\/]+", "-", model.strip("./\\")) for model in models]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"a checkpoint is named twice: {some(twice)}")
    return names


def _load(model: str, device: Any, dtype: str | None, scheduler: str | None) -> Any:
    """The pipeline as it was saved, with the solver that is wanted, or that the checkpoint says."""
    import torch

    from ..pipelines.base import DiffusionPipeline

    dtype = dtype or ("float16" if device.type == "cuda" else "float32")
    pipeline: Any = DiffusionPipeline.from_pretrained(model, torch_dtype=getattr(torch, dtype)).to(device)
    if solver := scheduler or read_defaults(locate(model)[1]).scheduler:
        pipeline.scheduler = named_scheduler(solver, pipeline.scheduler.config)
    return pipeline


def _seeds(count: int, seed: int) -> list[Any]:
    from ..evaluation.data import Prompt

    return [Prompt("", seed + i) for i in range(count)]


def _show(lines: list[list[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for i, heading in enumerate(lines[0]):
        shown.add_column(escape(heading), justify="right" if i else "left", overflow="fold")
    for line in lines[1:]:
        shown.add_row(*map(escape, line))
    Console(soft_wrap=True).print(shown)
