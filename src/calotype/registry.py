"""The classes that a checkpoint may name. A name in a file is looked up here and never imported."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from .words import listing, nearest

_DIFFUSERS = {
    "schedulers": (
        "CMStochasticIterativeScheduler", "CosineDPMSolverMultistepScheduler",
        "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
        "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler",
        "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler",
        "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
        "HeunDiscreteScheduler", "IPNDMScheduler", "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "SCMScheduler",
        "TCDScheduler", "UnCLIPScheduler", "UniPCMultistepScheduler",
    ),
    "schedulers.discrete": ("AmusedScheduler", "VQDiffusionScheduler"),
    "schedulers.repaint": ("RePaintScheduler",),
    "schedulers.score_sde_ve": ("ScoreSdeVeScheduler",),
    "models.autoencoder_asymmetric": ("AsymmetricAutoencoderKL",),
    "models.autoencoder_kl": ("AutoencoderKL",),
    "models.autoencoder_tiny": ("AutoencoderTiny",),
    "models.consistency_decoder": ("ConsistencyDecoderVAE",),
    "models.dit": ("DiTTransformer2DModel",),
    "models.unet_2d": ("UNet2DModel",),
    "models.unet_2d_condition": ("UNet2DConditionModel",),
    "models.vq_model": ("VQModel",),
    "pipelines.consistency": ("ConsistencyModelPipeline",),
    "pipelines.ddim": ("DDIMPipeline",),
    "pipelines.ddpm": ("DDPMPipeline",),
    "pipelines.depth2img": ("StableDiffusionDepth2ImgPipeline",),
    "pipelines.dit": ("DiTPipeline",),
    "pipelines.image_variation": ("StableDiffusionImageVariationPipeline",),
    "pipelines.img2img": ("StableDiffusionImg2ImgPipeline",),
    "pipelines.inpaint": ("StableDiffusionInpaintPipeline",),
    "pipelines.instruct_pix2pix": ("StableDiffusionInstructPix2PixPipeline",),
    "pipelines.latent_consistency": ("LatentConsistencyModelImg2ImgPipeline", "LatentConsistencyModelPipeline"),
    "pipelines.latent_upscale": ("StableDiffusionLatentUpscalePipeline",),
    "pipelines.ldm": ("LDMPipeline", "LDMSuperResolutionPipeline"),
    "pipelines.pndm": ("PNDMPipeline",),
    "pipelines.repaint": ("RePaintPipeline",),
    "pipelines.score_sde_ve": ("ScoreSdeVePipeline",),
    "pipelines.stable_diffusion": ("StableDiffusionPipeline",),
    "pipelines.stable_unclip": ("StableUnCLIPImg2ImgPipeline",),
    "pipelines.upscale": ("StableDiffusionUpscalePipeline",),
}
_TRANSFORMERS = {
    "depth": ("DPTForDepthEstimation", "DPTImageProcessor"),  # hold transformers' own
    "image_processor": ("CLIPImageProcessor",),
    "models.clip_text": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "models.clip_vision": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "tokenizer": ("CLIPTokenizer",),
}
_STABLE_DIFFUSION = {
    "models.safety_checker": ("StableDiffusionSafetyChecker",),
    "models.unclip_normalizer": ("StableUnCLIPImageNormalizer",),
}
_SAME = {
    "CLIPTokenizerFast": "CLIPTokenizer",
    "CLIPFeatureExtractor": "CLIPImageProcessor",
    "CLIPImageProcessorFast": "CLIPImageProcessor",
    "CLIPImageProcessorPil": "CLIPImageProcessor",
    "DPTFeatureExtractor": "DPTImageProcessor",
    "DPTImageProcessorFast": "DPTImageProcessor",
    "DPTImageProcessorPil": "DPTImageProcessor",
    "Transformer2DModel": "DiTTransformer2DModel",
}
"""Other names under which a class of ours is found."""

_HOMES = {
    name: (library, module)
    for library, modules in (
        ("diffusers", _DIFFUSERS), ("transformers", _TRANSFORMERS), ("stable_diffusion", _STABLE_DIFFUSION))
    for module, names in modules.items()
    for name in names
}


SCHEDULERS = sorted(_DIFFUSERS["schedulers"])
"""Those that can stand in each other's place."""
PIPELINES = sorted(name for name in _HOMES if name.endswith("Pipeline"))

_AUTOENCODERS = "AsymmetricAutoencoderKL", "AutoencoderKL", "AutoencoderTiny", "ConsistencyDecoderVAE", "VQModel"
_OF_ANY_KIND = tuple(name for module, names in _DIFFUSERS.items() if module.startswith("schedulers") for name in names)
COMPONENTS: dict[str, tuple[str, ...]] = {
    "depth_estimator": ("DPTForDepthEstimation",),
    "feature_extractor": ("CLIPImageProcessor", "DPTImageProcessor"),
    "image_encoder": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    "image_noising_scheduler": _OF_ANY_KIND,
    "image_normalizer": ("StableUnCLIPImageNormalizer",),
    "low_res_scheduler": _OF_ANY_KIND,
    "safety_checker": ("StableDiffusionSafetyChecker",),
    "scheduler": _OF_ANY_KIND,
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "tokenizer": ("CLIPTokenizer",),
    "transformer": ("DiTTransformer2DModel",),
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
    "vae": _AUTOENCODERS,
    "vqvae": _AUTOENCODERS,
    "watermarker": (),
}
"""The classes that a checkpoint may name for each component of a pipeline."""


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


def check_component(component: str, said: Any, where: str) -> None:
    """Raise a `ValueError` unless a checkpoint, `where`, may say this of a component: a library and a class that belongs there.

    A class that there is not is left to `find`. Components that only a pipeline of somebody else's has may be of any class that
    is no pipeline.
    """
    pair = isinstance(said, (list, tuple)) and len(said) == 2
    if said is None or not (pair or component in COMPONENTS):
        return  # nothing, or an option
    if not pair or not all(isinstance(word, str | None) for word in said):
        raise ValueError(f"{where} has {said!r:.80} for {component!r}, but must have a list of two: library and class")
    name = _SAME.get(said[1], said[1])
    allowed = COMPONENTS.get(component, sorted(_HOMES.keys() - PIPELINES))
    if name in _HOMES and name not in allowed:
        raise ValueError(f"{where} names the class {said[1]!r} for {component!r}, which must be "
                         f"{listing(allowed) or 'left out'}; another component is given as from_pretrained(…, {component}=…)")
