"""Learning rates: the oracle's numbers in every step, and what holds for all of them."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calotype.training.learning_rates import NAMES, get_scheduler, learning_rate

OURS = ("inverse_sqrt", "warmup_stable_decay", "wsd")
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES if name not in OURS and name != "piecewise_constant"),
    ("cosine", {"num_cycles": 3}), ("cosine_with_restarts", {"num_cycles": 3}), ("cosine_with_restarts", {"num_warmup_steps": 0}),
    ("polynomial", {"power": 2.5}), ("polynomial", {"num_warmup_steps": 0}), ("cosine", {"num_warmup_steps": 12}),
    *((name, {"num_warmup_steps": 30}) for name in ("linear", "cosine", "cosine_with_restarts", "polynomial")),
    ("linear", {"num_warmup_steps": 25}), ("cosine", {"num_warmup_steps": 25}),
    ("piecewise_constant", {"step_rules": "1:4,0.1:9, 0.5:30 ,0.01"}), ("piecewise_constant", {"step_rules": "1:9,0.1:4,0.01"}),
    ("piecewise_constant", {"step_rules": "0.5"}),
]


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (0.02, 0.003)]
    return torch.optim.SGD(groups, lr=0.02)


def rates(make: Any, name: str, options: dict[str, Any], steps: int = 60) -> list[list[float]]:
    optimised = optimizer()
    scheduler = make(name, optimised, **{"num_warmup_steps": 5, "num_training_steps": 25} | options)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr())
        optimised.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_as_the_oracle(diffusers: ModuleType, name: str, options: dict[str, Any]) -> None:
    from diffusers.optimization import get_scheduler as oracle

    torch.testing.assert_close(torch.tensor(rates(get_scheduler, name, options), dtype=torch.float64),
                               torch.tensor(rates(oracle, name, options), dtype=torch.float64), rtol=1e-9, atol=1e-16)


def test_names_of_the_oracle(diffusers: ModuleType) -> None:
    from diffusers.optimization import SchedulerType

    assert {kind.value for kind in SchedulerType} == set(NAMES) - set(OURS)
    assert rates(get_scheduler, SchedulerType.COSINE, {}) == rates(get_scheduler, "cosine", {})


@given(st.sampled_from(NAMES), st.integers(0, 50), st.integers(1, 200), st.integers(1, 4), st.integers(0, 400))
def test_factors(name: str, warmup: int, total: int, cycles: int, step: int) -> None:
    factor = learning_rate(name, num_warmup_steps=warmup, num_training_steps=total, num_cycles=cycles, initial_rate=0.1,
                           step_rules="1:5,0.5", reference_steps=max(warmup, 1))
    assert 0 <= factor(step) <= 1
    if name not in ("constant", "piecewise_constant"):
        assert all(factor(s) == s / warmup for s in range(warmup))
        if warmup < total:
            assert factor(warmup) == pytest.approx(1)  # where the warm-up ends, what follows begins


@given(st.sampled_from(["linear", "polynomial", "inverse_sqrt", "wsd"]), st.integers(1, 50), st.integers(60, 200))
def test_rates_never_rise_after_the_warm_up(name: str, warmup: int, total: int) -> None:
    factor = learning_rate(name, num_warmup_steps=warmup, num_training_steps=total, initial_rate=0.1)
    assert all(factor(step + 1) <= factor(step) for step in range(warmup, total + 10))


def test_warmup_stable_decay() -> None:
    factor = learning_rate("wsd", num_warmup_steps=10, num_training_steps=100, cooldown=0.25)
    assert [factor(step) for step in (5, 10, 75, 80, 90, 100, 120)] == pytest.approx([0.5, 1, 1, 0.8, 0.4, 0, 0])
    late = learning_rate("wsd", num_warmup_steps=90, num_training_steps=100)  # the warm-up reaches into the last fifth
    assert [late(step) for step in (45, 90, 95, 100)] == pytest.approx([0.5, 1, 0.5, 0])


def test_inverse_square_root() -> None:
    factor = learning_rate("inverse_sqrt", num_warmup_steps=100)
    assert [factor(step) for step in (50, 100, 400, 10_000)] == pytest.approx([0.5, 1, 0.5, 0.1])
    later = learning_rate("inverse_sqrt", num_warmup_steps=0, reference_steps=1000)
    assert [later(step) for step in (0, 1000, 4000)] == pytest.approx([1, 1, 0.5])
    for before, after in pairwise([factor(step) for step in range(90, 120)]):
        assert abs(after - before) < 0.02


def test_ours_by_the_known_function() -> None:
    found = rates(get_scheduler, "warmup_stable_decay", {"cooldown": 0.4})
    assert found[5] == found[15] == [0.02, 0.003]
    assert found[20] == pytest.approx([0.01, 0.0015])


@pytest.mark.parametrize(("name", "options", "words"), [
    ("cosin", {}, "did you mean 'cosine'"),
    ("linear", {"num_training_steps": 5}, "'linear' needs num_warmup_steps"),
    ("cosine", {"num_warmup_steps": 5}, "'cosine' needs num_training_steps"),
    ("cosine", {"num_warmup_steps": -1, "num_training_steps": 5}, "num_warmup_steps is -1, but must be at least 0"),
    ("wsd", {"num_warmup_steps": 0, "num_training_steps": 0}, "num_training_steps is 0, but must be at least 1"),
    ("wsd", {"num_warmup_steps": 0, "num_training_steps": 9, "cooldown": 0}, "cooldown is 0, but must be a share"),
    ("inverse_sqrt", {"num_warmup_steps": 0}, "'inverse_sqrt' needs reference_steps or num_warmup_steps"),
    ("inverse_sqrt", {"num_warmup_steps": 0, "reference_steps": -2}, "is -2, but must be at least 1"),
    ("cosine_with_restarts", {"num_warmup_steps": 0, "num_training_steps": 9, "num_cycles": 0}, "num_cycles is 0"),
    ("polynomial", {"num_warmup_steps": 0, "num_training_steps": 9, "power": 0}, "power is 0"),
    ("polynomial", {"num_warmup_steps": 0, "num_training_steps": 9, "initial_rate": 1e-8}, "ends at the rate 1e-07"),
    ("polynomial", {"num_warmup_steps": 0, "num_training_steps": 9, "initial_rate": None}, "needs initial_rate"),
    ("piecewise_constant", {}, "needs step_rules"),
    ("piecewise_constant", {"step_rules": "1:5,0.1:9"}, "step_rules are '1:5,0.1:9', but must be text such as"),
    ("piecewise_constant", {"step_rules": "1:5,0.1:5,1"}, "step_rules are"),
    ("piecewise_constant", {"step_rules": "1:5:6,1"}, "step_rules are"),
])
def test_bad_calls(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as raised:
        learning_rate(name, **{"initial_rate": 0.1} | options)
    assert words in str(raised.value)
