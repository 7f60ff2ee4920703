"""The pipeline for a task, whichever checkpoint it is: `AutoPipelineForImage2Image.from_pretrained(name)`."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from ..files import read_json
from ..hub import split_options
from ..registry import find
from ..words import listing
from .base import DiffusionPipeline

_FAMILIES: dict[str, dict[str, str]] = {
    "StableDiffusion": {
        "text to image": "StableDiffusionPipeline", "image to image": "StableDiffusionImg2ImgPipeline",
        "inpainting": "StableDiffusionInpaintPipeline",
    },
    "LatentConsistencyModel": {
        "text to image": "LatentConsistencyModelPipeline", "image to image": "LatentConsistencyModelImg2ImgPipeline",
    },
}
"""The classes that share components, by task."""


class AutoPipeline:
    """Base of the three: it makes pipelines, and is none."""

    task: ClassVar[str]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load a checkpoint as the pipeline for this task; arguments as of `DiffusionPipeline.from_pretrained`.

        Raises:
            ValueError: the checkpoint's family has no pipeline for it; says which families have.
        """
        source, _ = split_options(pretrained_model_name_or_path, dict(kwargs))
        name = str(read_json(source.file(DiffusionPipeline.config_name)).get("_class_name"))
        return find(cls._class_name(name)).from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        """The pipeline for this task from another one's components, without copying weights; `kwargs` replace some."""
        return find(cls._class_name(type(pipeline).__name__)).from_pipe(pipeline, **kwargs)

    @classmethod
    def _class_name(cls, name: str) -> str:
        for tasks in _FAMILIES.values():
            if name in tasks.values() and cls.task in tasks:
                return tasks[cls.task]
        able = [name for tasks in _FAMILIES.values() if cls.task in tasks for name in tasks.values()]
        raise ValueError(f"{name!r} has no pipeline for {cls.task}; these have: {listing(able)}")


class AutoPipelineForText2Image(AutoPipeline):
    """Makes the text-to-image pipeline of a checkpoint or of another pipeline."""

    task = "text to image"


class AutoPipelineForImage2Image(AutoPipeline):
    """Makes the image-to-image pipeline of a checkpoint or of another pipeline."""

    task = "image to image"


class AutoPipelineForInpainting(AutoPipeline):
    """Makes the inpainting pipeline of a checkpoint or of another pipeline."""

    task = "inpainting"
