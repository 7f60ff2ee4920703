"""Predictors with a corrector that costs no model call (Zhao et al. 2023; Xue et al. 2023), as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .table import Row


def corrected(
    predictions: Sequence[Row], corrections: Sequence[Mapping[int, float] | None], readings: Sequence[float] = ()
) -> list[Row]:
    """Rows that predict, and after the next model call, which is also of the level predicted, correct before going on.

    `predictions[i]` goes on from the corrected sample `y` of row `i`, to `a y + Σ p_j m_j`; `corrections[i]` are the weights
    `c_j` of the outputs, also of the next one, that take the place of `p_j`, if any. The corrected sample of row `i + 1`
    is then its sample `+ Σ (c_j - p_j) m_j`. With `readings`, the weights of samples in their `m`, predictions mix outputs as
    read with the corrected samples.
    """
    rows, lacks = [], [dict[int, float]()]  # what the sample of each row lacks of the corrected one
    for row, correction in zip(predictions, corrections, strict=True):
        (kept,), mixed = row.x.values(), row.m
        for j, weight in row.m.items() if readings else ():
            mixed = _sum(mixed, weight * readings[j], lacks[j])
        rows.append(Row(row.x, _sum(mixed, kept, lacks[-1]), noise=row.noise))
        lacks.append({} if correction is None else _sum(correction, -1.0, mixed))
    return rows


def _sum(weights: Mapping[int, float], factor: float, others: Mapping[int, float]) -> dict[int, float]:
    """`weights + factor · others`."""
    return {j: weights.get(j, 0.0) + factor * others.get(j, 0.0) for j in {**weights, **others}}
