"""The weights of losses: against the oracle's SNR, the papers' formulas, and closed forms of the best network's loss."""

from __future__ import annotations

import math

import pytest
import torch

import calotype.schedulers as schedulers
from calotype.training.objectives import Objective
from calotype.training.weightings import SNR_WEIGHTINGS

from .noising import CLEAN, KINDS, STEPS, TIMES, ZERO_SNR, at, best, said, seeded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_equals_formula_of_the_oracle_s_snr(kind, gamma, diffusers):
    from diffusers.training_utils import compute_snr

    snr = compute_snr(diffusers.DDPMScheduler(), TIMES)
    least = snr.clamp(max=gamma)
    expected = {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}[kind]
    objective = Objective(schedulers.DDPMScheduler(), prediction_type=kind, snr_gamma=gamma, timestep_sampler=STEPS)
    torch.testing.assert_close(objective.noised(CLEAN, seeded()).weights, expected, rtol=1e-4, atol=1e-7)


def test_weights_of_predicted_noise():
    """As the papers write them."""
    scheduler = schedulers.DDPMScheduler()
    kept = scheduler.noise_schedule.alphas_cumprod[TIMES.numpy()]
    snr = torch.from_numpy(kept / (1 - kept))
    expected = {"p2": 1 / (1 + snr), "debias": snr**-0.5, "truncated_snr": snr.clamp(min=1) / snr, "soft_min_snr": 4 / (snr + 4),
                "min_snr": snr.clamp(max=5) / snr}
    assert expected.keys() == SNR_WEIGHTINGS.keys()
    for name, weights in expected.items():
        noised = Objective(scheduler, weighting=name, timestep_sampler=STEPS).noised(CLEAN, seeded())
        torch.testing.assert_close(noised.weights, weights.float())


@pytest.mark.parametrize("name", ["sigma_sqrt", "cosmap", "none"])
def test_weights_of_flow_models_equal_oracle(name, diffusers):
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigmas = torch.tensor([0.001, 0.1, 0.3, 0.5, 0.9, 1.0])
    scheduler, sampler = schedulers.FlowMatchEulerDiscreteScheduler(), at(*sigmas.tolist())
    noised = Objective(scheduler, weighting=name, timestep_sampler=sampler).noised(CLEAN, seeded())
    torch.testing.assert_close(noised.weights, compute_loss_weighting_for_sd3(name, sigmas), rtol=1e-5, atol=0)


@pytest.mark.parametrize("weighting", SNR_WEIGHTINGS)
def test_one_denoiser_has_one_loss_whatever_it_says(weighting):
    """The same predicted clean samples, as noise, as v, as clean samples and as flow."""
    losses = []
    for kind in (*KINDS, "flow_prediction"):
        scheduler = schedulers.DDPMScheduler(prediction_type=kind)
        objective = Objective(scheduler, weighting=weighting, timestep_sampler=STEPS)
        noised = objective.noised(CLEAN.double(), seeded())
        _, alpha, sigma = objective.process.levels((TIMES.double() + 0.5) / 1000)
        each = zip(noised.sample, 0.7 * noised.sample, alpha.tolist(), sigma.tolist(), strict=True)
        output = torch.stack([said(scheduler, *one) for one in each])
        losses.append(objective.loss(output, noised))
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0])


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("weighting", SNR_WEIGHTINGS)
def test_no_signal_has_a_finite_weight(kind, weighting):
    scheduler = schedulers.DDPMScheduler(prediction_type=kind, **ZERO_SNR)
    objective = Objective(scheduler, weighting=weighting, timestep_sampler=at(1.0))
    expected = 1.0 if weighting == "truncated_snr" else 0.0
    assert objective.noised(CLEAN, seeded()).weights.tolist() == [expected] * 6


@pytest.mark.parametrize("weighting", [None, "min_snr", "p2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [100, 400, 800])
def test_the_best_network_s_loss_on_gaussian_data(kind, weighting, t):
    """The clean sample's variance that its sample leaves is `(spread sigma)² / (alpha² spread² + sigma²)`."""
    scheduler, mean, spread = schedulers.DDPMScheduler(prediction_type=kind), 0.3, 0.5
    kept = float(scheduler.noise_schedule.alphas_cumprod[t])
    alpha, sigma, snr = math.sqrt(kept), math.sqrt(1 - kept), kept / (1 - kept)
    left = (spread * sigma) ** 2 / (alpha**2 * spread**2 + sigma**2)
    own = left * {"epsilon": snr, "sample": 1, "v_prediction": snr + 1}[kind]
    expected = {None: own, "min_snr": left * min(snr, 5), "p2": left * snr / (1 + snr)}[weighting]
    objective = Objective(scheduler, weighting=weighting, timestep_sampler=at((t + 0.5) / 1000))
    noised = objective.noised(mean + spread * torch.randn(20_000, 1, generator=seeded(1), dtype=torch.float64), seeded())
    found = objective.loss(best(scheduler, noised.sample, alpha, sigma, spread, mean), noised).mean()
    assert float(found) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("spread", [0.5, 0.2])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 10.0])
def test_edm_loss_on_gaussian_data(sigma, spread):
    """A target of unit variance at every level, where data has `sigma_data`; and then the best that a network can do is say 0."""
    scheduler = schedulers.EDMEulerScheduler()
    objective = Objective(scheduler, timestep_sampler=at(sigma, sigmas=True))
    noised = objective.noised(spread * torch.randn(20_000, 1, generator=seeded(1), dtype=torch.float64), seeded())
    left = (spread * sigma) ** 2 / (spread**2 + sigma**2)
    expected = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * left  # lambda times the variance that is left
    output = best(scheduler, noised.sample * math.hypot(sigma, 0.5), 1.0, sigma, spread)
    assert float(objective.loss(output, noised).mean()) == pytest.approx(expected, rel=0.05)
    if spread == 0.5:
        assert expected == pytest.approx(1) and float(noised.target.std()) == pytest.approx(1, rel=0.03)
        assert float(noised.sample.std()) == pytest.approx(1, rel=0.03)
        torch.testing.assert_close(output, torch.zeros_like(output))
