"""The table itself: any program of rows gives what its formula says, and a table is a value that can be shared."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calotype.schedulers.noise import Levels
from calotype.schedulers.prediction import PREDICTION_TYPES, read_prediction
from calotype.schedulers.table import Row, Table

from .cases import calls, make, network
from .plans import PLANS, every_class

quick = settings(max_examples=150, deadline=None, derandomize=True)
weights = st.floats(-2, 2).map(lambda w: round(w, 3))


@st.composite
def programs(draw: st.DrawFn) -> list[Row]:
    """Rows that mix any samples and outputs of earlier rows: more than any solver does."""
    rows = []
    for i in range(draw(st.integers(1, 9))):
        earlier = st.dictionaries(st.integers(0, i), weights, max_size=4)
        rows.append(Row(x={**draw(earlier), i: draw(weights) or 1.0}, m=draw(earlier), raw_noise=draw(weights),
                        noise=draw(st.none() | weights)))
    return rows


def falling_levels(n: int) -> Levels:
    angle = np.linspace(1.5, 0.1, n + 1)
    return Levels(np.arange(n, dtype=float)[::-1], np.cos(angle), np.sin(angle))


def table_of(rows: list[Row], kind: str, memory: str, bound: float | None = None) -> Table:
    levels = falling_levels(len(rows))
    clip = None if bound is None else (lambda x0: x0.clamp(-bound, bound))
    return Table(levels, rows, read_prediction(kind, levels), memory, clip, torch.arange(len(rows)), [1.0] * len(rows), 1.0)


def direct(rows: list[Row], kind: str, memory: str, bound: float | None, outputs, x, noises):
    """The formula of `table.py`, read out with all of history kept."""
    levels, xs, ms = falling_levels(len(rows)), [], []
    for i, row in enumerate(rows):
        a, s, out = levels.alpha[i], levels.sigma[i], outputs[i]
        x0 = {"epsilon": (x - s * out) / a, "sample": out, "v_prediction": a * x - s * out,
              "flow_prediction": (x - s * out) / (a + s)}[kind]
        raw = (x - a * x0) / s
        if bound is not None:
            x0 = x0.clamp(-bound, bound)
        xs.append(x)
        ms.append({"x0": x0, "noise": (x - a * x0) / s, "output": out}[memory])
        x = (sum(w * xs[j] for j, w in row.x.items()) + sum(w * ms[j] for j, w in row.m.items())
             + row.raw_noise * raw + (row.noise or 0.0) * noises[i])
    return x


@quick
@given(programs(), st.sampled_from(PREDICTION_TYPES), st.sampled_from(["x0", "noise", "output"]),
       st.none() | st.just(0.5), st.integers(0, 99))
def test_any_program_equals_its_formula(rows, kind, memory, bound, seed):
    """Slots are given and freed rightly: running with them equals running with everything remembered."""
    outputs = torch.randn(len(rows), 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noises, x = outputs.flip(2), outputs[0].flip(1)
    table = table_of(rows, kind, memory, bound)
    state, at = table.new_state(), x
    for i in range(len(rows)):
        at = table.step(i, outputs[i], at, state, noises[i] if table.draws_noise(i) else None)
    expected = direct(rows, kind, memory, bound, outputs, x, noises)
    assert torch.allclose(at, expected, rtol=1e-9, atol=1e-9 * (1 + float(expected.abs().max())) * 3 ** len(rows))


def test_slots_are_few():
    """A slot is used again after its last use: a fourth-order multistep solver of 100 steps keeps three outputs."""
    rows = [Row(x={i: 1.0}, m=dict.fromkeys(range(max(0, i - 3), i + 1), 0.25)) for i in range(100)]
    assert table_of(rows, "epsilon", "output").slots == 3
    assert make("PNDMScheduler", skip_prk_steps=True).table(50).slots <= 4
    assert make("DDIMScheduler").table(50).slots == 0


def test_rows_cannot_mix_what_is_still_to_come():
    with pytest.raises(ValueError, match="row 0 mixes m of row 1, which is still to come"):
        table_of([Row(x={0: 1.0}, m={1: 1.0}), Row(x={1: 1.0})], "epsilon", "x0")


def test_none_draws_no_noise_and_zero_draws_and_ignores():
    table = table_of([Row(x={0: 1.0}), Row(x={1: 1.0}, noise=0.0), Row(x={2: 1.0}, noise=2.0)], "epsilon", "x0")
    assert [table.draws_noise(i) for i in range(3)] == [False, True, True]
    x, noise = torch.ones(2), torch.tensor([1.0, -1.0])
    assert torch.equal(table.step(1, x, x, table.new_state(), noise), x)
    assert torch.equal(table.step(2, x, x, table.new_state(), noise), x + 2 * noise)


def generation(table: Table, config, seed: int, dtype: torch.dtype = torch.float32):
    """A generation as a loop that owns its state; yields each sample."""
    generator = torch.Generator().manual_seed(seed)
    x, state = torch.randn(1, 3, 4, 4, generator=generator).to(dtype) * table.init_noise_sigma, table.new_state()
    for i, t in enumerate(table.timesteps):
        output = network(x * table.input_scale[i], t, config)
        noise = torch.randn(x.shape, generator=generator).to(dtype) if table.draws_noise(i) else None
        x = table.step(i, output, x, state, noise)
        yield x


@every_class
def test_generations_share_a_table(name):
    """Interleaved, in threads, or one after the other: each generation gives what it gives alone."""
    scheduler = make(name)
    before = {key: str(value) for key, value in vars(scheduler).items()}
    shared = scheduler.table(12)
    alone = [list(generation(scheduler.table(12), scheduler.config, seed))[-1] for seed in range(4)]
    *_, interleaved = zip(*(generation(shared, scheduler.config, seed) for seed in range(4)), strict=True)
    results: dict[int, torch.Tensor] = {}

    def work(seed: int) -> None:
        results[seed] = list(generation(shared, scheduler.config, seed))[-1]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        assert torch.equal(interleaved[seed], alone[seed])
        assert torch.equal(results[seed], alone[seed])
    assert {key: str(value) for key, value in vars(scheduler).items()} == before  # nothing on the scheduler changed


@every_class
def test_table_equals_a_loop_of_ones_own(name):
    """`step` of the scheduler is a shell over the same rows."""
    scheduler = make(name)
    scheduler.set_timesteps(9)
    table, x = scheduler.table(9), torch.randn(1, 3, 4, 4)
    assert torch.equal(table.timesteps, calls(scheduler))
    assert table.init_noise_sigma == scheduler.init_noise_sigma
    state, one, two = table.new_state(), x, x
    for i, t in enumerate(calls(scheduler)):
        output = network(scheduler.scale_model_input(one, t), t, scheduler.config)
        torch.testing.assert_close(scheduler.scale_model_input(one, t), one * table.input_scale[i])
        torch.manual_seed(i)
        one = scheduler.step(output, t, one).prev_sample
        torch.manual_seed(i)
        two = table.step(i, output, two, state, table.draw(i, two, None, two.dtype, state))
        assert torch.equal(one, two)


@every_class
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_step_in_half_precision_is_rounded_once(name, dtype):
    """The weights of late steps cancel almost entirely, so a step is computed in single precision, then rounded."""
    scheduler = make(name)
    table = scheduler.table(10)
    narrow, wide = table.new_state(), table.new_state()
    x = (torch.randn(1, 3, 4, 4) * table.init_noise_sigma).to(dtype)
    for i, t in enumerate(table.timesteps):
        output = network(x * table.input_scale[i], t, scheduler.config)
        noise = torch.randn(x.shape).to(dtype) if table.draws_noise(i) else None
        expected = table.step(i, output.float(), x.float(), wide, noise)
        x = table.step(i, output, x, narrow, noise)
        assert x.dtype == dtype and torch.equal(x, expected.to(dtype))


@every_class
def test_double_precision_stays_double(name):
    scheduler = make(name)
    *_, double = generation(scheduler.table(10), scheduler.config, 0, torch.float64)
    *_, single = generation(scheduler.table(10), scheduler.config, 0)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-4)


@every_class
def test_entering_midway_begins_a_fresh_history(name):
    """`begin=` gives the rows from there on, for a sample that was noised to that row's level."""
    scheduler = make(name)
    whole = scheduler.table(10)
    for begin in (1, 5, len(whole) - 1):
        part = scheduler.table(10, begin=begin)
        assert torch.equal(part.timesteps, whole.timesteps[begin:])
        assert part.input_scale == whole.input_scale[begin:]
        assert len(list(generation(part, scheduler.config, 0))) == len(whole) - begin
    if PLANS[name].orders and not whole.slots:  # without a history a row is the same
        assert scheduler.table(10, begin=5).steps == whole.steps[5:]


