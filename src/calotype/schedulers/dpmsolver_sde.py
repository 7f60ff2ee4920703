"""SDE-DPM-Solver++ (2S) in sigma: a midpoint method along the SDE, its noise from a Brownian path (Lu et al. 2022b)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..config import register_to_config
from ..randomness import Generators
from .brownian import BrownianTable
from .euler_ancestral import ancestral
from .kdpm2 import KDPM2DiscreteScheduler
from .noise import Array, Levels
from .table import Row, Table
from .ve import starts_of_two


@dataclass(frozen=True)
class _Levels(Levels):
    """Levels that remember, also when entered midway, between which ones (the last not counted) the whole trajectory goes."""

    ends: tuple[float, float] = (0.0, 0.0)


def _path_levels(levels: Levels) -> list[float]:
    """The levels as the seed's path is asked at them.

    A path is as rough as the root of a distance, and moves visibly between two neighbours in single precision. So pictures
    are repeated only if the rounding is: of logarithms, and of the middle between two of them.
    """
    log = torch.from_numpy(levels.sigma).float().log()
    for i, start in enumerate(starts_of_two(levels)):
        if start < i:
            log[i] = log[start] + 0.5 * (log[i + 1] - log[start])
    return log.exp().tolist()


class DPMSolverSDEScheduler(KDPM2DiscreteScheduler):
    """SDE-DPM-Solver++ with a middle in log(sigma), two model calls a step (Lu et al. 2022b; k-diffusion's `dpmpp_sde`).

    The noise of a step and of its way to the middle are increments of one Brownian path, which `torchsde` makes
    (`pip install 'calotype[sde]'`), so that more steps with the same seed come closer to one picture. `len(timesteps)` is
    the number of calls; the last step, to the clean sample, is one of Euler. Samples are variance-exploding: begin with
    noise times `init_noise_sigma` and call `scale_model_input`.

    Args:
        noise_sampler_seed: the seed of the path; or a list, one for each sample. `None` takes it from the generator.
    """

    ends_listed = 0
    memory = "x0"
    rounds_karras = False

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012,
        beta_schedule: str = "linear", trained_betas: Sequence[float] | None = None, prediction_type: str = "epsilon",
        use_karras_sigmas: bool = False, use_exponential_sigmas: bool = False, use_beta_sigmas: bool = False,
        noise_sampler_seed: int | Sequence[int] | None = None, timestep_spacing: str = "linspace", steps_offset: int = 0,
    ):
        self._prepare()

    def levels(
        self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None, num_train_timesteps: int | None = None
    ) -> Levels:
        levels = super().levels(steps, timesteps, sigmas, num_train_timesteps)
        return _Levels(levels.timesteps, levels.alpha, levels.sigma, ends=(levels.sigma[-2], levels.sigma[0]))

    def timesteps_of(self, levels: Levels, device: torch.device | str | None = None) -> Tensor:
        return torch.from_numpy(levels.timesteps.copy()).to(device)

    def rows(self, levels: Levels, s_noise: float = 1.0, **options: Any) -> list[Row]:
        """`x' = down/sigma · x + (1 - down/sigma) · x0 + up · fresh`, to the middle, and with its `x0` to the end.

        See `ancestral`; `sigma` and `x` are those where the step begins.
        """
        rows = []
        for i, start in enumerate(starts_of_two(levels)):
            down, up = ancestral(levels.sigma[start], levels.sigma[i + 1])
            kept = down / levels.sigma[start]
            rows.append(Row(x={start: kept}, m={i: 1 - kept}, noise=s_noise * up if up > 0 else None))
        return rows

    def _tabulate(self, levels: Levels, options: dict[str, Any]) -> Table:
        assert isinstance(levels, _Levels)
        starts, path = starts_of_two(levels), _path_levels(levels)
        spans = [(path[start], path[i + 1]) for i, start in enumerate(starts)]
        return BrownianTable(super()._tabulate(levels, options), spans, levels.ends, self.config.noise_sampler_seed)

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True, s_noise: float = 1.0,
        generator: Generators = None,
    ) -> Any:
        """The sample [B, …] for the next call.

        Args:
            s_noise: the standard deviation of the fresh noise.
            generator: seeds the path where there is no `noise_sampler_seed`, once, as a trajectory begins: one, or one for each
                sample.
        """
        return self._step(model_output, timestep, sample, generator, return_dict, s_noise=s_noise)
