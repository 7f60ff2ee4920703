"""Noised samples, targets and losses: against the oracle and the schedulers' own reading; what is drawn; wrong calls."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

import calotype.schedulers as schedulers
from calotype.schedulers.noise import Levels
from calotype.training.objectives import Objective
from calotype.training.timesteps import timestep_sampler

from .noising import CLEAN, KINDS, STEPS, TIMES, ZERO_SNR, at, seeded

FLOW, EDM = schedulers.FlowMatchEulerDiscreteScheduler, schedulers.EDMEulerScheduler


# -- samples and targets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"beta_schedule": "scaled_linear", "beta_end": 0.012}, ZERO_SNR,
                                    {"beta_schedule": "squaredcos_cap_v2"}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_and_targets_of_betas_equal_oracle(config, kind, diffusers):
    reference = diffusers.DDPMScheduler(**config)
    noised = Objective(schedulers.DDPMScheduler(**config), prediction_type=kind, timestep_sampler=STEPS).noised(CLEAN, seeded())
    assert noised.timesteps.tolist() == TIMES.tolist() and noised.timesteps.dtype is torch.int64
    torch.testing.assert_close(noised.sample, reference.add_noise(CLEAN, noised.noise, TIMES), rtol=1e-5, atol=1e-5)
    targets = {"epsilon": noised.noise, "sample": CLEAN, "v_prediction": reference.get_velocity(CLEAN, noised.noise, TIMES)}
    torch.testing.assert_close(noised.target, targets[kind], rtol=1e-5, atol=1e-5)
    assert noised.weights.tolist() == [1.0] * 6


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_every_scheduler_over_betas_trains_alike(name):
    """Also those whose own samples are variance-exploding: the network sees them scaled back."""
    made = [getattr(schedulers, each)() for each in (name, "DDPMScheduler")]
    one, other = (Objective(scheduler, snr_gamma=5.0).noised(CLEAN, seeded()) for scheduler in made)
    assert all(torch.equal(getattr(one, field), getattr(other, field)) for field in vars(one))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_samples_of_flow_models_equal_oracle(shift, diffusers):
    reference = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    places = torch.tensor([0, 10, 500, 700, 900, 999])  # of the training levels, from noise on
    noised = Objective(FLOW(shift=shift), timestep_sampler=at(*(1 - places / 1000).tolist())).noised(CLEAN, seeded())
    times = reference.timesteps[places]
    torch.testing.assert_close(noised.timesteps, times, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(noised.sample, reference.scale_noise(CLEAN, times, noised.noise), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(noised.target, noised.noise - CLEAN)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler"])
def test_networks_of_edm_equal_oracle(name, kind, diffusers):
    """The oracle's preconditioning takes a sample at a level to what the network sees, and the target to the clean sample."""
    if name.startswith("Cosine"):
        pytest.importorskip("torchsde")
    reference = getattr(diffusers, name)(prediction_type=kind)
    sigmas = [0.3, 0.5, 1.0, 4.0, 20.0, 79.0]
    sampler = at(*sigmas, sigmas=True)
    noised = Objective(getattr(schedulers, name)(prediction_type=kind), timestep_sampler=sampler).noised(CLEAN, seeded())
    for i, sigma in enumerate(map(torch.tensor, sigmas)):
        x = CLEAN[i] + sigma * noised.noise[i]
        torch.testing.assert_close(noised.sample[i], reference.precondition_inputs(x, sigma), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(noised.timesteps[i], reference.precondition_noise(sigma).float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(reference.precondition_outputs(x, noised.target[i], sigma), CLEAN[i], rtol=1e-4, atol=1e-4)


def trained():
    """Every scheduler that has an objective, with each of its prediction types; and those with settings of their own."""
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.0}
    yield from [("UniPCMultistepScheduler", flow), ("DPMSolverMultistepScheduler", flow | {"prediction_type": "sample"}),
                ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True, "shift": 2.0}),
                ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 2.0}),
                ("EDMEulerScheduler", {"sigma_schedule": "exponential", "sigma_data": 1.0})]
    for cls in schedulers.ALL:
        if cls.__name__ not in ("CMStochasticIterativeScheduler", "IPNDMScheduler", "SCMScheduler"):
            kinds = cls.prediction_types if "prediction_type" in cls._arguments() else [None]
            yield from ((cls.__name__, {"prediction_type": kind} if kind else {}) for kind in kinds)


