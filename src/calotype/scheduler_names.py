"""The short names of solvers that people know from k-diffusion and from programs built on it: a class, and config entries.

A name says the solver, and how its levels are placed if it ends in a ramp: `dpmpp_2m_karras` is DPM-Solver++(2M) on the levels
of Karras et al. 2022, and `dpmpp_2m` on those of the timesteps. Nothing heavy is imported before a scheduler is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .registry import SCHEDULERS, find
from .words import nearest

RAMPS = ("karras", "exponential", "beta")
"""Endings of the names of `_ON_LEVELS`."""

_MULTISTEP, _SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"


def _dpm(order: int, algorithm_type: str = "dpmsolver++", solver_type: str = "midpoint") -> dict[str, Any]:
    return {"solver_order": order, "algorithm_type": algorithm_type, "solver_type": solver_type, "final_sigmas_type": "zero"}


_ON_LEVELS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": (_MULTISTEP, _dpm(2)),
    "dpmpp_2m_sde": (_MULTISTEP, _dpm(2, "sde-dpmsolver++")),
    "dpmpp_2m_sde_heun": (_MULTISTEP, _dpm(2, "sde-dpmsolver++", "heun")),
    "dpmpp_3m": (_MULTISTEP, _dpm(3)),
    "dpmpp_3m_sde": (_MULTISTEP, _dpm(3, "sde-dpmsolver++")),
    "dpmpp_2s": (_SINGLESTEP, _dpm(2)),
    "dpmpp_3s": (_SINGLESTEP, _dpm(3)),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "unipc_bh1": ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
    "unipc_bh2": ("UniPCMultistepScheduler", {"solver_type": "bh2"}),
    "deis": ("DEISMultistepScheduler", {}),
    "sa_solver": ("SASolverScheduler", {}),
}
_AS_THEY_ARE: dict[str, tuple[str, dict[str, Any]]] = {
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddim_inverse": ("DDIMInverseScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ipndm": ("IPNDMScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "edm_euler": ("EDMEulerScheduler", {}),
    "edm_dpmpp_2m": ("EDMDPMSolverMultistepScheduler", _dpm(2)),
    "flow_euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow_heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow_lcm": ("FlowMatchLCMScheduler", {}),
}


def _placed(ramp: str | None) -> dict[str, Any]:
    """Config entries of that ramp alone."""
    return {f"use_{each}_sigmas": each == ramp for each in RAMPS}


SHORT_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (kind, entries | _placed(None)) for name, (kind, entries) in _ON_LEVELS.items()},
    **{f"{name}_{ramp}": (kind, entries | _placed(ramp)) for name, (kind, entries) in _ON_LEVELS.items() for ramp in RAMPS},
    **_AS_THEY_ARE,
}
"""The class that each short name means, and its config entries."""


def _plain(name: str) -> str:
    """`name` without what its spellings differ in: `DPM++ 2M Karras`, `sample_dpmpp_2m`, `k_euler_ancestral`, `uni_pc`."""
    name = re.sub("^(sample|k)[ _]", "", name.lower()).replace("+", "p").replace("ancestral", "a")
    return re.sub("[^a-z0-9]", "", name)


_PLAIN = {_plain(name): name for name in SHORT_NAMES}


def meaning(name: str) -> tuple[str, dict[str, Any]]:
    """The class and the config entries that `name` means: a class's own name, or a short one in any usual spelling.

    Raises:
        ValueError: it is neither; names the nearest.
    """
    if name in SCHEDULERS:
        return name, {}
    if _plain(name) not in _PLAIN:
        raise ValueError(f"no scheduler {name!r:.80}{nearest(name, [*SCHEDULERS, *SHORT_NAMES])} "
                         "(`calotype schedulers` lists classes and short names)")
    return SHORT_NAMES[_PLAIN[_plain(name)]]


def short_names(class_name: str) -> list[str]:
    """The short names of a class, without those that end in a ramp."""
    return [name for name, (kind, _) in {**_ON_LEVELS, **_AS_THEY_ARE}.items() if kind == class_name]


def named_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """The scheduler that `name` means, made from the config of another: `named_scheduler("dpmpp_2m_karras", old.config)`.

    What a name does not say (betas, prediction type, spacing of timesteps, …) is that of `config`. A config without
    `clip_sample` is that of a solver that does not clip, as for latents, and so this one does not either.
    """
    kind, entries = meaning(name)
    if "clip_sample" in find(kind)._arguments() and "clip_sample" not in config:
        entries = entries | {"clip_sample": False}
    return find(kind).from_config(config, **entries)
