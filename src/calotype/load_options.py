"""What `from_pretrained` of models and pipelines is told about how to load, checked before anything is read: dtype and device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .words import check_choice

SPREAD = ("auto", "balanced")
"""What else than a device `device_map` may be: the accelerator, where there is one; models are not divided."""

_WITHOUT_EFFECT = ("low_cpu_mem_usage",)  # how Diffusers is told to load well; here it is the only way
_NOT_HERE = {
    "use_flashpack": "weights are read from safetensors",
    "use_onnx": "weights for ONNX are not read",
    "custom_pipeline": "code that comes with a checkpoint is never run",
    "custom_revision": "code that comes with a checkpoint is never run",
}


def drop_needless(options: dict[str, Any], *more: str) -> None:
    """Take out of keyword arguments what changes nothing: the options in `more`, and those that ask for what is always done.

    Raises:
        ValueError: one asks for what there is not.
    """
    for name in (*_WITHOUT_EFFECT, *more):
        options.pop(name, None)
    for name, why in _NOT_HERE.items():
        if options.pop(name, None):
            raise ValueError(f"{name} cannot be given: {why}")


def take_dtype(options: dict[str, Any], components: Iterable[str] | None = None) -> Any:
    """Take the dtype out of keyword arguments, by either of its names, and check it.

    Args:
        components: those of a pipeline, for which a mapping may give dtypes of their own.

    Returns:
        A dtype, `"auto"`, `None`, or a mapping from names of components, and `"default"`, to such.

    Raises:
        ValueError: both names are given, or what parameters cannot be, or for a component that there is not.
    """
    given = [options.pop(name) for name in ("torch_dtype", "dtype") if options.get(name) is not None]
    for name in ("torch_dtype", "dtype"):
        options.pop(name, None)
    if len(given) > 1:
        raise ValueError("torch_dtype and dtype are two names of one argument: give one of them")
    dtype = given[0] if given else None
    if components is not None and isinstance(dtype, Mapping):
        for name, own in dtype.items():
            check_choice("a component in torch_dtype", name, [*components, "default"])
            _check_dtype(own, f"torch_dtype[{name!r}]")
        return dict(dtype)
    _check_dtype(dtype, "torch_dtype")
    return dtype


def _check_dtype(dtype: Any, name: str) -> None:
    if dtype is None or dtype == "auto" or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return
    raise ValueError(f"{name} is {dtype!r}, but must be a torch dtype with a floating point, such as torch.float16, or 'auto'")


def take_device(options: dict[str, Any]) -> torch.device | None:
    """Take `device_map` out of keyword arguments: the device on which to load, `None` where it is not given.

    Raises:
        ValueError: it is no device, or none of this machine.
    """
    wanted = options.pop("device_map", None)
    if isinstance(wanted, Mapping) and wanted.keys() == {""}:
        wanted = wanted[""]  # how Accelerate says that the whole model is meant
    if wanted is None:
        return None
    if wanted in SPREAD:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        told = (str(error).splitlines() or [""])[0].rstrip(".")
        raise ValueError(f"device_map is {wanted!r}, but must be a device of this machine, such as 'cpu' or 'cuda', "
                         f"or 'auto' or 'balanced' ({told})") from None
    if device.type == "meta":
        raise ValueError("device_map is 'meta', where nothing could be loaded: it must be a device of this machine")
    return device