@pytest.mark.parametrize(("name", "config"), trained(), ids=str)
def test_what_is_trained_is_what_is_read(name, config):
    """The scheduler reads the clean sample and the noise in the target, at the level of which the sample is."""
    if name.startswith(("Cosine", "DPMSolverSDE")):
        pytest.importorskip("torchsde")
    scheduler = getattr(schedulers, name)(**config)
    objective = Objective(scheduler, timestep_sampler=at(0.02, 0.1, 0.3, 0.5, 0.7, 0.9))
    noised = objective.noised(CLEAN.double(), seeded())
    level = objective.process.levels(torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64))
    alpha, sigma = (np.append(each.numpy(), 0.0) for each in level[1:])
    levels = Levels(np.zeros(6), alpha, sigma)
    read, scale = scheduler.prediction(levels), torch.tensor(scheduler.input_scale(levels), dtype=torch.float64)
    x0_x, x0_out, noise_x, noise_out, alpha, sigma, scale = (
        torch.as_tensor(each[:6]).view(-1, 1, 1, 1) for each in (*read, alpha, sigma, scale))
    x = alpha * CLEAN.double() + sigma * noised.noise
    torch.testing.assert_close(noised.sample, x * scale, check_dtype=False)
    torch.testing.assert_close(x0_x * x + x0_out * noised.target, CLEAN.double())
    torch.testing.assert_close(noise_x * x + noise_out * noised.target, noised.noise)


def test_the_model_is_told_what_the_scheduler_tells_it():
    for scheduler, name in ((FLOW(shift=3.0), "sigma"), (FLOW(shift=3.0, invert_sigmas=True), "sigma")):
        levels = Objective(scheduler).process.levels(torch.linspace(1.0, 0.1, 10, dtype=torch.float64))
        sampling = scheduler._training()
        torch.testing.assert_close(levels.timesteps.double(), torch.from_numpy(sampling.timesteps[:1000:100].copy()))
        torch.testing.assert_close(getattr(levels, name), torch.from_numpy(sampling.sigma[:1000:100].copy()), rtol=1e-6, atol=0)
    for scheduler in (EDM(), EDM(sigma_schedule="exponential")):
        sampling = scheduler.levels(10)
        levels = Objective(scheduler).process.levels(torch.linspace(1, 0, 10, dtype=torch.float64))
        torch.testing.assert_close(levels.sigma, torch.from_numpy(sampling.sigma[:-1].copy()))
        torch.testing.assert_close(levels.timesteps.double(), torch.from_numpy(sampling.timesteps.copy()), rtol=1e-5, atol=1e-6)


# -- losses -------------------------------------------------------------------------------------------------------------


def test_losses_of_one_error():
    objective = partial(Objective, schedulers.DDPMScheduler(), snr_gamma=2.0)
    for loss, expected in (("l2", 0.09), ("l1", 0.3), ("huber", 2 * 0.4 * (0.5 - 0.4))):
        chosen = objective(loss=loss, huber_c=0.4)
        noised = chosen.noised(CLEAN, seeded())
        torch.testing.assert_close(chosen.loss(noised.target - 0.3, noised), expected * noised.weights, rtol=1e-4, atol=1e-7)
        assert torch.equal(chosen.loss(noised.target, noised), torch.zeros(6))


def test_learned_variances_are_not_trained_here():
    objective = Objective(schedulers.DDPMScheduler())
    noised = objective.noised(CLEAN, seeded())
    output = torch.randn(6, 8, 5, 5, generator=seeded(2)).requires_grad_()
    loss = objective.loss(output, noised)
    assert torch.equal(loss, objective.loss(output[:, :4], noised))
    loss.sum().backward()
    assert output.grad[:, :4].abs().min() > 0 and output.grad[:, 4:].abs().max() == 0


def test_samples_keep_their_dtype_and_losses_their_precision():
    objective = Objective(schedulers.DDPMScheduler(), timestep_sampler=STEPS)
    half, full = (objective.noised(CLEAN.bfloat16().to(dtype), seeded()) for dtype in (torch.bfloat16, torch.float32))
    assert half.sample.dtype is torch.bfloat16 and torch.equal(half.sample, full.sample.bfloat16())
    assert torch.equal(half.target, full.target)
    assert objective.loss(half.target.bfloat16(), half).dtype is torch.float32


