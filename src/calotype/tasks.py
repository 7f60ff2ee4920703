"""The tasks of recipes and of the command line: which pipelines do them, of which pictures, and how they are asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .registry import find
from .words import listing

if TYPE_CHECKING:
    from .recipe import Recipe

OnStep = Callable[[int, int], object]
"""Told the model calls done and how many there are."""


@dataclass(frozen=True)
class Task:
    """`command` does it; `pipelines` are the classes for it; `inputs` are the pictures it needs, `optional` others."""

    command: str
    pipelines: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


TASKS = {
    "text-to-image": Task("generate", ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")),
    "image-to-image": Task("edit", ("StableDiffusionImg2ImgPipeline", "LatentConsistencyModelImg2ImgPipeline"), ("image",)),
    "inpainting": Task("inpaint", ("StableDiffusionInpaintPipeline",), ("image", "mask")),
    "depth-to-image": Task("depth", ("StableDiffusionDepth2ImgPipeline",), ("image",), ("depth_map",)),
    "unconditional": Task("sample"),
}
_FAMILIES = ("StableDiffusion", "LatentConsistencyModel")  # of classes that share components


def _able(pipeline: Any) -> dict[str, str]:
    """The tasks that a pipeline can do, and the class for each; told from its own class and its UNet's channels."""
    own, takes = type(pipeline).__name__, inspect.signature(pipeline.__call__).parameters
    if "batch_size" in takes and "image" not in takes:
        return {"unconditional": own}
    if not any(own in task.pipelines for task in TASKS.values()):
        return {}
    latents = pipeline.vae.config.latent_channels
    by_channels = {0: ["text-to-image", "image-to-image", "inpainting"], 1: ["depth-to-image"], latents + 1: ["inpainting"]}
    family = next(name for name in _FAMILIES if own.startswith(name))
    return {task: name for task in by_channels.get(pipeline.unet.config.in_channels - latents, [])
            for name in TASKS[task].pipelines if name.startswith(family)}


def turned(pipeline: Any, task: str, name: str) -> Any:
    """The pipeline for `task` with the components of `pipeline`, the checkpoint `name`; no weights are copied.

    Raises:
        ValueError: it cannot do that task; says which it can.
    """
    able = _able(pipeline)
    if task not in able:
        commands = ", ".join(f"calotype {TASKS[one].command}" for one in able)
        raise ValueError(f"{name!r} is a {type(pipeline).__name__}, which cannot do {task!r}: "
                         + (f"it can do {listing(able)} ({commands})" if able else "it can do none of the tasks here"))
    return pipeline if able[task] == type(pipeline).__name__ else find(able[task]).from_pipe(pipeline)


def defaults(pipeline: Any) -> dict[str, Any]:
    """What a recipe says of steps and guidance if a call says nothing."""
    takes = inspect.signature(pipeline.__call__).parameters
    return {"steps": int(takes["num_inference_steps"].default),
            "guidance": float(takes["guidance_scale"].default) if "guidance_scale" in takes else 1.0}


def native_size(pipeline: Any) -> tuple[int, int]:
    """Height and width in pixels of the pictures that the model was trained for."""
    if hasattr(pipeline, "picture_size"):
        size: tuple[int, int] = pipeline.picture_size()
        return size
    vae, sample = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None), pipeline.unet.config.sample_size
    factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae else 1
    height, width = (sample, sample) if isinstance(sample, int) else tuple(sample or (64, 64))
    return height * factor, width * factor


def whole_size(pipeline: Any, picture: Any) -> tuple[int, int]:
    """Height and width of a PIL image, each less what is over the pipeline's multiple."""
    factor = pipeline.vae_scale_factor
    if min(picture.size) < factor:
        raise ValueError(f"the picture has {picture.width} x {picture.height} pixels; {factor} each way is the least")
    return picture.height // factor * factor, picture.width // factor * factor


def perform(recipe: Recipe, pipeline: Any, inputs: Mapping[str, Any], on_step: OnStep) -> list[Any]:
    """The pictures of a recipe's whole batch, as PIL images, by a pipeline for its task.

    `inputs` are the pictures that the recipe names, as `inputs.read_input` reads them.
    """
    import torch

    lacking = [role for role in recipe.inputs if role not in inputs]
    if lacking:
        raise ValueError(f"a picture of {recipe.task!r} is made of {listing(recipe.inputs)}, and {listing(lacking)} is missing")
    call: dict[str, Any] = {
        "num_inference_steps": recipe.steps,
        "generator": [torch.Generator("cpu").manual_seed(recipe.seed - recipe.index + i) for i in range(recipe.batch)]}
    if recipe.task == "unconditional":
        call["batch_size"] = recipe.batch
    else:
        call |= {"prompt": recipe.prompt, "guidance_scale": recipe.guidance,
                 "num_images_per_prompt": recipe.batch, "clip_skip": recipe.clip_skip, "prompt_syntax": recipe.prompt_syntax,
                 "long_prompts": recipe.long_prompts}
        call |= {"negative_prompt": recipe.negative_prompt} if recipe.negative_prompt else {}  # some pipelines take none
        call |= {"quality": recipe.quality} if recipe.quality != "exact" else {}
    own, finish = _PARTS.get(recipe.task, _from_text)(recipe, pipeline, inputs)
    for step in pipeline.stream(**call, **own):
        on_step(step.call + 1, step.calls)
    return [finish(picture) for picture in step.output.images]


# -- what a task's call has of its own, and what is done to its pictures ----------------------------------------------------

_Part = tuple[dict[str, Any], Callable[[Any], Any]]


def _as_is(picture: Any) -> Any:
    return picture


def _from_text(recipe: Recipe, pipeline: Any, inputs: Mapping[str, Any]) -> _Part:
    return {"height": recipe.height, "width": recipe.width}, _as_is


def _unconditional(recipe: Recipe, pipeline: Any, inputs: Mapping[str, Any]) -> _Part:
    return {}, _as_is


def _from_image(recipe: Recipe, pipeline: Any, inputs: Mapping[str, Any]) -> _Part:
    image = pipeline.image_processor.resize(inputs["image"], recipe.height, recipe.width)
    return {"image": image, "strength": recipe.strength}, _as_is


def _from_depth(recipe: Recipe, pipeline: Any, inputs: Mapping[str, Any]) -> _Part:
    import numpy as np
    import torch

    own, _ = _from_image(recipe, pipeline, inputs)
    if "depth_map" in recipe.inputs:
        own["depth_map"] = torch.from_numpy(np.array(inputs["depth_map"], np.float32))[None]
    return own, _as_is


def _inpainting(recipe: Recipe, pipeline: Any, inputs: Mapping[str, Any]) -> _Part:
    image, mask, processor = inputs["image"], inputs["mask"], pipeline.image_processor
    mask = processor.blur(mask, recipe.blur) if recipe.blur else mask
    own = {"image": image, "mask_image": mask, "strength": recipe.strength, "height": recipe.height, "width": recipe.width,
           "padding_mask_crop": recipe.padding}

    def overlaid(picture: Any) -> Any:
        return processor.apply_overlay(mask, image, processor.resize(picture, image.height, image.width))

    return own, overlaid if recipe.overlay and recipe.padding is None else _as_is  # with padding the pipeline does it


_PARTS: dict[str, Callable[[Recipe, Any, Mapping[str, Any]], _Part]] = {
    "image-to-image": _from_image, "depth-to-image": _from_depth, "inpainting": _inpainting, "unconditional": _unconditional}
