"""What is random in training, as a function of its place: no random state is saved, and a killed run goes on exactly."""

from __future__ import annotations

import numpy as np
import torch


def seed_for(seed: int, *place: int) -> int:
    """A seed of 63 bits for one place of a run: `seed_for(seed, step, process)`. Places next to each other are unrelated."""
    low, high = np.random.SeedSequence([seed, *place]).generate_state(2)
    return int(low) | (int(high) & 0x7FFFFFFF) << 32


def generator_for(seed: int, *place: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for one place of a run."""
    return torch.Generator(device).manual_seed(seed_for(seed, *place))
