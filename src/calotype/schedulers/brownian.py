"""Fresh noise as the increments of one Brownian path in sigma, so that overlapping steps share what they overlap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import Generators
from .table import State, Table


class BrownianPath:
    """A Brownian path over levels from `low` to `high`: from one seed, or one for each sample of the batch.

    The path is that of `torchsde`, whose increments depend on the seed and the two ends alone, and not on what was asked
    before. So equal seeds are equal pictures.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype, low: float, high: float, seeds: int | Sequence[int]):
        from torchsde import BrownianTree

        if not isinstance(seeds, int) and len(seeds) != len(like):
            raise ValueError(f"{len(seeds)} seeds or generators for a batch of {len(like)}; give one, or one for each sample")
        self._alone, self._low, self._high = isinstance(seeds, int), low, high
        nowhere = torch.zeros(like.shape if self._alone else like.shape[1:], dtype=dtype, device=like.device)
        ends = [torch.tensor(level, dtype=torch.float32) for level in (low, high)]
        self._trees = [BrownianTree(ends[0], nowhere, ends[1], entropy=seed)
                       for seed in ([seeds] if isinstance(seeds, int) else seeds)]

    def increment(self, start: float, end: float) -> Tensor:
        """From level `start` to the lower `end`, as noise of unit variance [B, …]."""
        low, high = (torch.tensor(level, dtype=torch.float32) for level in (max(end, self._low), min(start, self._high)))
        increments = [tree(low, high) / -(high - low).sqrt() for tree in self._trees]
        return increments[0] if self._alone else torch.stack(increments)


class _Remembered(list["Tensor | None"]):
    """The state of a generation, and its path."""

    path: BrownianPath | None = None


class BrownianTable(Table):
    """A table that draws the noise of row `i` from a path, between the levels `spans[i]`.

    Args:
        ends: the lowest and the highest level of the path.
        seeds: of the path, or of each sample's; `None` takes them from the generator of a generation.
    """

    def __init__(
        self, table: Table, spans: Sequence[tuple[float, float]], ends: tuple[float, float], seeds: int | Sequence[int] | None
    ):
        try:
            import torchsde  # noqa: F401
        except ImportError as error:
            raise ImportError("the noise of this scheduler needs torchsde: pip install 'calotype[sde]'") from error
        self.__dict__.update(table.__dict__)
        self._spans, self._ends, self._seeds = spans, ends, seeds

    def new_state(self) -> State:
        return _Remembered(super().new_state())

    def draw(self, i: int, x: Tensor, generator: Generators, dtype: torch.dtype, state: State) -> Tensor | None:
        if not self.draws_noise(i):
            return None
        assert isinstance(state, _Remembered)
        if state.path is None:
            if isinstance(generator, (list, tuple)) and len(generator) != len(x):
                raise ValueError(f"{len(generator)} generators for a batch of {len(x)}; give one, or one for each sample")
            seeds = self.seeds_of(generator) if self._seeds is None else self._seeds
            state.path = BrownianPath(x, dtype, *self._ends, seeds)
        return state.path.increment(*self._spans[i])

    def seeds_of(self, generator: Generators) -> int | list[int]:
        """One drawn from each generator."""

        def seed(one: torch.Generator | None) -> int:
            return int(torch.randint(2**63 - 1, (), generator=one, device=one.device if one else None))

        return [seed(one) for one in generator] if isinstance(generator, (list, tuple)) else seed(generator)
