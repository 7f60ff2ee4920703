"""Solvers of the reverse process: from noise to a picture in few steps."""

from __future__ import annotations

from .base import Scheduler, SchedulerOutput
from .ddim import DDIMScheduler
from .ddim_inverse import DDIMInverseScheduler
from .ddpm import DDPMScheduler
from .deis_multistep import DEISMultistepScheduler
from .dpmsolver_multistep import DPMSolverMultistepScheduler
from .dpmsolver_singlestep import DPMSolverSinglestepScheduler
from .euler import EulerDiscreteScheduler
from .euler_ancestral import EulerAncestralDiscreteScheduler
from .heun import HeunDiscreteScheduler
from .kdpm2 import KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler
from .lcm import LCMScheduler
from .lms import LMSDiscreteScheduler
from .parallel import DDIMParallelScheduler, DDPMParallelScheduler
from .pndm import PNDMScheduler
from .tcd import TCDScheduler
from .unclip import UnCLIPScheduler
from .unipc_multistep import UniPCMultistepScheduler

ALL: tuple[type[Scheduler], ...] = (
    DDIMInverseScheduler, DDIMParallelScheduler, DDIMScheduler, DDPMParallelScheduler, DDPMScheduler, DEISMultistepScheduler,
    DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
    HeunDiscreteScheduler, KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler, LCMScheduler, LMSDiscreteScheduler,
    PNDMScheduler, TCDScheduler, UnCLIPScheduler, UniPCMultistepScheduler,
)
"""Every scheduler, by the alphabet."""

__all__ = ["ALL", "Scheduler", "SchedulerOutput", *(cls.__name__ for cls in ALL)]
