"""A solver as a table: every step is a weighted sum, and the weights are known before the first model call.

A solver writes one `Row` a model call. Rows name what they mix by the row in which it arose:

    x_next = Σ_j x[j] · x_j  +  Σ_j m[j] · m_j  +  raw_noise · ε̂  +  noise · fresh

`x_j` is the sample that entered row j, `m_j` what row j's model output said (about the clean sample, the noise, or as it
is: the solver chooses one), `ε̂` this row's predicted noise before any clipping, `fresh` new Gaussian noise. `Table`
compiles rows: it works out what must be remembered from row to row, gives each remembered tensor a slot, and folds all
linear readings of the model output into the weights. A step is then a handful of multiply-adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..randomness import Generators, randn
from .columns import Columns
from .noise import Levels
from .prediction import Clip, Prediction

Memory = Literal["x0", "noise", "output"]
State = list[Tensor | None]
Weight = float | Tensor


@dataclass(frozen=True)
class Row:
    """One step, as a solver writes it. `noise=None` draws none; a weight of 0 draws and ignores."""

    x: Mapping[int, float]
    m: Mapping[int, float] = field(default_factory=dict)
    raw_noise: float = 0.0
    noise: float | None = None


class Step(NamedTuple):
    """One step, compiled: weights of the tensors at hand, and where two of them are kept for later rows."""

    x: float
    output: float
    x0: float  # of the clipped clean sample; 0 where nothing clips
    kept: tuple[float, ...]  # one a slot
    noise: float | None
    keep_m: int | None
    keep_x: int | None
    m_x: float  # m = m_x · x + m_output · output + m_x0 · x0
    m_output: float
    m_x0: float


class Table:
    """All steps of one generation. It is never changed, so that any number of generations can share one.

    Attributes:
        timesteps: [n] what the model is told, row by row.
        input_scale: what the sample is multiplied by before the model sees it, row by row.
        init_noise_sigma: the standard deviation of the noise to begin with.
        ends_step: [n] whether a row's model call is the last of its solver step.
    """

    def __init__(
        self, levels: Levels, rows: Sequence[Row], prediction: Prediction, memory: Memory, clip: Clip | None,
        timesteps: Tensor, input_scale: Sequence[float], init_noise_sigma: float,
    ):
        self.levels = levels
        self.timesteps, self.input_scale, self.init_noise_sigma = timesteps, input_scale, init_noise_sigma
        self.prediction = Prediction(*(weights.tolist() for weights in prediction))
        self.clip = clip
        self._columns: dict[torch.device, Columns] = {}
        self.slots, places = _assign_slots(rows)
        self._reads_x = [tuple(row.x) for row in rows]
        self.steps = [self._compile(i, row, places, memory) for i, row in enumerate(rows)]
        self.ends_step = [True] * len(rows)

    def count_steps(self) -> None:
        """Tell solver steps and model calls apart, where there are more calls than steps.

        A call ends a step if no later one mixes the sample of this or an earlier one, that is, goes back to where a step began.
        """
        earliest = len(self)
        for i in reversed(range(len(self))):
            self.ends_step[i] = earliest > i
            earliest = min(earliest, *self._reads_x[i])

    def noised(self, x0: Tensor, noise: Tensor, row: int = 0) -> Tensor:
        """`alpha · x0 + sigma · noise` [B, …]: a clean sample at the level at which row `row` begins."""
        return x0 * float(self.levels.alpha[row]) + noise * float(self.levels.sigma[row])

    def __len__(self) -> int:
        return len(self.steps)

    def _compile(self, i: int, row: Row, places: dict[tuple[str, int], int], memory: Memory) -> Step:
        alpha, sigma = float(self.levels.alpha[i]), float(self.levels.sigma[i])
        x0_x, x0_out, noise_x, noise_out = (weights[i] for weights in self.prediction)
        if memory == "output":
            m_x, m_output, m_x0 = 0.0, 1.0, 0.0
        elif self.clip is not None:
            m_x, m_output, m_x0 = (0.0, 0.0, 1.0) if memory == "x0" else (1 / sigma, 0.0, -alpha / sigma)
        else:
            m_x, m_output, m_x0 = (x0_x, x0_out, 0.0) if memory == "x0" else (noise_x, noise_out, 0.0)
        m, kept = row.m.get(i, 0.0), [0.0] * self.slots
        for kind, weights in (("x", row.x), ("m", row.m)):
            for j, weight in weights.items():
                if j != i:
                    kept[places[kind, j]] = float(weight)
        return Step(  # of Python's numbers, which PyTorch takes faster than NumPy's
            x=float(row.x.get(i, 0.0) + _times(m, m_x) + _times(row.raw_noise, noise_x)),
            output=float(_times(m, m_output) + _times(row.raw_noise, noise_out)),
            x0=float(_times(m, m_x0)), kept=tuple(kept), noise=None if row.noise is None else float(row.noise),
            keep_m=places.get(("m", i)), keep_x=places.get(("x", i)),
            m_x=m_x, m_output=m_output, m_x0=m_x0,
        )

    # -- one step -----------------------------------------------------------------------------------------------------

    def new_state(self) -> State:
        """The empty memory with which a generation begins."""
        return [None] * self.slots

    def draws_noise(self, i: int) -> bool:
        """Whether step `i` takes fresh noise."""
        return self.steps[i].noise is not None

    def draw(self, i: int, x: Tensor, generator: Generators, dtype: torch.dtype, state: State) -> Tensor | None:
        """Fresh noise [B, …] for step `i` of the sample `x`, if it takes any."""
        return randn(x.shape, generator, x.device, dtype) if self.draws_noise(i) else None

    def mean_output(self, output: Tensor) -> Tensor:
        """The part of a model's output that predicts the sample; all of it, but for models that learn variance."""
        return output

    def denoised(self, i: int, output: Tensor, x: Tensor) -> Tensor:
        """The clean sample that the model sees in row `i`, clipped as configured."""
        x, output = _wide(x), _wide(output)
        x0 = weighted_sum([(self.prediction.x0_x[i], x), (self.prediction.x0_out[i], output)])
        return self.clip(x0) if self.clip else x0

    def columns(self, device: torch.device) -> Columns:
        """The table as tensors on `device`."""
        if device not in self._columns:
            self._columns[device] = Columns(self, device)
        return self._columns[device]

    def step(
        self, i: int | Tensor, output: Tensor, x: Tensor, state: State, noise: Tensor | None = None, x0: Tensor | None = None
    ) -> Tensor:
        """The next sample. `state` takes in what later rows need; nothing else changes.

        Args:
            i: the row; or [B] the row of each sample (see `columns.py`), and then in every step of the generation.
            output: [B, …] the model's output for `x`.
            x: [B, …] the sample at level `i`.
            state: from `new_state`, passed through all steps of one generation.
            noise: [B, …] standard normal, where `draws_noise(i)`.
            x0: [B, …] what `denoised` says, if that is known already.
        """
        kind, x, output = x.dtype, _wide(x), _wide(output)
        if isinstance(i, Tensor):
            return self.columns(x.device).step(i, output, x, state, noise).to(kind)
        step = self.steps[i]
        if x0 is None and self.clip and (step.x0 or step.keep_m is not None):
            x0 = self.denoised(i, output, x)
        following = weighted_sum([
            (step.x, x), (step.output, output), (step.x0, x0), (step.noise or 0.0, noise), *zip(step.kept, state, strict=True)])
        if step.keep_m is not None:
            state[step.keep_m] = weighted_sum([(step.m_x, x), (step.m_output, output), (step.m_x0, x0)])
        if step.keep_x is not None:
            state[step.keep_x] = x
        return following if following.dtype is kind else following.to(kind)


