"""`info`: what a checkpoint is made of. `schedulers`: what `--scheduler` takes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ..contents import describe
from ..hub import BUNDLED
from ..recipe import Recipe
from ..registry import SCHEDULERS, find
from ..scheduler_names import short_names
from ..words import some
from .checks import starting
from .options import CHECKPOINT, Revision, Variant


def info(
    model: Annotated[str | None, Argument(autocompletion=starting(BUNDLED, folders=True), help=(
        f"{CHECKPOINT} Or a PNG that Calotype saved."))] = None,
    as_json: Annotated[bool, Option("--json", help="The same as JSON.")] = False,
    variant: Variant = None,
    revision: Revision = None,
    device: Annotated[bool, Option("--device", help="Show this machine's devices instead, and how attention can run.")] = False,
) -> None:
    """Show what a checkpoint on this machine is made of, without loading it; how a picture was made; or what to run on."""
    if device:
        return _show_devices(as_json)
    if model is None:
        raise typer.BadParameter("give a model, a picture, or --device")
    if model.lower().endswith(".png") and not os.path.isdir(model):
        return _show_recipe(Recipe.from_png(model), as_json)
    facts = describe(model, revision, variant)
    if as_json:
        return typer.echo(json.dumps(facts, indent=2))
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("component", "class", "parameters", "dtypes", "size", "files", box=None, header_style="bold", pad_edge=False)
    for part in facts["components"]:
        files = some([Path(file).name for file in part["files"]], 3) if part["used"] else "unknown class; left out"
        table.add_row(part["name"] or "itself", part["class"], f"{part['parameters']:,}" if part["parameters"] else "",
                      ", ".join(part["dtypes"]), f"{part['bytes'] / 1e6:,.1f} MB", escape(files))
    console = Console(highlight=False, soft_wrap=True)
    console.print(escape(f"{model} is a {facts['class']} ({facts['where']}: {facts['folder']})"))
    console.print(table)
    if facts["picture_size"]:
        console.print("picture size: {} x {}".format(*facts["picture_size"]))
    if facts["scheduler"]:
        console.print("scheduler: " + escape(", ".join(f"{n.removeprefix('_')} {v}" for n, v in facts["scheduler"].items())))
    said = facts["defaults"]
    if calls := {name: value for name, value in said.items() if name != "prompts"}:
        console.print("defaults of calls from the command line: " + escape(", ".join(f"{n} {v}" for n, v in calls.items())))
    if "prompts" in said:
        console.print("for example: " + escape("; ".join(said["prompts"])))
    console.print(f"content hash: {facts['content_hash']}")


def _show_recipe(recipe: Recipe, as_json: bool) -> None:
    """How a picture was made. Its recipe comes from anywhere: what a terminal might obey is shown as an escape."""
    if as_json:
        return typer.echo(json.dumps(json.loads(recipe.to_json()), indent=2))
    said = asdict(recipe)
    config = said.pop("scheduler_config")
    for role, noted in said.pop("inputs").items():
        said[role] = f"{noted['file']} (pixels {noted['pixels'][:12]}…)"
    for kind, own in (("adapter", "weight"), ("embedding", "token")):
        for i, noted in enumerate(said.pop(f"{kind}s")):
            told = f", {own} {noted[own]}" if noted[own] is not None else ""
            said[f"{kind} {i + 1}"] = f"{noted['file']}{told} (content {noted['content'][:12]}…)"
    said["versions"] = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    said["scheduler"] += "".join(f", {name} {value}" for name, value in config.items() if value is not None)
    for name, value in said.items():
        if value is not None and value != "" and value is not False:
            shown = "yes" if value is True else str(value)
            typer.echo(f"{name.replace('_', ' ')}: {shown if shown.isprintable() else repr(shown)[1:-1]}")


def _show_devices(as_json: bool) -> None:
    import torch

    from ..runtime.attention import usable

    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    found = {name: {"name": torch.cuda.get_device_name(name) if name != "cpu" else f"{torch.get_num_threads()} threads",
                    "attention": [backend for backend, works in usable(name).items() if works]} for name in [*gpus, "cpu"]}
    if as_json:
        return typer.echo(json.dumps({"torch": torch.__version__, "devices": found}, indent=2))
    typer.echo(f"torch {torch.__version__}")
    for name, facts in found.items():
        typer.echo(f"{name}: {facts['name']}; attention by {', '.join(facts['attention'])}")


def schedulers() -> None:
    """List the solvers that `--scheduler` takes."""
    for name in SCHEDULERS:
        short = ", ".join(short_names(name))
        typer.echo(f"{name:<36}{(find(name).__doc__ or '').strip().splitlines()[0]}" + (f"  [{short}]" if short else ""))
    typer.echo("Short names are in brackets; _karras, _exponential or _beta at the end of most of them places the levels by a "
               "ramp.")
