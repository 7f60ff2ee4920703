"""The classes that a checkpoint may name. A name in a file is looked up here and never imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .words import listing, nearest

_DIFFUSERS = {
    "schedulers": (
        "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
        "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "TCDScheduler", "UnCLIPScheduler",
        "UniPCMultistepScheduler",
    ),
    "models.autoencoder_kl": ("AutoencoderKL",),
    "models.unet_2d": ("UNet2DModel",),
    "models.unet_2d_condition": ("UNet2DConditionModel",),
    "pipelines.ddim": ("DDIMPipeline",),
    "pipelines.ddpm": ("DDPMPipeline",),
    "pipelines.stable_diffusion": ("StableDiffusionPipeline",),
}
_TRANSFORMERS = {
    "image_processor": ("CLIPImageProcessor",),
    "models.clip_text": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "models.clip_vision": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "tokenizer": ("CLIPTokenizer",),
}
_STABLE_DIFFUSION = {"models.safety_checker": ("StableDiffusionSafetyChecker",)}
_SAME = {
    "CLIPTokenizerFast": "CLIPTokenizer",
    "CLIPFeatureExtractor": "CLIPImageProcessor",
    "CLIPImageProcessorFast": "CLIPImageProcessor",
    "CLIPImageProcessorPil": "CLIPImageProcessor",
}
"""Other names under which a class of ours is found."""

_HOMES = {
    name: (library, module)
    for library, modules in (
        ("diffusers", _DIFFUSERS), ("transformers", _TRANSFORMERS), ("stable_diffusion", _STABLE_DIFFUSION))
    for module, names in modules.items()
    for name in names
}


SCHEDULERS = sorted(name for name in _HOMES if name.endswith("Scheduler"))
PIPELINES = sorted(name for name in _HOMES if name.endswith("Pipeline"))


def entry(component: object) -> list[str | None]:
    """What `model_index.json` says of a component: its library and class."""
    if component is None:
        return [None, None]
    own = next((cls.__name__ for cls in type(component).__mro__ if cls.__name__ in _HOMES), None)
    if own is None:
        return [type(component).__module__.split(".")[0], type(component).__name__]
    return [_HOMES[own][0], own]


def known(name: str) -> bool:
    """Whether `find` has a class of that name."""
    return _SAME.get(name, name) in _HOMES


def find(name: str) -> Any:
    """The class that files call `name`.

    Raises:
        ValueError: there is none; names the nearest, and all.
    """
    name = _SAME.get(name, name)
    if name not in _HOMES:
        raise ValueError(f"no class {name!r}{nearest(name, _HOMES)} (there are {listing(sorted(_HOMES))})")
    return getattr(import_module(f".{_HOMES[name][1]}", __package__), name)