def weighted_sum(terms: Iterable[tuple[float, Tensor | None]]) -> Tensor:
    """`Σ weight · tensor` over the terms whose weight is not 0; one term of weight 1 is returned as it is."""
    mixed = [(weight, tensor) for weight, tensor in terms if weight != 0 and tensor is not None]
    if not mixed:
        raise ValueError("a step that mixes nothing")
    if len(mixed) == 1:
        weight, tensor = mixed[0]
        return tensor if weight == 1 else tensor * weight
    first = next((k for k, (weight, _) in enumerate(mixed) if weight == 1), None)  # it need not be multiplied
    if first is None:
        weight, tensor = mixed.pop(0)
        total = tensor * weight
    else:
        _, start = mixed.pop(first)
        weight, tensor = mixed.pop(0)
        total = torch.add(start, tensor, alpha=weight)
    for weight, tensor in mixed:
        total.add_(tensor, alpha=weight)  # in place: it was made here
    return total


def _times(weight: float, reading: float) -> float:
    """A product in which a weight of 0 wins over a reading that does not exist (is infinite)."""
    return weight * reading if weight else 0.0


def _wide(tensor: Tensor) -> Tensor:
    """Half precision is widened: the weights of late steps cancel almost entirely."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _assign_slots(rows: Sequence[Row]) -> tuple[int, dict[tuple[str, int], int]]:
    """Give each tensor that a later row mixes a slot, and free it after its last use.

    Returns:
        The number of slots, and the slot of `("x" or "m", row)`.
    """
    last_use: dict[tuple[str, int], int] = {}
    for i, row in enumerate(rows):
        for kind, weights in (("x", row.x), ("m", row.m)):
            for j in weights:
                if j > i:
                    raise ValueError(f"row {i} mixes {kind} of row {j}, which is still to come")
                if j < i:
                    last_use[kind, j] = i
    places: dict[tuple[str, int], int] = {}
    free_from: list[int] = []  # for each slot, the first row that may write it again
    for kind, j in sorted(last_use, key=lambda made: made[1]):
        slot = next((s for s, row in enumerate(free_from) if row <= j), len(free_from))
        free_from[slot : slot + 1] = [last_use[kind, j]]
        places[kind, j] = slot
    return len(free_from), places
