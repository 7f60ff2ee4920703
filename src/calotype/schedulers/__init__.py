"""Solvers of the reverse process: from noise to a picture in few steps."""

from __future__ import annotations

from .base import Scheduler, SchedulerOutput
from .ddim import DDIMScheduler
from .ddpm import DDPMScheduler
from .euler import EulerDiscreteScheduler
from .pndm import PNDMScheduler

ALL: tuple[type[Scheduler], ...] = (DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler)
"""Every scheduler, by the alphabet."""

__all__ = ["ALL", "Scheduler", "SchedulerOutput", *(cls.__name__ for cls in ALL)]
