"""What recipes share that train a pipeline's network to denoise."""

from __future__ import annotations

from typing import Any

from ..objectives import Objective


def plainly(pipeline: Any) -> Any:
    """The pipeline as samples are made with it during a training: quietly, and without layouts prepared for weights that change
    with each step."""
    pipeline.fast = False
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def objective_of(pipeline: Any, settings: Any) -> Objective:
    """The objective that settings (`Noise`) ask for. If they say what is to be predicted, the pipeline's scheduler is replaced
    by one that reads the output as it was trained."""
    scheduler, kind = pipeline.scheduler, settings.prediction_type
    objective = Objective(
        scheduler, prediction_type=kind, timestep_sampler=settings.timestep_sampler, snr_gamma=settings.snr_gamma,
        noise_offset=settings.noise_offset, input_perturbation=settings.input_perturbation)
    if kind:
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=kind)
    return objective
