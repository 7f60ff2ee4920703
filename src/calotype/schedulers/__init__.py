"""Solvers of the reverse process: from noise to a picture in few steps."""

from __future__ import annotations

from .base import Scheduler, SchedulerOutput
from .consistency import CMStochasticIterativeScheduler, SCMScheduler
from .ddim import DDIMInverseScheduler, DDIMParallelScheduler, DDIMScheduler
from .ddpm import DDPMParallelScheduler, DDPMScheduler, UnCLIPScheduler
from .discrete import AmusedScheduler, VQDiffusionScheduler
from .dpmsolver import (
    DEISMultistepScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
)
from .edm import CosineDPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from .entries import SchedulerMixin
from .euler import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler
from .flow_match import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler
from .heun import DPMSolverSDEScheduler, HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler
from .lcm import LCMScheduler, TCDScheduler
from .pndm import IPNDMScheduler, LMSDiscreteScheduler, PNDMScheduler
from .repaint import RePaintScheduler
from .score_sde_ve import ScoreSdeVeScheduler
from .unipc import SASolverScheduler, UniPCMultistepScheduler

ALL: tuple[type[Scheduler], ...] = (
    CMStochasticIterativeScheduler, CosineDPMSolverMultistepScheduler,
    DDIMInverseScheduler, DDIMParallelScheduler, DDIMScheduler, DDPMParallelScheduler, DDPMScheduler, DEISMultistepScheduler,
    DPMSolverMultistepInverseScheduler, DPMSolverMultistepScheduler, DPMSolverSDEScheduler, DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler, EDMEulerScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler,
    HeunDiscreteScheduler, IPNDMScheduler, KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler, LCMScheduler,
    LMSDiscreteScheduler, PNDMScheduler, SASolverScheduler, SCMScheduler, TCDScheduler, UnCLIPScheduler, UniPCMultistepScheduler,
)
"""Every scheduler that is a table, by the alphabet: what can stand in another's place."""

OWN_STEPS: tuple[type[SchedulerMixin], ...] = (AmusedScheduler, RePaintScheduler, ScoreSdeVeScheduler, VQDiffusionScheduler)
"""Those whose loop is their own: their steps take more than a model's output, or are not linear in it."""

__all__ = ["ALL", "OWN_STEPS", "Scheduler", "SchedulerMixin", "SchedulerOutput", *(cls.__name__ for cls in (*ALL, *OWN_STEPS))]
