"""Training and image-to-image starts: `add_noise` and `get_velocity`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calotype.schedulers as ours

from .cases import calls, make
from .plans import every_class, with_betas

X0, NOISE = torch.randn(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
EULER = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True, "sigma_max": 50.0}, {"timestep_spacing": "leading"},
         {"interpolation_type": "log_linear"}, {"timestep_type": "continuous", "prediction_type": "v_prediction"}]


@with_betas
@pytest.mark.parametrize("times", [[999, 500, 0], [1, 1, 998], [7]], ids=str)
def test_training_noise_equals_oracle(name, times, oracle):
    """Before `set_timesteps`: any training timestep, one for each sample or one for all."""
    timesteps = torch.tensor(times)
    if not hasattr(getattr(oracle, name), "add_noise"):
        pytest.skip("the peer's has none")
    if make(name).exposes_sigmas:
        pytest.skip("the peer's multistep solvers read their levels upside down until set_timesteps: 999 is the least noisy")
    reference, mine = (getattr(library, name)().add_noise(X0, NOISE, timesteps) for library in (oracle, ours))
    torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", EULER, ids=str)
def test_image_to_image_start_equals_oracle(config, oracle):
    """At a timestep of the trajectory the sample gets the level of its row, whatever placed the levels.

    Once, the level was read off the training process by the timestep, which for `log_linear` is another, and
    for `continuous` is no training timestep at all.
    """
    samples = []
    for library in (oracle, ours):
        scheduler = library.EulerDiscreteScheduler(**config)
        scheduler.set_timesteps(7)
        samples.append([scheduler.add_noise(X0, NOISE, t[None].expand(3)) for t in scheduler.timesteps])
    for reference, mine in zip(*samples, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@every_class
def test_samples_have_the_level_of_their_row(name):
    """`add_noise` and the table agree on every level of a trajectory."""
    scheduler = make(name)
    scheduler.set_timesteps(9)
    levels = scheduler.table(9).levels
    for i, t in enumerate(calls(scheduler)):
        expected = levels.alpha[i] * X0 + levels.sigma[i] * NOISE
        torch.testing.assert_close(scheduler.add_noise(X0, NOISE, t), expected.float(), rtol=1e-4, atol=1e-4)


@with_betas
def test_timesteps_between(name):
    """Training at float timesteps: levels are interpolated, and meet at whole ones."""
    scheduler = make(name)
    at = torch.linspace(99, 101, 41)
    share = [float(scheduler.add_noise(torch.zeros(1, 1), torch.ones(1, 1), t[None])) for t in at]
    assert (np.diff(share) > 0).all()
    assert np.diff(share).max() < 1.2 * np.diff(share).min()
    for i, t in ((0, 99), (20, 100), (40, 101)):
        assert share[i] == float(scheduler.add_noise(torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([t])))


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_velocity_equals_oracle(name, oracle):
    timesteps = torch.tensor([999, 500, 0])
    reference, mine = (getattr(library, name)().get_velocity(X0, NOISE, timesteps) for library in (oracle, ours))
    torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


@with_betas
def test_velocity_is_what_v_prediction_reads(name):
    """A model that says the target of training is read as the clean sample it was trained on."""
    config = {"prediction_type": "v_prediction", **({"clip_sample": False} if "clip_sample" in make(name).config else {})}
    scheduler = make(name, **config)
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[1]
    at = t if float(t).is_integer() else t.round()
    if float(t) != float(at):
        if "timesteps" not in scheduler.placed_by:
            pytest.skip("its levels lie between those of training")
        scheduler.set_timesteps(timesteps=[900, int(at), 5])
        t = scheduler.timesteps[1]
    noised, velocity = scheduler.add_noise(X0, NOISE, t), scheduler.get_velocity(X0, NOISE, t)
    torch.testing.assert_close(scheduler.step(velocity, t, noised).pred_original_sample, X0, rtol=1e-3, atol=1e-3)


@with_betas
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dtype_is_kept(name, dtype):
    noised = make(name).add_noise(X0.to(dtype), NOISE.to(dtype), torch.tensor([5, 500, 900]))
    assert noised.dtype == dtype and noised.isfinite().all()


@pytest.mark.parametrize("name", [
    "CMStochasticIterativeScheduler", "CosineDPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler"])
@pytest.mark.parametrize("steps", [None, 7])
def test_noise_at_timesteps_of_the_list_equals_oracle(name, steps, oracle):
    """Of models that were trained at levels and not over betas: before `set_timesteps` and after."""
    samples = []
    for library in (oracle, ours):
        scheduler = getattr(library, name)()
        if steps:
            scheduler.set_timesteps(steps)
        samples.append(scheduler.add_noise(X0, NOISE, scheduler.timesteps[[0, 3, 5]]))
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-5, atol=1e-5)
    assert make(name).add_noise(X0.half(), NOISE.half(), make(name).timesteps[[0, 3, 5]]).dtype == torch.float16


def test_levels_of_each_sample_are_its_own():
    scheduler = make("DDPMScheduler")
    together = scheduler.add_noise(X0, NOISE, torch.tensor([10, 500, 900]))
    for i, t in enumerate((10, 500, 900)):
        torch.testing.assert_close(together[i : i + 1], scheduler.add_noise(X0[i : i + 1], NOISE[i : i + 1], torch.tensor(t)))
