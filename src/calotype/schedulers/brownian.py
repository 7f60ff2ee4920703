"""Fresh noise as the increments of one Brownian path in sigma, so that overlapping steps share what they overlap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import Generators
from .table import Extended, State, Table


class BrownianPath:
    """A Brownian path between levels `ends`: from one seed, or one for each sample of the batch.

    The path is that of `torchsde`, whose increments depend on the seed and the two ends alone, and not on what was asked
    before. So equal seeds are equal pictures.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype, ends: tuple[float, float], seeds: int | Sequence[int]):
        from torchsde import BrownianTree

        self._alone, self._ends = isinstance(seeds, int), ends
        each = [seeds] if isinstance(seeds, int) else seeds
        if not self._alone and len(each) != len(like):
            raise ValueError(f"{len(each)} generators for a batch of {len(like)}, or seeds; give one, or one for each sample")
        nowhere = torch.zeros(like.shape if self._alone else like.shape[1:], dtype=dtype, device=like.device)
        low, high = (torch.tensor(level, dtype=torch.float32) for level in ends)
        self._trees = [BrownianTree(low, nowhere, high, entropy=seed) for seed in each]

    def increment(self, start: float, end: float) -> Tensor:
        """From level `start` to the lower `end`, as noise of unit variance [B, …]."""
        low, high = (torch.tensor(level, dtype=torch.float32) for level in (max(end, self._ends[0]), min(start, self._ends[1])))
        increments = [tree(low, high) / -(high - low).sqrt() for tree in self._trees]
        return increments[0] if self._alone else torch.stack(increments)


class _Remembered(list["Tensor | None"]):
    """The state of a generation, and its path."""

    path: BrownianPath | None = None


class BrownianTable(Extended):
    """A table that draws the noise of row `i` from a path between `ends`, between the levels `spans[i]`.

    `seeds` are of the path, or of each sample's; `None` takes them from the generator of a generation.
    """

    def __init__(
        self, table: Table, spans: Sequence[tuple[float, float]], ends: tuple[float, float],
        seeds: int | Sequence[int] | None = None,
    ):
        try:
            import torchsde  # noqa: F401
        except ImportError as error:
            raise ImportError("the noise of this scheduler needs torchsde: pip install 'calotype[sde]'") from error
        super().__init__(table)
        self._spans, self._ends, self._seeds = spans, ends, seeds

    def new_state(self) -> State:
        return _Remembered(super().new_state())

    def draw(self, i: int, x: Tensor, generator: Generators, dtype: torch.dtype, state: State) -> Tensor | None:
        if not self.draws_noise(i):
            return None
        assert isinstance(state, _Remembered)
        if state.path is None:
            state.path = BrownianPath(x, dtype, self._ends, self.seeds_of(generator) if self._seeds is None else self._seeds)
        return state.path.increment(*self._spans[i])

    def seeds_of(self, generator: Generators) -> int | list[int]:
        return [self.seed_of(one) for one in generator] if isinstance(generator, (list, tuple)) else self.seed_of(generator)

    def seed_of(self, generator: torch.Generator | None) -> int:
        """One drawn from it."""
        return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device if generator else None))


class SeededTable(BrownianTable):
    """A table whose path has the seed with which a generator was made; the generator is left alone."""

    def seed_of(self, generator: torch.Generator | None) -> int:
        return generator.initial_seed() if generator else super().seed_of(generator)
