"""Configs of old checkpoints of Stable Diffusion, put right where a pipeline is made of them.

Their schedulers were published with entries that do not fit the models, and their UNets with a `sample_size` that is no size of
theirs. Diffusers' pipelines put both right when they are made, each class its own entries: a picture of such a checkpoint
depends on it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ..config import WRITTEN_BY, Configured

LATENTS_ARE_NOT_CLIPPED: Mapping[str, Any] = MappingProxyType({"steps_offset": 1, "clip_sample": False})
NO_RUNGE_KUTTA: Mapping[str, Any] = MappingProxyType({"steps_offset": 1, "skip_prk_steps": True})
_SIZE = 64  # of the latents of every Stable Diffusion before release 0.9.0 of Diffusers
_log = logging.getLogger(__name__)


def right_scheduler(scheduler: Any, right: Mapping[str, Any]) -> Any:
    """`scheduler`, or one like it with those entries of `right` that its config has otherwise; it is not changed itself."""
    if not isinstance(scheduler, Configured):
        return scheduler
    config = scheduler.config
    wrong = {name: value for name, value in right.items() if name in config and _is_wrong(config[name], value)}
    if not wrong:
        return scheduler
    _log.warning("the %s has the config of an old checkpoint; instead of %s, as Stable Diffusion was trained: %s",
                 type(scheduler).__name__, _said({name: config[name] for name in wrong}), _said(wrong))
    return scheduler.with_entries(**wrong)


def right_size(unet: Any) -> None:
    """Tell an old UNet, written before release 0.9.0, that its latents are 64 x 64, if its config has a smaller size."""
    config = getattr(unet, "config", {})
    release = re.match(r"0\.(\d+)\.", str(config.get(WRITTEN_BY, "")))
    size = config.get("sample_size")
    if release and int(release[1]) < 9 and isinstance(size, int) and size < _SIZE:
        _log.warning("the UNet has the config of an old checkpoint; instead of sample_size=%d, as it was trained: %d",
                     size, _SIZE)
        unet.register_to_config(sample_size=_SIZE)


def _is_wrong(value: Any, right: Any) -> bool:
    return value is (not right) if isinstance(right, bool) else value != right


def _said(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in entries.items())
