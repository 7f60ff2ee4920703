"""A solver as a table: every step is a weighted sum, and the weights are known before the first model call.

A solver writes one `Row` a model call. Rows name what they mix by the row in which it arose:

    x_next = Σ_j x[j] · x_j  +  Σ_j m[j] · m_j  +  raw_noise · ε̂  +  noise · fresh

`x_j` is the sample that entered row j, `m_j` what row j's model output said (about the clean sample, the noise, or as it
is: the solver chooses one), `ε̂` this row's predicted noise before any clipping, `fresh` new Gaussian noise. `Table`
compiles rows: it works out what must be remembered from row to row, gives each remembered tensor a slot, and folds all
linear readings of the model output into the weights. A step is then a handful of multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..randomness import Generators, randn
from .noise import Levels
from .prediction import Clip, Prediction

Memory = Literal["x0", "noise", "output"]
State = list[Tensor | None]
Terms = tuple[tuple[int, float], ...]
"""A weighted sum: places among `(x, output, clipped x0, fresh noise, *slots)`, and their weights; a weight of 1 first."""
_X, _OUTPUT, _X0, _NOISE, _SLOTS = range(5)


@dataclass(frozen=True)
class Row:
    """One step, as a solver writes it. `noise=None` draws none; a weight of 0 draws and ignores."""

    x: Mapping[int, float]
    m: Mapping[int, float] = field(default_factory=dict)
    raw_noise: float = 0.0
    noise: float | None = None


class Step(NamedTuple):
    """One step, compiled: what it mixes, and which slots keep two things for later rows."""

    following: Terms
    x0: Terms  # before it is clipped
    m: Terms
    noise: float | None
    keep_m: int | None
    keep_x: int | None
    clips: bool


class Table:
    """All steps of one generation. It is never changed, so that any number of generations can share one.

    Attributes:
        timesteps: [n] what the model is told, row by row.
        input_scale: what the sample is multiplied by before the model sees it, row by row.
        init_noise_sigma: the standard deviation of the noise to begin with.
        slots, places: how many tensors are remembered, and in which slot `("x" or "m", row)` is.
        ends_step: [n] whether a row's model call is the last of its solver step.
    """

    def __init__(self, levels: Levels, rows: Sequence[Row], prediction: Prediction, memory: Memory, clip: Clip | None,
                 timesteps: Tensor, input_scale: Sequence[float], init_noise_sigma: float):
        self.levels, self.clip = levels, clip
        self.timesteps, self.input_scale, self.init_noise_sigma = timesteps, input_scale, init_noise_sigma
        self._columns: dict[torch.device, Columns] = {}
        self.slots, self.places = _assign_slots(rows)
        self._reads_x = [tuple(row.x) for row in rows]
        readings = zip(*(weights.tolist() for weights in prediction), strict=True)
        self.steps = [self._compile(i, *each, self.places, memory) for i, each in enumerate(zip(rows, readings, strict=True))]
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

    def undefined_row(self) -> int | None:
        """The first row that mixes what does not exist, with weights that are infinite, if there is one.

        At a level without signal, a prediction of the noise says nothing about the clean sample; and so on.
        """
        for i, step in enumerate(self.steps):
            used = (*step.following, *(step.m if step.keep_m is not None else ()), *(step.x0 if step.clips else ()))
            if not all(math.isfinite(weight) for _, weight in used):
                return i
        return None

    def __len__(self) -> int:
        return len(self.steps)

    def _compile(self, i: int, row: Row, reading: Sequence[float], places: Mapping[tuple[str, int], int], memory: Memory) -> Step:
        x0, raw_noise, m = tuple(enumerate(reading[:2])), tuple(enumerate(reading[2:])), _terms([(_OUTPUT, 1.0)])
        if memory == "x0":
            m = x0 if self.clip is None else ((_X0, 1.0),)
        elif memory == "noise" and self.clip is not None:
            alpha, sigma = float(self.levels.alpha[i]), float(self.levels.sigma[i])
            m = (_X, 1 / sigma), (_X0, -alpha / sigma)
        elif memory == "noise":
            m = raw_noise
        mixed = {_NOISE: float(row.noise or 0.0)}
        for kind, weights, own in (("x", row.x, ((_X, 1.0),)), ("m", row.m, m), ("noise", {i: row.raw_noise}, raw_noise)):
            for j, weight in weights.items():
                for place, share in own if j == i else ((_SLOTS + places[kind, j], 1.0),):
                    if weight:  # one of 0 wins over a reading that does not exist (is infinite)
                        mixed[place] = mixed.get(place, 0.0) + float(weight) * share
        following, keep_m, keep_x = _terms(mixed.items()), places.get(("m", i)), places.get(("x", i))
        clips = self.clip is not None and (keep_m is not None or any(place == _X0 for place, _ in following))
        return Step(following, _terms(x0), _terms(m), None if row.noise is None else float(row.noise), keep_m, keep_x, clips)

    # -- one step -------------------------------------------------------------------------------------------------------

    def new_state(self) -> State:
        """The empty memory with which a generation begins."""
        return [None] * self.slots

    def draws_noise(self, i: int) -> bool:
        """Whether step `i` takes fresh noise."""
        return self.steps[i].noise is not None

    def draw(self, i: int, x: Tensor, generator: Generators, dtype: torch.dtype, state: State) -> Tensor | None:
        """Fresh noise [B, …] for step `i` of the sample `x`, if it takes any."""
        return randn(x.shape, generator, x.device, dtype) if self.draws_noise(i) else None

    def read(self, i: int | Tensor, output: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What of a model's output predicts the sample, and the fresh noise; but for models that learn variance, as they are."""
        return output, noise

    def denoised(self, i: int, output: Tensor, x: Tensor) -> Tensor:
        """The clean sample that the model sees in row `i`, clipped as configured."""
        return self._denoised(self.steps[i], _wide(self.read(i, output)[0]), _wide(x))

    def _denoised(self, step: Step, output: Tensor, x: Tensor) -> Tensor:
        x0 = weighted_sum(step.x0, (x, output))
        return self.clip(x0) if self.clip else x0

    def columns(self, device: torch.device) -> Columns:
        """The table as tensors on `device`."""
        if device not in self._columns:
            self._columns[device] = Columns(self, device)
        return self._columns[device]

    def step(self, i: int | Tensor, output: Tensor, x: Tensor, state: State, noise: Tensor | None = None,
             x0: Tensor | None = None) -> Tensor:
        """The next sample. `state` takes in what later rows need; nothing else changes.

        Args:
            i: the row; or [B] the row of each sample (see `Columns`), and then in every step of the generation.
            output: [B, …] the model's output for `x`.
            x: [B, …] the sample at level `i`.
            state: from `new_state`, passed through all steps of one generation.
            noise: [B, …] standard normal, where `draws_noise(i)`.
            x0: [B, …] what `denoised` says, if that is known already.
        """
        if not isinstance(i, Tensor):
            return self.advance(i, output, x, state, noise, x0)[0]
        output, noise = self.read(i, output, noise)
        return self.columns(x.device).step(i, _wide(output), _wide(x), state, noise).to(x.dtype)

    def advance(self, i: int, output: Tensor, x: Tensor, state: State, noise: Tensor | None = None, x0: Tensor | None = None,
                tells_x0: bool = False) -> tuple[Tensor, Tensor | None]:
        """`step`, and what `denoised` says, if that is needed or to be told."""
        (output, noise), step, kind = self.read(i, output, noise), self.steps[i], x.dtype
        output, x = _wide(output), _wide(x)
        if x0 is None and (tells_x0 or step.clips):
            x0 = self._denoised(step, output, x)
        at_hand = (x, output, x0, noise, *state)
        following = weighted_sum(step.following, at_hand)
        if step.keep_m is not None:
            state[step.keep_m] = weighted_sum(step.m, at_hand)
        if step.keep_x is not None:
            state[step.keep_x] = x
        return following if following.dtype is kind else following.to(kind), x0


