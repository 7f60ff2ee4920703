"""The classes that a checkpoint may name. A name in a file is looked up here and never imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .words import listing, nearest

_DIFFUSERS = {
    "schedulers": ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"),
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
    "models.safety_checker": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
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


def library_of(component: object) -> str:
    """The library that `model_index.json` names for a component: the one that others would load it with."""
    for cls in type(component).__mro__:
        if cls.__name__ in _HOMES:
            return _HOMES[cls.__name__][0]
    raise ValueError(f"a {type(component).__name__} cannot be saved in a pipeline: files have no name for it")
