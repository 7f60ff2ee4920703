"""If a model knows the picture exactly, every row is exact, however coarse the levels.

For a single known picture `c` a sample at a level is `alpha · c + sigma · eps`. A row must take it to
`alpha' · c + sigma' · eps'`: with `eps' = eps` if it draws nothing, else with an `eps'` of unit variance. These are the
sums that weights of a table satisfy, as a property of every class and config.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from calotype.schedulers.table import Table

from .cases import make
from .gaussian import advance
from .plans import PLANS, every_class

quick = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def tables(draw: st.DrawFn, name: str) -> tuple[Table, str]:
    """A table of any config, count, options and start for which rows are exact."""
    plan = PLANS[name]
    config: dict[str, Any] = {key: draw(st.sampled_from(values)) for key, values in plan.exact.items()}
    zero_snr, kind = config.get("rescale_betas_zero_snr"), make(name, **config).config.get("prediction_type", "epsilon")
    assume(not (zero_snr and kind == "epsilon"))  # no signal at the start: the noise says nothing of the picture
    steps = draw(st.integers(1, min(60, len(make(name)))))
    options = draw(st.sampled_from(plan.exact_options))
    table = make(name, **config).table(steps, **options)
    begin = 0 if plan.lags_midway else draw(st.integers(0, len(table) - 1))
    return make(name, **config).table(steps, begin=begin, **options), plan.kind(kind)


def check(table: Table, kind: str, picture: float) -> None:
    alpha, sigma = table.levels.alpha, table.levels.sigma
    noise = torch.tensor([-1.5, 0.0, 0.7], dtype=torch.float64)
    x, state = alpha[0] * picture + sigma[0] * noise, table.new_state()
    for i in range(len(table)):
        def go(start: torch.Tensor, fresh: float, i: int = i, state: list = state) -> torch.Tensor:
            return advance(table, i, start, state, kind, torch.full_like(start, fresh), mean=picture, spread=0.0)

        rounding = 1e-9 * (1 + sigma[i]) / max(alpha[i], 1e-3) ** 2
        expected = alpha[i + 1] * picture + sigma[i + 1] * noise
        if table.draws_noise(i):
            still, stirred = go(x, 0.0, state=[*state]) - alpha[i + 1] * picture, go(x, 1.0, state=[*state])
            kept = float(still[0] / noise[0])
            fresh = float((stirred - alpha[i + 1] * picture - still)[0])
            assert torch.allclose(still, kept * noise, atol=rounding)
            assert math.hypot(kept, fresh) == pytest.approx(sigma[i + 1], abs=rounding + 1e-9)
            assert kept >= -1e-9 and fresh >= 0
            go(x, 0.0)  # for its memory
            x = expected
        else:
            x = go(x, 0.0)
            assert torch.allclose(x, expected, rtol=1e-9, atol=rounding), f"row {i} of {len(table)}"
            x = expected


@every_class
def test_rows_are_exact_for_an_exact_model(name: str):
    @quick
    @given(tables(name), st.floats(-0.9, 0.9))
    def holds(drawn: tuple[Table, str], picture: float) -> None:
        check(*drawn, picture)

    holds()


@every_class
def test_levels_fall_from_noise_to_picture(name: str):
    """The share of noise never rises along a trajectory, apart from the stages of one step; timesteps never rise."""
    @quick
    @given(tables(name))
    def holds(drawn: tuple[Table, str]) -> None:
        levels = drawn[0].levels
        share = levels.sigma / np.hypot(levels.alpha, levels.sigma)
        assert len(levels.alpha) == len(levels.sigma) == len(drawn[0].timesteps) + 1 == len(drawn[0]) + 1
        towards, order = -1 if PLANS[name].rising else 1, make(name).order  # from step to step, not from stage to stage
        assert (towards * np.diff(share[::order]) <= 1e-12).all()
        assert (towards * np.diff(levels.timesteps[::order]) <= 0).all()

    holds()
