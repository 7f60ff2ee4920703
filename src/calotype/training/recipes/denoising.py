"""What recipes share that train a pipeline's network to denoise."""

from __future__ import annotations

from typing import Any

from ..objectives import Objective
from ..timesteps import timestep_sampler


def plainly(pipeline: Any) -> Any:
    """The pipeline as samples are made with it during a training: quietly, and without layouts prepared for weights that change
    with each step."""
    pipeline.fast = False
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def check_sampling(pipeline: Any, settings: Any) -> None:
    """Raise a `ValueError` if no pictures can be made in so many steps as settings say that samples are made in."""
    scheduler = pipeline.scheduler
    try:
        type(scheduler).from_config(scheduler.config).set_timesteps(settings.validation_inference_steps)
    except ValueError as error:
        raise ValueError(f"validation_inference_steps is {settings.validation_inference_steps}, in which a "
                         f"{type(scheduler).__name__} cannot make pictures: {error}") from None


def objective_of(pipeline: Any, settings: Any) -> Objective:
    """The objective that settings (`Noise`) ask for. If they say what is to be predicted, the pipeline's scheduler is replaced
    by one that reads the output as it was trained."""
    scheduler, kind = pipeline.scheduler, settings.prediction_type
    objective = Objective(
        scheduler, prediction_type=kind, timestep_sampler=timestep_sampler(
            settings.timestep_sampler, **settings.timestep_sampler_options), snr_gamma=settings.snr_gamma,
        noise_offset=settings.noise_offset, input_perturbation=settings.input_perturbation)
    if kind and "prediction_type" in scheduler.config:  # else its models all predict the same
        pipeline.scheduler = type(scheduler).from_config(scheduler.config, prediction_type=kind)
    return objective
