"""Where Calotype deliberately does not follow the oracle: what ours does, and that the oracle still does otherwise.

The mathematical reason is tested in `test_convergence.py` and `test_consistency.py`, which know no oracle.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import calotype.schedulers as ours

from .cases import Case, make
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


@pytest.mark.parametrize("name", ["DEISMultistepScheduler", "SASolverScheduler", "DPMSolverMultistepInverseScheduler"])
def test_one_step_of_a_ramp(name, oracle):
    """The peer's one level is also where it ends; ours goes the whole way."""
    case = Case(name, {"use_karras_sigmas": True}, 1)
    (theirs, reference), (mine, _) = case.run(oracle), case.run(ours)
    assert theirs.sigmas[0] == theirs.sigmas[1] and torch.allclose(reference[0], reference[1])
    assert abs(float(mine.sigmas[0] - mine.sigmas[1])) > 100


def test_inversion_of_dpm_solver(oracle):
    """The peer's stochastic ways up are NaN, and it leaves steps out where timesteps repeat: it ends before the noise."""
    name = "DPMSolverMultistepInverseScheduler"
    assert Case(name, {"algorithm_type": "sde-dpmsolver++"}).run(oracle)[1][-1].isnan().all()
    with pytest.raises(ValueError, match="algorithm_type"):
        make(name, algorithm_type="sde-dpmsolver++")
    with pytest.raises(ValueError, match="use_flow_sigmas"):
        make(name, use_flow_sigmas=True)
    theirs, mine = (Case(name, {"num_train_timesteps": 50}, 50).run(library)[0] for library in (oracle, ours))
    assert len(theirs.timesteps) == 49 and len(mine.timesteps) == 50 == len(theirs.sigmas) - 1


def test_one_step_of_ipndm(oracle):
    """The peer's picture is 0, since its first step does not heed the model; ours is what the model says."""
    (_, reference), (_, samples) = (Case("IPNDMScheduler", {}, 1).run(library) for library in (oracle, ours))
    assert (reference[1] == 0).all() and samples[1].abs().max() > 0.5


def test_sa_solver_passes_over_learned_variances(oracle):
    case = Case("SASolverScheduler", {"variance_type": "learned_range"})
    with pytest.raises(RuntimeError):
        case.run(oracle)
    assert case.run(ours)[1][-1].shape == (2, 3, 4, 4)


def test_exponential_betas_work_in_every_class(oracle):
    """In the peer only Heun knows them."""
    expected = oracle.HeunDiscreteScheduler(beta_schedule="exp").alphas_cumprod
    torch.testing.assert_close(make("DDIMScheduler", beta_schedule="exp").alphas_cumprod, expected, rtol=1e-4, atol=0)
    with pytest.raises(NotImplementedError):
        oracle.DDIMScheduler(beta_schedule="exp")


def test_log_linear_levels_are_as_many_as_reached(oracle):
    """Ours lists the level of each call and the end; the peer's list has a zero more, which no step reaches."""
    theirs, mine = (Case("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}).run(lib)[0] for lib in (oracle, ours))
    assert len(mine.sigmas) == len(mine.timesteps) + 1 == len(theirs.sigmas) - 1
    assert mine.sigmas[-1] > 0 == theirs.sigmas[-1]
    assert np.allclose(np.diff(mine.sigmas.double().log()), math.log(mine.sigmas[1] / mine.sigmas[0]), rtol=1e-4)


def test_repaint_goes_back_by_the_betas_between(oracle):
    """From clean up to timestep 0 there is one beta; the peer takes a stride of them, those above: here 1,000 times the noise."""
    varied = []
    for library in (oracle, ours):
        scheduler = library.RePaintScheduler()
        scheduler.set_timesteps(10)
        varied.append(float(scheduler.undo_step(torch.zeros(1, 1, 100, 100), 0, torch.Generator().manual_seed(0)).var()))
    assert varied[1] == pytest.approx(1e-4, rel=0.05) and varied[0] > 0.1


def test_sde_levels_follow_the_times(oracle):
    """`set_timesteps` alone places the levels too; the peer then goes between those of 2,000 steps."""
    theirs, mine = (library.ScoreSdeVeScheduler() for library in (oracle, ours))
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10)
    assert len(mine.sigmas) == len(mine.discrete_sigmas) == 10 and len(theirs.discrete_sigmas) == 2000
    mine.set_sigmas(7)
    assert len(mine.timesteps) == len(mine.sigmas) == 7


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler"])
def test_one_step_of_edm_goes_from_noise_to_picture(name, oracle):
    """The sample begins at `sigma_max`. The peer's exponential ramp of one level is at the other end."""
    theirs, mine = (getattr(library, name)(sigma_schedule="exponential") for library in (oracle, ours))
    theirs.set_timesteps(1)
    mine.set_timesteps(1)
    assert float(theirs.sigmas[0]) == pytest.approx(mine.config.sigma_min)
    assert mine.sigmas.tolist() == pytest.approx([mine.config.sigma_max, 0.0])


def test_edm_euler_ends_at_sigma_min(oracle):
    """Also with one step, which in the peer goes from 80 to 80."""
    theirs, mine = (Case("EDMEulerScheduler", {"final_sigmas_type": "sigma_min"}, 1).run(lib)[0] for lib in (oracle, ours))
    assert theirs.sigmas.tolist() == [80.0, 80.0]
    assert mine.sigmas.tolist() == pytest.approx([80.0, 0.002])


def test_edm_euler_takes_levels(oracle):
    """Falling `sigmas` are levels and the end. The peer knows only places on its ramp, and of levels makes NaN."""
    theirs, mine = (library.EDMEulerScheduler() for library in (oracle, ours))
    theirs.set_timesteps(sigmas=torch.tensor([10.0, 5.0, 1.0]))
    mine.set_timesteps(sigmas=[10.0, 5.0, 1.0, 0.0])
    assert theirs.timesteps.isnan().any()
    assert mine.sigmas.tolist() == [10.0, 5.0, 1.0, 0.0]
    torch.testing.assert_close(mine.timesteps, mine.sigmas[:-1].log() / 4)


@pytest.mark.parametrize(("name", "config"), [
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}), ("CosineDPMSolverMultistepScheduler", {})])
def test_stochastic_steps_of_order_three(name, config, oracle):
    """The peer's end without a sample."""
    case = Case(name, {**config, "solver_order": 3}, 5)
    with pytest.raises(UnboundLocalError):
        case.run(oracle)
    assert case.run(ours)[1][-1].isfinite().all()


def test_cosine_levels_end_at_sigma_min(oracle):
    """The last step goes nowhere and draws nothing; the peer asks for the noise between a level and itself, without end."""
    case = Case("CosineDPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}, 5)
    with pytest.raises(RecursionError):
        case.run(oracle)
    samples = case.run(ours)[1]
    torch.testing.assert_close(samples[-1], samples[-2])


def test_scm_takes_any_number_of_steps(oracle):
    """The peer's default for the second of two timesteps refuses every other number of them."""
    with pytest.raises(ValueError, match="num_inference_steps"):
        oracle.SCMScheduler().set_timesteps(4)
    scheduler = ours.SCMScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == pytest.approx([1.5708, 1.1781, 0.7854, 0.3927, 0.0], abs=1e-6)
    for how in ({"num_inference_steps": 2, "intermediate_timesteps": 1.57}, {"num_inference_steps": 2, "max_timesteps": 2.0}):
        with pytest.raises(ValueError, match=[*how][1]):
            scheduler.set_timesteps(**{"max_timesteps": 1.5, **how})
