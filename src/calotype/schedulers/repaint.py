"""RePaint: inpainting with a model that knows nothing of it, by going back and forth between levels (Lugmayr et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..randomness import Generators, randn
from .base import SchedulerOutput
from .betas import BetaScheduler
from .ddim import DDIMScheduler
from .entries import takes
from .noise import Array, Levels
from .prediction import Prediction, read_prediction
from .table import Extended, State, Table


def resampled(steps: int, jump_length: int, jump_n_sample: int) -> list[int]:
    """The levels in the order in which they are visited, from `steps - 1` down to 0 (section 4.2 and appendix B).

    At every `jump_length`-th level the trajectory goes up by `jump_length` and down again, `jump_n_sample - 1` times.
    """
    for name, value in (("jump_length", jump_length), ("jump_n_sample", jump_n_sample)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}, but must be a whole number of at least 1")
    visited: list[int] = []
    for level in range(steps - 1, -1, -1):
        visited.append(level)
        if level % jump_length == 0 and level < steps - jump_length:
            up, down = range(level + 1, level + jump_length + 1), range(level + jump_length - 1, level - 1, -1)
            visited += [*up, *down] * (jump_n_sample - 1)
    return visited


@takes(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", eta=0.0, trained_betas=None,
       clip_sample=True)
class RePaintScheduler(DDIMScheduler):
    """RePaint (Lugmayr et al. 2022, algorithm 1): steps of DDIM, after each of which the known part of the picture is put back.

    `timesteps` fall and rise. A loop calls `step` where the next one is lower than the last, and else `undo_step` with the
    last, which goes up by the betas between the two levels.
    """

    steps_at_once = True
    placed_by = ()

    def _prepare(self) -> None:
        self.eta = self.config.eta
        super()._prepare()

    def levels(self, steps: int, timesteps: Array | None = None, sigmas: Array | None = None) -> Levels:
        return self.noise_schedule.vp_levels(self.noise_schedule.spaced("leading", steps))

    def prediction(self, levels: Levels) -> Prediction:
        """As the config of its model says, which is another class's."""
        return read_prediction(self.config.get("prediction_type", "epsilon"), levels)

    def _tabulate(self, levels: Levels, options: dict[str, Any]) -> Table:
        return super()._tabulate(levels, {"eta": self.eta, **options})

    def inpainting_table(self, num_inference_steps: int, original_image: Tensor, mask: Tensor, jump_length: int = 10,
                         jump_n_sample: int = 10, eta: float | None = None) -> RePaintTable:
        """The table of one generation, all ways down and up, by arguments of `set_timesteps` and `step`; nothing else changes."""
        down = self.table(num_inference_steps, eta=self.eta if eta is None else eta)
        return RePaintTable(down, resampled(len(down), jump_length, jump_n_sample), original_image, mask)

    def set_timesteps(self, num_inference_steps: int, jump_length: int = 10, jump_n_sample: int = 10,  # type: ignore[override]
                      device: torch.device | str | None = None) -> None:
        """Choose the levels, and the way through them.

        Args:
            jump_length: how many levels a jump goes back up, and how far jumps are apart; at least 1.
            jump_n_sample: how often each stretch is gone down; 1 never jumps.
        """
        BetaScheduler.set_timesteps(self, num_inference_steps, device)
        self.timesteps = self.timesteps.flip(0)[resampled(len(self.timesteps), jump_length, jump_n_sample)]

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, original_image: Tensor,  # type: ignore[override]
             mask: Tensor, generator: Generators = None, return_dict: bool = True) -> Any:
        """The sample one level lower: what DDIM says, but where `mask` is 1 the original, noised to that level.

        Args:
            original_image: [B, C, H, W] in [-1, 1].
            mask: [B or 1, 1 or C, H, W], 1 where the original is kept and 0 where the model paints.
        """
        noise = randn(sample.shape, generator, sample.device, model_output.dtype)  # of both parts
        painted = self._step(model_output, timestep, sample, None, True, noise, eta=self.eta)
        following = _put_back(painted.prev_sample, original_image, mask, self._current, self._row or 0, noise)
        return SchedulerOutput(following, painted.pred_original_sample) if return_dict else (following, painted[1])

    def undo_step(self, sample: Tensor, timestep: int | Tensor, generator: Generators = None) -> Tensor:
        """Take a sample [B, …] that `step` at `timestep` has made back up to the level of `timestep` (equation 1)."""
        noise = randn(sample.shape, generator, sample.device, sample.dtype)
        return _raised(sample, self._current, self.index_for_timestep(timestep), noise)


class RePaintTable(Extended):
    """The rows of RePaint: one a model call of the way `down`, and all that is undone after it, as levels are `visited`."""

    def __init__(self, down: Table, visited: Sequence[int], original_image: Tensor, mask: Tensor):
        super().__init__(down)
        self._original, self._mask = original_image, mask
        asked = [i for i, level in enumerate(visited) if i == 0 or level < visited[i - 1]]
        self._rows = [len(down) - 1 - visited[i] for i in asked]  # of `down`, in which the model is asked
        self._undone = [after - i - 1 for i, after in pairwise([*asked, len(visited)])]  # and how many are undone after it
        self.steps, self.input_scale = [down.steps[row] for row in self._rows], [down.input_scale[row] for row in self._rows]
        self.timesteps, self.ends_step = down.timesteps[self._rows], [True] * len(self._rows)

    def draw(self, i: int, x: Tensor, generator: Generators, dtype: torch.dtype, state: State) -> Tensor:
        """[1 + n, B, …] the noise of the step and of the n that are undone after it."""
        return torch.stack([randn(x.shape, generator, x.device, dtype) for _ in range(1 + self._undone[i])])

    def step(self, i: int | Tensor, output: Tensor, x: Tensor, state: State, noise: Tensor | None = None,
             x0: Tensor | None = None) -> Tensor:
        if isinstance(i, Tensor) or noise is None:
            raise ValueError("samples of RePaint go through the rows together, with noise: give one row, and what draw gives")
        row, painted = self._rows[i], super().step(i, output, x, state, noise[0], x0)
        sample = _put_back(painted, self._original, self._mask, self.levels, row, noise[0])
        for above, fresh in enumerate(noise[1:]):
            sample = _raised(sample, self.levels, row - above, fresh)
        return sample.to(x.dtype)


def _put_back(painted: Tensor, original: Tensor, mask: Tensor, levels: Levels, row: int, noise: Tensor) -> Tensor:
    """A sample at the end of row `row`, but where `mask` is 1 the original, noised to that level (equation 8)."""
    known = float(levels.alpha[row + 1]) * original + float(levels.sigma[row + 1]) * noise
    return mask * known + (1 - mask) * painted


def _raised(sample: Tensor, levels: Levels, row: int, noise: Tensor) -> Tensor:
    """A sample [B, …] at the end of row `row` taken up to its beginning (Lugmayr et al. 2022, equation 1)."""
    kept = float(levels.alpha[row] / levels.alpha[row + 1])
    return kept * sample + (1 - kept**2) ** 0.5 * noise
