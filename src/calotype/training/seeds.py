"""What is random in training, as a function of its place: no random state is saved, and a killed run goes on exactly."""

from __future__ import annotations

import numpy as np
import torch


def seed_for(seed: int, *place: int) -> int:
    """A seed of 63 bits for one place of a run: `seed_for(seed, step, process)`. Places next to each other are unrelated, and
    so are places of other lengths. `seed` and `place` are not negative."""
    low, high = np.random.SeedSequence(seed, spawn_key=place).generate_state(2)  # not [seed, *place]: it pads with zeros
    return int(low) | (int(high) & 0x7FFFFFFF) << 32


def generator_for(seed: int, *place: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` for one place of a run."""
    return torch.Generator(device).manual_seed(seed_for(seed, *place))
