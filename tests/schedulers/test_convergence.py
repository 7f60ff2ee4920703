"""Each solver has the order of convergence that its mathematics promises, measured on an ODE solved in closed form."""

from __future__ import annotations

import itertools

import pytest
import torch

from .cases import Order, make
from .gaussian import MEAN, deviation, generate, ode_error, order, place
from .plans import PLANS, SMOOTH

ORDERS = [(name, each) for name, plan in PLANS.items() for each in plan.orders]
STOCHASTIC = [(name, *each) for name, plan in PLANS.items() for each in plan.stochastic]
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
BIAS = 0.025  # at 500 steps; halves with the step, also for the peer's churn, which asks the model before it


@pytest.mark.parametrize(("name", "claim"), ORDERS, ids=[
    f"{name}-{'-'.join(map(str, [*claim.config.values(), *claim.options.values()]))}" for name, claim in ORDERS])
def test_order_of_convergence(name: str, claim: Order):
    scheduler = make(name, **claim.config, **(SMOOTH if "beta_schedule" in make(name).config else {}))
    tables = [scheduler.table(n, **claim.options) for n in claim.counts]
    kind = PLANS[name].kind(scheduler.config.get("prediction_type", ""))
    errors = [ode_error(table, kind, claim.given, claim.left_out) for table in tables]
    assert order(list(claim.counts), errors) == pytest.approx(claim.is_, abs=0.15), errors


def test_errors_of_ddim_on_checkpoint_levels():
    """Where Stable Diffusion ends, the noise grows like a root: the order is a little less, and visible at once."""
    scheduler = make("DDIMScheduler", clip_sample=False, steps_offset=1, **SD)
    errors = [ode_error(scheduler.table(n), "epsilon") for n in (10, 20, 40, 80)]
    assert all(coarse > 1.7 * fine for coarse, fine in itertools.pairwise(errors))


def test_multistep_beats_first_order():
    """PNDM at 20 steps is nearer than DDIM at 80, on the same timesteps' levels."""
    pndm = ode_error(make("PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=True, **SD).table(20), "epsilon")
    assert pndm < ode_error(make("DDIMScheduler", clip_sample=False, **SD).table(80), "epsilon")


@pytest.mark.parametrize(("name", "config", "options"), STOCHASTIC, ids=lambda it: it if isinstance(it, str) else str(it))
def test_stochastic_solvers_sample_the_gaussian(name, config, options):
    """Mean and deviation of 20,000 samples: four standard errors, and what 500 steps leave of the first-order bias."""
    scheduler = make(name, **config)
    table = scheduler.table(500, **options)
    kind, last = PLANS[name].kind(scheduler.config.get("prediction_type", "")), len(table)
    z = torch.randn(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    samples = generate(table, place(table, 0, z), kind)
    mean, spread = table.levels.alpha[last] * MEAN, deviation(table, last)
    assert float(samples.mean()) == pytest.approx(mean, abs=4 * spread / 20_000**0.5)
    assert float(samples.std()) == pytest.approx(spread, rel=4 / 40_000**0.5 + BIAS)
    assert not torch.allclose(samples, generate(table, place(table, 0, z), kind, seed=1))  # it is stochastic