TWO_CALLS = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler",
             "FlowMatchHeunDiscreteScheduler")


@every_class
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 10])
def test_steps_are_told_from_model_calls(name, steps):
    """As many calls end a step as steps were asked for, and the last does."""
    table = make(name).table(steps)
    assert (len(table.ends_step), sum(table.ends_step), table.ends_step[-1]) == (len(table), steps, True)
    if name in TWO_CALLS:
        assert table.ends_step == [False, True] * (steps - 1) + [True]


def test_the_steps_of_pndm():
    """Four calls in each of three Runge-Kutta steps; or a repeated call in the first step."""
    runge_kutta, repeated = make("PNDMScheduler").table(10), make("PNDMScheduler", skip_prk_steps=True).table(10)
    assert runge_kutta.ends_step == [False, False, False, True] * 3 + [True] * 7
    assert repeated.ends_step == [False] + [True] * 10


def test_steps_are_told_from_model_calls_midway():
    """Entered at the second call of a step, a step begins there."""
    for name in TWO_CALLS:
        for begin in range(19):
            ends = make(name).table(10, begin=begin).ends_step
            assert ends == [row % 2 == 1 or row == 18 for row in range(begin, 19)]
    for begin, left in ((4, 9), (8, 8)):
        assert sum(make("PNDMScheduler").table(10, begin=begin).ends_step) == left
    for config in ({}, {"skip_prk_steps": True}):
        scheduler = make("PNDMScheduler", **config)
        assert all(scheduler.table(10, begin=begin).ends_step[-1] for begin in range(len(scheduler.table(10))))