# -- what is drawn ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [schedulers.DDPMScheduler(), FLOW(), EDM()], ids=lambda scheduler: type(scheduler).__name__)
def test_draws_are_of_the_generator_and_in_order(scheduler):
    before = torch.get_rng_state()
    objective = Objective(scheduler, noise_offset=0.1, input_perturbation=0.2)
    one, same, other = (objective.noised(CLEAN, seeded(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(getattr(one, field), getattr(same, field)) for field in vars(one))
    assert not torch.equal(one.sample, other.sample) and not torch.equal(one.timesteps, other.timesteps)
    assert torch.equal(torch.get_rng_state(), before)
    generator = seeded()
    noise = torch.randn(CLEAN.shape, generator=generator)
    drawn = objective.timestep_sampler(6, generator, "cpu")
    levels = objective.process.levels(drawn, are_sigmas=isinstance(scheduler, EDM))
    offset = torch.randn(6, 4, 1, 1, generator=generator)
    assert torch.equal(one.timesteps, levels.timesteps)
    torch.testing.assert_close(one.noise, noise + 0.1 * offset)
    plain = Objective(scheduler).noised(CLEAN, seeded())
    assert torch.equal(plain.noise, noise) and torch.equal(plain.timesteps, one.timesteps)


def test_nothing_reads_a_value():
    """A meta tensor has none to read: what would wait for an accelerator raises an error here."""
    clean = torch.empty(2, 4, 8, 8, device="meta")
    for scheduler, snr_gamma in ((schedulers.DDPMScheduler(), 5.0), (FLOW(), None), (EDM(), None)):
        objective = Objective(scheduler, snr_gamma=snr_gamma, noise_offset=0.1, input_perturbation=0.1, loss="huber")
        noised = objective.noised(clean, seeded())
        assert {value.device.type for value in vars(noised).values()} == {"meta"}
        assert objective.loss(torch.empty_like(clean), noised).shape == (2,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_no_wait_for_cuda():
    clean = CLEAN.cuda()
    for scheduler in (schedulers.DDPMScheduler(), FLOW(), EDM()):
        for generator in (seeded(), torch.Generator("cuda").manual_seed(0)):
            objective = Objective(scheduler)
            objective.noised(clean, generator)  # moves the tables
            torch.cuda.set_sync_debug_mode("error")
            try:
                noised = objective.noised(clean, generator)
                objective.loss(noised.target, noised)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(objective.noised(clean, seeded()).noise.cpu(), objective.noised(CLEAN, seeded()).noise)


def test_offset_is_one_number_a_channel():
    clean = torch.zeros(500, 4, 8, 8)
    noised = Objective(schedulers.DDPMScheduler(), noise_offset=0.5).noised(clean, seeded())
    assert float(noised.noise.mean((2, 3)).std()) == pytest.approx(math.sqrt(0.5**2 + 1 / 64), rel=0.05)
    assert torch.equal(noised.target, noised.noise)


def test_perturbation_is_of_the_input_alone():
    """Ning et al. 2023: the network sees more noise than it is asked for. EDM's is asked for the clean sample nevertheless."""
    clean = torch.zeros(100, 4, 8, 8)
    objective = Objective(schedulers.DDPMScheduler(), input_perturbation=0.3, timestep_sampler=at(0.9999))
    noised = objective.noised(clean, seeded())
    assert torch.equal(noised.target, noised.noise)
    sigma = float(objective.process.levels(torch.ones(1)).sigma)
    assert float((noised.sample / sigma - noised.noise).std()) == pytest.approx(0.3, rel=0.02)
    flow = Objective(FLOW(), input_perturbation=0.3).noised(clean, seeded())
    assert torch.equal(flow.target, flow.noise)
    edm = EDM()
    noised = Objective(edm, input_perturbation=0.3, timestep_sampler=at(2.0, sigmas=True)).noised(clean, seeded())
    x = noised.sample * math.hypot(2.0, 0.5)
    assert float((x / 2 - noised.noise).std()) == pytest.approx(0.3, rel=0.02)
    torch.testing.assert_close(edm.precondition_outputs(x, noised.target, 2.0), clean, rtol=0, atol=1e-5)


def test_uniform_timesteps_are_all_of_them():
    objective = Objective(schedulers.DDPMScheduler(), timestep_sampler="stratified")
    assert sorted(objective.noised(torch.zeros(1000, 1), seeded()).timesteps.tolist()) == list(range(1000))
    bounded = Objective(schedulers.DDPMScheduler(), timestep_sampler=timestep_sampler("bounded", low=0.2, high=0.4))
    times = bounded.noised(torch.zeros(5000, 1), seeded()).timesteps
    assert (times.min(), times.max()) == (200, 399)


# -- wrong calls --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheduler", "options", "error", "words"), [
    (schedulers.DDPMScheduler(), {"prediction_type": "noise"}, ValueError, "prediction_type is 'noise', but must be 'epsilon'"),
    (FLOW(), {"prediction_type": "epsilon"}, ValueError, "prediction_type is 'epsilon', but must be 'flow_prediction'"),
    (schedulers.DDPMScheduler(), {"timestep_sampler": "unifrom"}, ValueError, "did you mean 'uniform'"),
    (FLOW(), {"timestep_sampler": "log_normal"}, ValueError, "draws sigmas of EDM, and FlowMatchEulerDiscreteScheduler takes"),
    (schedulers.DDPMScheduler(), {"weighting": "min_snr_"}, ValueError, r"weighting \(with a DDPM.*\) is 'min_snr_'.*'min_snr'"),
    (schedulers.DDPMScheduler(), {"weighting": "cosmap"}, ValueError, "is 'cosmap', but must be 'none', 'min_snr'"),
    (FLOW(), {"weighting": "p2"}, ValueError, "is 'p2', but must be 'none', 'sigma_sqrt' or 'cosmap'"),
    (FLOW(), {"snr_gamma": 5.0}, ValueError, "snr_gamma is 5.0, but flow models, as of FlowMatchEulerDiscreteScheduler"),
    (schedulers.DDPMScheduler(), {"snr_gamma": 0.0}, ValueError, "snr_gamma is 0.0, but must be more than 0"),
    (schedulers.DDPMScheduler(), {"snr_gamma": 5.0, "weighting": "p2"}, ValueError, "the weighting 'p2' has none: min_snr and"),
    (schedulers.DDPMScheduler(**ZERO_SNR), {"snr_gamma": 5.0}, ValueError, "rescale_betas_zero_snr.*v_prediction"),
    (schedulers.DPMSolverMultistepScheduler(**ZERO_SNR), {"snr_gamma": 5.0}, ValueError, "rescale_betas_zero_snr.*v_prediction"),
    (schedulers.DDPMScheduler(), {"noise_offset": -0.1}, ValueError, "noise_offset is -0.1, but must be 0 or more"),
    (schedulers.DDPMScheduler(), {"input_perturbation": math.nan}, ValueError, "input_perturbation is nan"),
    (schedulers.DDPMScheduler(), {"huber_c": 0.0}, ValueError, "huber_c is 0.0, but must be more than 0"),
    (schedulers.DDPMScheduler(), {"loss": "l3"}, ValueError, "loss is 'l3', but must be 'l2', 'l1' or 'huber'"),
    (schedulers.SCMScheduler(), {}, TypeError, "no objective is known for the models of a SCMScheduler"),
    (schedulers.EulerDiscreteScheduler(timestep_type="continuous"), {}, ValueError, "timestep_type is 'continuous'")])
def test_wrong_objectives(scheduler, options, error, words):
    with pytest.raises(error, match=words):
        Objective(scheduler, **options)


def test_wrong_samples_and_outputs():
    objective = Objective(schedulers.DDPMScheduler())
    with pytest.raises(ValueError, match=r"must be floats \[B, C, …\], and are torch.uint8 \[2, 3\]"):
        objective.noised(torch.zeros(2, 3, dtype=torch.uint8))
    noised = objective.noised(CLEAN)
    for output in (torch.zeros(6, 4, 5, 6), torch.zeros(6, 12, 5, 5), torch.zeros(1, 4, 5, 5), torch.zeros(6, 8, 5, 1)):
        shape = ", ".join(map(str, output.shape))
        with pytest.raises(ValueError, match=rf"the output has the shape \[{shape}\], .* \[6, 4, 5, 5\]"):
            objective.loss(output, noised)
    with pytest.raises(ValueError, match=r"drew \[3\] positions for 6 samples"):
        Objective(schedulers.DDPMScheduler(), timestep_sampler=lambda n, generator, device: torch.zeros(3)).noised(CLEAN)
