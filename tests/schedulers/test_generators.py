"""Seeds: one generator, one for each sample, and noise that the caller brings."""

from __future__ import annotations

import pytest
import torch

import calotype.schedulers as ours

from .cases import Case, make, takes, trajectory
from .plans import PLANS

STOCHASTIC = {name: plan.stochastic[0] for name, plan in PLANS.items() if plan.stochastic}
STOCHASTIC |= dict.fromkeys(
    ("CMStochasticIterativeScheduler", "FlowMatchLCMScheduler", "LCMScheduler", "SCMScheduler", "TCDScheduler"), ({}, {})
)  # of distilled models, no solvers of the process
LEARNED = ("DDPMScheduler", ({"variance_type": "learned_range"}, {}))
by_class = pytest.mark.parametrize(("name", "how"), [*STOCHASTIC.items(), LEARNED], ids=[*STOCHASTIC, "LearnedVariance"])


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def always_draws(name: str) -> bool:
    """Whether noise is drawn without being asked for."""
    return name in STOCHASTIC and not STOCHASTIC[name][1]


def generate(name, how, x, generator):
    config, options = how
    scheduler = make(name, **config)
    scheduler.set_timesteps(6)
    return trajectory(scheduler, options, x=x, generator=generator)[-1]


@by_class
def test_a_seed_repeats_and_matters(name, how):
    x = torch.randn(2, 3, 4, 4)
    one, same, other = (generate(name, how, x, seed) for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


@by_class
def test_a_list_of_generators_gives_each_sample_what_it_gets_alone(name, how):
    x = torch.randn(3, 3, 4, 4)
    together = generate(name, how, x, seeded(1, 2, 3))
    for i in range(3):
        for generator in (seeded(i + 1), seeded(i + 1)[0]):
            torch.testing.assert_close(together[i : i + 1], generate(name, how, x[i : i + 1], generator))


@by_class
def test_as_many_generators_as_samples(name, how):
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        generate(name, how, torch.randn(3, 3, 4, 4), seeded(1, 2))


def test_generators_equal_the_oracle(oracle):
    """A generator for each sample is read as the peer's pipelines read it: one after the other, sample by sample."""
    x = torch.randn(2, 3, 4, 4)
    finals = []
    for library in (oracle, ours):
        scheduler = library.DDPMScheduler()
        scheduler.set_timesteps(6)
        finals.append(trajectory(scheduler, x=x, generator=seeded(7, 8))[-1])
    torch.testing.assert_close(finals[1], finals[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in sorted(PLANS) if not always_draws(name) and takes(make(name), "generator")])
def test_deterministic_solvers_leave_the_generator_alone(name):
    """Nothing is drawn where nothing is used: the next thing seeded by it is what it would be in the peer."""
    scheduler = make(name)
    scheduler.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    trajectory(scheduler, x=torch.zeros(1, 1, 4, 4), generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_noise_of_ones_own(oracle):
    """`variance_noise` stands for a draw, and equals the peer's."""
    noise, x = torch.randn(2, 2, 3, 4, 4)
    finals = []
    for library in (oracle, ours):
        scheduler = library.DDIMScheduler()
        scheduler.set_timesteps(5)
        finals.append(scheduler.step(x * 0.3, scheduler.timesteps[1], x, eta=0.8, variance_noise=noise).prev_sample)
    torch.testing.assert_close(finals[1], finals[0], rtol=1e-4, atol=1e-5)


def test_ddim_draws_in_the_last_step_too(oracle):
    """At `eta > 0` the last step's noise has weight 0, but is drawn: a generator used on is where the peer's is."""
    states = []
    for library in (oracle, ours):
        generator = torch.Generator().manual_seed(0)
        scheduler = library.DDIMScheduler()
        scheduler.set_timesteps(5)
        trajectory(scheduler, {"eta": 1.0}, x=torch.zeros(1, 1, 4, 4), generator=generator)
        states.append(generator.get_state())
    assert torch.equal(*states)
    table = make("DDIMScheduler").table(5, eta=1.0)
    assert table.steps[-1].noise == 0 and all(table.draws_noise(i) for i in range(5))
    assert not any(make("DDIMScheduler").table(5).draws_noise(i) for i in range(5))


def test_cases_differ_by_options():
    """A guard: options of `step` reach the table."""
    plain, churned = (Case("EulerDiscreteScheduler", options=options).run(ours)[1][-1] for options in ({}, {"s_churn": 5.0}))
    assert not torch.allclose(plain, churned)
