"""Where Calotype deliberately does not follow the oracle: what ours does, and that the oracle still does otherwise.

The mathematical reason is tested in `test_convergence.py` and `test_consistency.py`, which know no oracle.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import calotype.schedulers as ours

from .cases import Case, make, trajectory
from .gaussian import ode_error, order

DIFFERENT = [("linspace", 10), ("linspace", 20), ("trailing", 7)]


@pytest.mark.parametrize(("spacing", "steps"), DIFFERENT)
@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_steps_go_to_the_next_timestep(name, spacing, steps, oracle):
    """The peer steps to `t - 1000 // n`, which is not its list's next entry (its issue #11347)."""
    case = Case(name, {"timestep_spacing": spacing, "prediction_type": "v_prediction"}, steps)
    (theirs, reference), (mine, samples) = case.run(oracle), case.run(ours)
    assert mine.timesteps.tolist() == theirs.timesteps.tolist()
    assert max((a - b).abs().max() / a.abs().max() for a, b in zip(reference, samples, strict=True)) > 1e-4

    table = make(name, **case.config).table(steps)
    kept = mine.alphas_cumprod[mine.timesteps].double().sqrt()
    assert np.allclose(table.levels.alpha[:-1], kept, rtol=1e-6)


def test_ddim_at_linspace_converges():
    """So the first order of DDIM survives `linspace`; with the peer's steps 0.2 of it is left."""
    scheduler = make("DDIMScheduler", clip_sample=False, timestep_spacing="linspace", beta_schedule="scaled_linear",
                     beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False)
    counts = [20, 40, 80, 160]
    assert order(counts, [ode_error(scheduler.table(n), "epsilon") for n in counts]) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("count", [61, 103, 998])
def test_trailing_has_as_many_timesteps_as_asked(count, oracle):
    """Where 1000/n is rounded up, the peer counts once more, to timestep -1: the noisiest level, as the last step."""
    theirs, mine = (library.DDIMScheduler(timestep_spacing="trailing") for library in (oracle, ours))
    theirs.set_timesteps(count)
    mine.set_timesteps(count)  # bug reported: ours had the entry too; `[:steps]` in `NoiseSchedule.spaced`
    assert len(theirs.timesteps) == count + 1 and theirs.timesteps[-1] == -1
    assert mine.timesteps.tolist() == theirs.timesteps[:-1].tolist()


def test_fixed_large_log(oracle):
    """`fixed_large_log` has the variance of `fixed_large`; the peer takes the logarithm for the deviation: NaN."""
    reference = Case("DDPMScheduler", {"variance_type": "fixed_large_log"}).run(oracle)[1][-1]
    large, logarithm = (Case("DDPMScheduler", {"variance_type": kind}).run(ours)[1][-1]
                        for kind in ("fixed_large", "fixed_large_log"))
    assert reference.isnan().any()
    assert torch.equal(logarithm, large)


def test_sigmoid_betas_work_in_every_class(oracle):
    """In the peer only DDPM knows them."""
    betas = {"beta_schedule": "sigmoid", "beta_start": 0.0001, "beta_end": 0.02}
    expected = oracle.DDPMScheduler(**betas).alphas_cumprod
    for scheduler in ours.ALL:
        if "beta_start" in scheduler().config:
            torch.testing.assert_close(scheduler(**betas).alphas_cumprod, expected, rtol=1e-4, atol=0)
    for name in ("DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"):
        with pytest.raises(NotImplementedError):
            getattr(oracle, name)(beta_schedule="sigmoid")


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_pndm_of_fewer_than_four_steps(steps, oracle):
    """Three Runge-Kutta steps need four timesteps. With fewer, ours skips them, and the peer fails."""
    with pytest.raises(ValueError, match="broadcast"):
        oracle.PNDMScheduler().set_timesteps(steps)
    mine, skipping = (Case("PNDMScheduler", config, steps).run(ours)[1] for config in ({}, {"skip_prk_steps": True}))
    assert torch.equal(mine[-1], skipping[-1])


def test_pndm_takes_models_of_the_clean_sample(oracle):
    """The same prediction, told as noise or as the clean sample, gives the same first step."""
    with pytest.raises(ValueError, match="prediction_type"):
        Case("PNDMScheduler", {"prediction_type": "sample"}).run(oracle)
    noise, x = torch.randn(2, 1, 3, 4, 4)
    told = []
    for kind in ("epsilon", "sample"):
        scheduler = make("PNDMScheduler", prediction_type=kind, skip_prk_steps=True)
        table = scheduler.table(10)
        x0 = (x - table.levels.sigma[0] * noise) / table.levels.alpha[0]
        told.append(table.step(0, noise if kind == "epsilon" else x0, x, table.new_state()))
    torch.testing.assert_close(*told, rtol=1e-4, atol=1e-4)


def test_pndm_may_be_entered_midway(oracle):
    """Image-to-image: ours goes from level to level; the peer takes the second call for the repeat of the first."""
    results = []
    for library in (oracle, ours):
        scheduler = library.PNDMScheduler(skip_prk_steps=True)
        scheduler.set_timesteps(10)
        results.append(trajectory(scheduler, x=torch.ones(1, 1, 2, 2), timesteps=scheduler.timesteps[5:7]))
    reference, mine = results
    assert torch.allclose(mine[1], reference[1], rtol=1e-4) and not torch.allclose(mine[2], reference[2], rtol=1e-2)


def test_log_linear_levels_are_as_many_as_reached(oracle):
    """Ours lists the level of each call and the end; the peer's list has a zero more, which no step reaches."""
    theirs, mine = (Case("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}).run(lib)[0] for lib in (oracle, ours))
    assert len(mine.sigmas) == len(mine.timesteps) + 1 == len(theirs.sigmas) - 1
    assert mine.sigmas[-1] > 0 == theirs.sigmas[-1]
    assert np.allclose(np.diff(mine.sigmas.double().log()), math.log(mine.sigmas[1] / mine.sigmas[0]), rtol=1e-4)
