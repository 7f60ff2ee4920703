"""Fresh noise as the increments of one Brownian path in sigma, so that overlapping steps share what they overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..randomness import Generators
from .table import Extended, State, Table

Tree = Callable[[Tensor, Tensor], Tensor]


class _Remembered(list["Tensor | None"]):
    """The state of a generation, and its path, or the paths of its samples."""

    trees: Sequence[Tree] = ()


class BrownianTable(Extended):
    """A table that draws the noise of row `i` from a path between levels `ends` (low, high), on its way from and to `spans[i]`.

    The path is that of `torchsde`, whose increments depend on the seed and the two ends alone, and not on what was asked
    before: equal seeds are equal pictures. `seeds` are of the path, or of each sample's; `None` takes the generator's.
    """

    def __init__(self, table: Table, spans: Sequence[tuple[float, float]], ends: tuple[float, float],
                 seeds: int | Sequence[int] | None = None):
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
        sources = generator if self._seeds is None else self._seeds
        alone = not isinstance(sources, Sequence)
        each: Sequence[Any] = [sources] if alone else sources  # type: ignore[assignment]
        if not alone and len(each) != len(x):
            raise ValueError(f"{len(each)} generators for a batch of {len(x)}, or seeds; give one, or one for each sample")
        state.trees = state.trees or [self._tree(source, x if alone else x[0], dtype) for source in each]
        (start, end), (lowest, highest) = self._spans[i], self._ends
        low, high = torch.tensor([max(end, lowest), min(start, highest)], dtype=torch.float32)
        increments = [tree(low, high) / -(high - low).sqrt() for tree in state.trees]
        return increments[0] if alone else torch.stack(increments)

    def _tree(self, source: int | torch.Generator | None, like: Tensor, dtype: torch.dtype) -> Tree:
        from torchsde import BrownianTree

        low, high = torch.tensor(self._ends, dtype=torch.float32)
        seed = source if isinstance(source, int) else self.seed_of(source)
        return BrownianTree(low, torch.zeros(like.shape, dtype=dtype, device=like.device), high, entropy=seed)

    def seed_of(self, generator: torch.Generator | None) -> int:
        """One drawn from it."""
        return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device if generator else None))


class SeededTable(BrownianTable):
    """A table whose path has the seed with which a generator was made; the generator is left alone."""

    def seed_of(self, generator: torch.Generator | None) -> int:
        return generator.initial_seed() if generator else super().seed_of(generator)
