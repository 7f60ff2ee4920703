"""Solvers of the reverse process: from noise to a picture in few steps."""

from __future__ import annotations

from .base import Scheduler, SchedulerOutput
from .consistency import CMStochasticIterativeScheduler, SCMScheduler
from .cosine_dpmsolver_multistep import CosineDPMSolverMultistepScheduler
from .ddim import DDIMScheduler
from .ddim_inverse import DDIMInverseScheduler
from .ddpm import DDPMScheduler
from .deis_multistep import DEISMultistepScheduler
from .discrete import AmusedScheduler, VQDiffusionScheduler
from .dpmsolver_multistep import DPMSolverMultistepScheduler
from .dpmsolver_multistep_inverse import DPMSolverMultistepInverseScheduler
from .dpmsolver_sde import DPMSolverSDEScheduler
from .dpmsolver_singlestep import DPMSolverSinglestepScheduler
from .edm import EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from .euler import EulerDiscreteScheduler
from .euler_ancestral import EulerAncestralDiscreteScheduler
from .files import SchedulerMixin
from .flow_match import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler
from .heun import HeunDiscreteScheduler
from .ipndm import IPNDMScheduler
from .kdpm2 import KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler
from .lcm import LCMScheduler
from .lms import LMSDiscreteScheduler
from .parallel import DDIMParallelScheduler, DDPMParallelScheduler
from .pndm import PNDMScheduler
from .repaint import RePaintScheduler
from .sasolver import SASolverScheduler
from .score_sde_ve import ScoreSdeVeScheduler
from .tcd import TCDScheduler
from .unclip import UnCLIPScheduler
from .unipc_multistep import UniPCMultistepScheduler

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
