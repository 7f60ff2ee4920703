"""What arguments of pipelines' calls may be, by their names, which mean the same in every pipeline."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch

from ..arguments import number, numbers, refuse, tensor, whole_number
from ..words import check_keywords

_Call = TypeVar("_Call", bound=Callable[..., Any])
Check = Callable[[str, Any], Any]


def checked_strength(name: str, given: Any) -> float:
    """A number above 0 and at most 1."""
    strength = number(name, given)
    if not 0 < strength <= 1:
        raise ValueError(f"{name} is {given}, but must be above 0 and at most 1")
    return strength


def _steps(name: str, given: Any) -> int | None:
    """Any whole number, or `None` where timesteps are given: how many there may be, the scheduler says."""
    return None if given is None else whole_number(name, given, least=None)


def _generators(name: str, given: Any) -> Any:
    several = isinstance(given, list | tuple)
    if not all(isinstance(one, torch.Generator) for one in (given if several else [given])):
        refuse(name, given, "a torch.Generator, or a list of them, one for each image")
    return list(given) if several else given


def _callback(name: str, given: Any) -> Any:
    return given if callable(given) else refuse(name, given, "a function of pipeline, call, timestep and tensors")


def _names(name: str, given: Any) -> tuple[str, ...]:
    if given is not None and (isinstance(given, str) or not hasattr(given, "__iter__")):
        refuse(name, given, "a list of names of tensors")
    return tuple(given or ())


def _options(name: str, given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else refuse(name, given, "a dictionary")


def _tensor(name: str, given: Any, shape: tuple[str, ...]) -> torch.Tensor:
    return tensor(name, given, *shape, values=False)


_at_least_0 = partial(whole_number, least=0)
# of tensors only the kind, at first: the pipeline knows which sides they must have, and looks at the values then
_embeds = partial(_tensor, shape=("batch", "tokens", "channels"))
_pooled = partial(_tensor, shape=("batch", "channels"))
_latents = partial(_tensor, shape=("batch", "channels", "height", "width"))

CHECKS: dict[str, Check] = {
    "num_inference_steps": _steps, "original_inference_steps": whole_number, "timesteps": numbers, "sigmas": numbers,
    "num_images_per_prompt": whole_number, "batch_size": whole_number, "jump_length": whole_number,
    "jump_n_sample": whole_number, "padding_mask_crop": _at_least_0, "clip_skip": _at_least_0,
    "noise_level": partial(whole_number, least=None, floats=True),
    "guidance_scale": number, "image_guidance_scale": number, "guidance_rescale": number, "eta": partial(number, least=0),
    "strength": checked_strength, "generator": _generators, "callback_on_step_end": _callback,
    "callback_on_step_end_tensor_inputs": _names, "cross_attention_kwargs": _options,
    "latents": _latents, "masked_image_latents": _latents, "prompt_embeds": _embeds, "negative_prompt_embeds": _embeds,
    "pooled_prompt_embeds": _pooled, "negative_pooled_prompt_embeds": _pooled, "image_embeds": _pooled,
}
"""What each argument is checked by; one whose default is `None` may be `None`."""

CHECKED_BY_CALLS = frozenset({
    "prompt", "negative_prompt", "prompt_syntax", "long_prompts", "image", "mask_image", "depth_map", "height", "width",
    "class_labels", "quality", "output_type", "return_dict", "use_clipped_model_output"})
"""Those that are texts, images, words or truth values, and those that a call can only judge beside others."""


def check_arguments(parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """What to go on with of the arguments `given`, by name.

    Raises:
        ValueError: one that cannot be; names it, and says what can.
    """
    def checked(name: str, value: Any) -> Any:
        check = CHECKS.get(name)
        return value if check is None or (value is None and parameters[name].default is None) else check(name, value)

    return {name: checked(name, value) for name, value in given.items()}


def takes_arguments(call: _Call) -> _Call:
    """Decorate a `__call__`: without gradients, and with arguments that are checked."""
    signature = inspect.signature(call)
    parameters = signature.parameters

    @functools.wraps(call)
    @torch.no_grad()
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_keywords(type(self).__name__, kwargs, [name for name in parameters if name != "self"])
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments.update(check_arguments(parameters, bound.arguments))
        return call(*bound.args, **bound.kwargs)

    return wrapper  # type: ignore[return-value]