class Extended(Table):
    """Base of tables that do one thing differently from the one that they are made of."""

    def __init__(self, table: Table):
        self.__dict__.update(table.__dict__)


class Columns:
    """A table as tensors on a device, so that each sample of a batch can stand at a row of its own.

    The arithmetic is that of `Table.step`, but a row index picks its weights by a gather: nothing is read back from the device
    and nothing is decided in Python. So a step can be captured in a CUDA graph, and requests can join and leave a running batch.
    """

    def __init__(self, table: Table, device: torch.device):
        self.clip = table.clip
        self.following, self.x0, self.m = (torch.zeros(len(table), _SLOTS + table.slots, dtype=torch.float64) for _ in range(3))
        self.keeps = torch.zeros(len(table), 2, table.slots, dtype=torch.bool)
        for i, step in enumerate(table.steps):
            x0 = step.x0 if step.clips else ()  # a reading that no row uses may be infinite, and must not meet a weight of 0
            for weights, terms in ((self.following, step.following), (self.x0, x0), (self.m, step.m)):
                for place, weight in terms:
                    weights[i, place] = weight
            for kind, slot in enumerate((step.keep_m, step.keep_x)):
                if slot is not None:
                    self.keeps[i, kind, slot] = True
        self.following, self.x0, self.m, self.keeps = (each.to(device) for each in (self.following, self.x0, self.m, self.keeps))

    def step(self, rows: Tensor, output: Tensor, x: Tensor, state: State, noise: Tensor | None = None) -> Tensor:
        """`Table.step` for samples `x` [B, …] that stand at `rows` [B]; `noise` [B, …] counts where a row draws it."""
        shape = (-1, *[1] * (x.ndim - 1))

        def mixed(weights: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
            pairs = zip(weights[rows].to(x.dtype).unbind(1), tensors, strict=False)
            total, *others = (weight.view(shape) * tensor for weight, tensor in pairs if tensor is not None)
            return sum(others, start=total)

        held = [torch.zeros_like(x) if tensor is None else tensor for tensor in state]
        at_hand = (x, output, self.clip(mixed(self.x0, (x, output))) if self.clip else None, noise, *held)
        following, m, keeps = mixed(self.following, at_hand), mixed(self.m, at_hand[:_NOISE]), self.keeps[rows]
        for k, tensor in enumerate(held):
            state[k] = torch.where(keeps[:, 1, k].view(shape), x, torch.where(keeps[:, 0, k].view(shape), m, tensor))
        return following


def weighted_sum(terms: Terms, tensors: Sequence[Tensor | None]) -> Tensor:
    """`Σ weight · tensor`; one term of weight 1 is returned as it is, and what is not there counts as 0."""
    total, made_here = None, False
    for place, weight in terms:
        tensor = tensors[place]
        if tensor is None:
            continue
        if total is None:
            total, made_here = (tensor, False) if weight == 1 else (tensor * weight, True)
        else:
            total, made_here = total.add_(tensor, alpha=weight) if made_here else torch.add(total, tensor, alpha=weight), True
    if total is None:
        raise ValueError("a step that mixes nothing")
    return total


def _terms(weights: Iterable[tuple[int, float]]) -> Terms:
    """Without weights of 0; one of 1 first, since it need not be multiplied."""
    found = [term for term in weights if term[1]]
    return tuple(sorted(found, key=lambda term: term[1] != 1) if len(found) > 1 else found)


def _wide(tensor: Tensor) -> Tensor:
    """Half precision is widened: the weights of late steps cancel almost entirely."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _assign_slots(rows: Sequence[Row]) -> tuple[int, dict[tuple[str, int], int]]:
    """Give each tensor that a later row mixes a slot, and free it after its last use.

    Returns the number of slots, and the slot of `("x" or "m", row)`.
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
