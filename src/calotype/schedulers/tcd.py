"""TCD: trajectory consistency distillation, with as much fresh noise a step as one likes."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from ..randomness import Generators
from .lcm import LCMScheduler
from .noise import Array, Levels
from .table import Row


class TCDScheduler(LCMScheduler):
    """Strategic stochastic sampling of trajectory consistency models (Zheng et al. 2024, algorithm 4).

    Each step goes by DDIM beyond the next timestep, to `floor((1 - eta) · t')`, and back to `t'` by fresh noise. The
    trajectory ends at training timestep 0. (`eta` is the paper's gamma.)

    The arguments are those of `LCMScheduler`; `timestep_scaling` has no effect, since nothing is skipped. (The peer
    passes over `clip_sample` and `thresholding` too; here they do what they say.)
    """

    def distilled_timesteps(self, steps: int, original_steps: int | None = None, strength: float = 1.0) -> Array:
        """As in LCM; where `original_steps` are given, any timestep will do, and they only bound the number of steps."""
        if original_steps is None:
            return super().distilled_timesteps(steps, None, strength)
        if steps > original_steps:
            raise ValueError(f"num_inference_steps is {steps}, more than the {original_steps} original_inference_steps")
        return self._some(np.arange(float(int(self.noise_schedule.count * strength))), steps)

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        times = self.distilled_timesteps(steps) if timesteps is None else timesteps
        return self.noise_schedule.vp_levels(times, self.noise_schedule.alphas_cumprod[0])

    def rows(self, levels: Levels, eta: float = 0.3, **options: Any) -> list[Row]:
        """`x' = r · (alpha_s · x0 + sigma_s · noise) + sqrt(1 - r²) · fresh`, with `r = alpha' / alpha_s`."""
        if not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta}, but must be from 0 to 1")
        kept, rows = self.noise_schedule.alphas_cumprod, []
        for i, following in enumerate([*levels.timesteps[1:], 0.0]):
            beyond = kept[int(np.float32(1 - eta) * np.float32(following))]  # 0.7 · 700 is 490
            remains = levels.alpha[i + 1] ** 2 / beyond
            fresh = np.sqrt(max(1 - remains, 0.0)) if eta > 0 and i < len(levels) - 1 else None
            rows.append(Row(x={}, m={i: levels.alpha[i + 1]}, raw_noise=np.sqrt(remains * (1 - beyond)), noise=fresh))
        return rows

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, eta: float = 0.3, generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """The sample [B, …] at the next timestep. `eta` is the share of noise renewed: 0 is deterministic, 1 renews all."""
        return self._step(model_output, timestep, sample, generator, return_dict, eta=eta)
