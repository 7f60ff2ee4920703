"""A table as tensors, so that each sample of a batch can stand at a row of its own.

The arithmetic is that of `Table.step`, with columns of weights in place of numbers: a row index picks its weights by a
gather, nothing is read back from the device and nothing is decided in Python. So a step can be captured in a CUDA graph,
and requests can join and leave a running batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .table import State, Table


class Columns:
    """The weights of all rows of a table, on a device: [n] each, or [n, slots]."""

    def __init__(self, table: Table, device: torch.device):
        steps, self.clip, self.slots = table.steps, table.clip, table.slots

        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.float64, device=device)

        self.x, self.output = column(s.x for s in steps), column(s.output for s in steps)
        self.x0, self.noise = column(s.x0 for s in steps), column(s.noise or 0.0 for s in steps)
        self.m_x, self.m_output = column(s.m_x for s in steps), column(s.m_output for s in steps)
        self.m_x0 = column(s.m_x0 for s in steps)
        self.kept = [column(s.kept[k] for s in steps) for k in range(self.slots)]
        self.keeps_m = [column(float(s.keep_m == k) for s in steps).bool() for k in range(self.slots)]
        self.keeps_x = [column(float(s.keep_x == k) for s in steps).bool() for k in range(self.slots)]
        # a reading that no row uses may be infinite, and must not meet a weight of 0
        used = [bool(s.x0) or s.keep_m is not None for s in steps]
        self.x0_x = column(w if u else 0.0 for w, u in zip(table.prediction.x0_x, used, strict=True))
        self.x0_output = column(w if u else 0.0 for w, u in zip(table.prediction.x0_out, used, strict=True))

    def step(self, rows: Tensor, output: Tensor, x: Tensor, state: State, noise: Tensor | None = None) -> Tensor:
        """`Table.step` for samples `x` [B, …] that stand at `rows` [B]; `noise` [B, …] counts where a row draws it."""

        def at_rows(column: Tensor) -> Tensor:
            picked = column[rows].view(-1, *[1] * (x.ndim - 1))
            return picked if picked.dtype is torch.bool else picked.to(x.dtype)

        following = at_rows(self.x) * x + at_rows(self.output) * output
        memory = at_rows(self.m_x) * x + at_rows(self.m_output) * output
        if self.clip is not None:
            x0 = self.clip(at_rows(self.x0_x) * x + at_rows(self.x0_output) * output)
            following, memory = following + at_rows(self.x0) * x0, memory + at_rows(self.m_x0) * x0
        if noise is not None:
            following = following + at_rows(self.noise) * noise
        for k in range(self.slots):
            held = state[k]
            held = torch.zeros_like(x) if held is None else held
            following = following + at_rows(self.kept[k]) * held
            kept = torch.where(at_rows(self.keeps_m[k]), memory, held)
            state[k] = torch.where(at_rows(self.keeps_x[k]), x, kept)
        return following
