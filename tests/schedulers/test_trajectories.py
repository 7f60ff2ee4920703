"""Whole trajectories equal the oracle's, over every combination of options that `plans.py` lists."""

from __future__ import annotations

import pytest
import torch

import calotype.schedulers as ours

from .cases import Case, every, make, trajectory
from .plans import PLANS, cases

ROUNDING = 2**-22
"""Of the oracle: it subtracts single-precision numbers of the size of the sample before the step, which at the
first levels of a cosine schedule are 20,000 times those after it."""


@every("case", cases())
def test_equals_oracle(case: Case, oracle):
    compare(case, oracle)


@every("name", [name for name in PLANS if "beta_schedule" in make(name).config and name != "UnCLIPScheduler"])
def test_stable_diffusions_training(name: str, oracle):
    """Its betas, with every ramp that the class has: roundings decide which whole timesteps a ramp gives."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    needed = {"DPMSolverSDEScheduler": {"noise_sampler_seed": 7}}.get(name, {})
    for ramp in (None, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"):
        config = {**betas, **needed, **({ramp: True} if ramp else {})}
        if (ramp is None or ramp in make(name).config) and not PLANS[name].differs(config, 10):
            compare(Case(name, config, 10), oracle)


def compare(case: Case, oracle) -> None:
    theirs, reference = case.run(oracle)
    mine, samples = case.run(ours)

    assert mine.timesteps.dtype == theirs.timesteps.dtype
    torch.testing.assert_close(mine.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-4)
    assert theirs.num_inference_steps in (mine.num_inference_steps, None)  # the peer's DDPM forgets it
    assert float(mine.init_noise_sigma) == pytest.approx(float(getattr(theirs, "init_noise_sigma", 1.0)), rel=1e-5)
    if hasattr(theirs, "sigmas"):
        expected = theirs.sigmas
        if case.config.get("interpolation_type") == "log_linear":  # see test_differences.py
            expected = expected[: len(mine.sigmas)]
        assert len(mine.sigmas) == len(expected)
        allowed = 2e-5 * mine.sigmas
        if case.config.get("rescale_betas_zero_snr"):  # the peer computes 1 - alphas_cumprod of these once more
            allowed += ROUNDING * (1 + mine.sigmas**2) / (2 * mine.sigmas).clamp(min=1e-6)
        assert ((mine.sigmas - expected.float()).abs() <= allowed).all()

    assert len(samples) == len(reference)
    for i in range(1, len(samples)):
        allowed = 1e-4 * reference[i].abs().max() + ROUNDING * reference[i - 1].abs().max()
        allowed += 2**-24 * max(sample.abs().max() for sample in reference[:i])  # what either rounds off there, it keeps
        assert (samples[i] - reference[i]).abs().max() <= allowed, f"step {i} of {len(samples) - 1}"


def test_there_are_hundreds_of_cases():
    """A plan that lists nothing would test nothing."""
    names = [case.name for case in cases()]
    assert len(names) > 600
    assert set(names) == PLANS.keys()


@every("case", [Case("DDPMScheduler", {"variance_type": kind}) for kind in ("fixed_small", "fixed_large", "learned_range")])
def test_ddpm_steps_at_training_timesteps(case: Case, oracle):
    """Before `set_timesteps`, DDPM steps from any training timestep to the one below it."""
    results = []
    for library in (oracle, ours):
        scheduler = getattr(library, case.name)(**case.config)
        results.append([trajectory(scheduler, timesteps=[t])[-1] for t in (999, 998, 500, 1, 0)])
    for reference, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@every("name", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("told", [False, True], ids=["found", "told"])
def test_image_to_image_start(name: str, told: bool, oracle):
    """A loop entered midway, its start found by the timestep or told by `set_begin_index`, with all options of `step`."""
    options = {"EulerDiscreteScheduler": {"s_churn": 3.0}, "DDIMScheduler": {"eta": 0.7}}.get(name, {})
    results = []
    for library in (oracle, ours):
        scheduler = getattr(library, name)(**({"skip_prk_steps": True} if name == "PNDMScheduler" else {}))
        scheduler.set_timesteps(10)
        if told and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(4)
        results.append(trajectory(scheduler, options, timesteps=scheduler.timesteps[4:]))
    # Euler with churn: bug reported, `s_churn / len(levels)` counts only the rows that are left
    for reference, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))


@every("name", sorted(PLANS.keys() - {"SCMScheduler"}))  # the peer's takes no number but 2 alone
def test_many_steps(name: str, oracle):
    """As many steps as training had: every level. (The peer's Runge-Kutta steps have no middle then.)"""
    needed = {"PNDMScheduler": {"skip_prk_steps": True}, "DPMSolverSDEScheduler": {"noise_sampler_seed": 7}}
    count = 49 if name == "DPMSolverMultistepInverseScheduler" else 50  # the peer's leaves out what would repeat
    case = Case(name, {"num_train_timesteps": 50, **needed.get(name, {})}, count)
    (_, reference), (_, samples) = case.run(oracle), case.run(ours)
    for expected, mine in zip(reference, samples, strict=True):
        if expected.isfinite().all():  # the peer's solvers in log-SNR meet one timestep twice, and divide by nothing
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert mine.isfinite().all()


def test_seeds_mean_the_same_noise():
    """Noise is drawn from the generator, once a stochastic step, in the sample's shape: the state after it says so."""
    generator, expected = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    scheduler = make("DDPMScheduler")
    scheduler.set_timesteps(5)
    trajectory(scheduler, x=torch.zeros(2, 3, 4, 4), generator=generator)
    for _ in range(4):  # timestep 0 draws none
        torch.randn(2, 3, 4, 4, generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())
