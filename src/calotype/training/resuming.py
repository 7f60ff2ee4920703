"""From which checkpoint a run goes on, if from any: one of the same run, and not beyond its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import local_path, read_json
from .checkpoints import checkpoints

FREE = {"output_dir", "max_train_steps", "num_train_epochs", "checkpointing_steps", "checkpoints_total_limit", "shard",
        "resume_from_checkpoint", "validation_steps", "validation_seed", "num_validation_images", "validation_inference_steps",
        "validation_prompt", "validation_split", "logging_steps", "report_to", "dataloader_num_workers", "cache_latents",
        "gradient_checkpointing"}
"""Settings that may change when a run goes on: they are none of its numbers."""


def settings_of_run(settings: Any, processes: int) -> dict[str, Any]:
    """What a checkpoint keeps of a run's settings, as JSON has it."""
    return settings.model_dump(mode="json") | {"processes": processes}


def checkpoint_to_go_on_from(settings: Any, steps: int, processes: int) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` asks for, or `None` to begin anew.

    Raises:
        FileNotFoundError: there is none of that name. ValueError: it is of a run with other settings, or is damaged, or is beyond
            the end of a run of so many `steps`.
    """
    folder, wanted = settings.output_dir, settings.resume_from_checkpoint
    if wanted == "none":
        return None
    found = checkpoints(folder)
    if wanted == "latest" and not found:
        return None
    named = (found[-1],) if wanted == "latest" else (local_path(wanted), folder / wanted)  # "checkpoint-500" is understood too
    path = next((path for path in named if (path / "training.json").is_file()), None)
    if path is None:
        raise FileNotFoundError(f"resume_from_checkpoint is {wanted!r}, which is no checkpoint's folder; it can be 'latest', "
                                f"'none' or a folder such as {str(folder / 'checkpoint-500')!r}")
    _check_same(read_json(path / "training.json"), path, settings, steps, processes)
    return path


def _check_same(told: Mapping[str, Any], path: Path, settings: Any, steps: int, processes: int) -> None:
    # A setting that a checkpoint does not know came later, and the run was what it is by default.
    defaults = {name: field.default for name, field in type(settings).model_fields.items()}
    before, now = defaults | told.get("settings", {}), settings_of_run(settings, processes)
    other = [f"{name} was {before.get(name)!r} and is {value!r}" for name, value in now.items()
             if name not in FREE and before.get(name) != value]
    if other:
        raise ValueError(f"{str(path)!r} is of a run with other settings: {'; '.join(other)}. Keep them, name another "
                         "output_dir, or begin anew with resume_from_checkpoint 'none'")
    if int(told.get("step", 0)) > steps:
        raise ValueError(f"{str(path)!r} is of step {told['step']}, but the run is to end at step {steps}: let it be "
                         "longer, or name an earlier checkpoint as resume_from_checkpoint")
