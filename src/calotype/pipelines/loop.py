"""The denoising loop, the only one: from noise to a clean sample by the rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from ..randomness import Generators
from ..schedulers.table import Table

Predict = Callable[[int, Tensor], Tensor]
"""Row and sample, scaled for the model, to the model's (guided) output."""

AfterStep = Callable[[int, Tensor], Tensor]
"""Row and new sample to the sample to go on with."""


def denoise(
    table: Table, sample: Tensor, predict: Predict, generator: Generators = None, after_step: AfterStep | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Take `sample` [B, …] through all rows of `table`: each row, and the sample that it gives.

    Everything that changes is a local variable: one table, one model and one pipeline serve any number of loops at once.
    """
    state = table.new_state()
    for row in range(len(table)):
        scale = table.input_scale[row]
        output = predict(row, sample if scale == 1 else sample * scale)
        noise = table.draw(row, sample, generator, output.dtype, state)
        sample = table.step(row, output, sample, state, noise)
        if after_step is not None:
            sample = after_step(row, sample)
        yield row, sample
