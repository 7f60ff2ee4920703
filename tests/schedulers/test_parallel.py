"""Steps that other classes lack: many timesteps of a trajectory in one batch, backwards, and to any timestep."""

from __future__ import annotations

import itertools

import pytest
import torch

import calotype.schedulers as ours

from .cases import Case, make, network, trajectory
from .gaussian import ode_error, order

KINDS = ("epsilon", "sample", "v_prediction")
X = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "clips", "options"), itertools.product(
    KINDS, (True, False), ({}, {"use_clipped_model_output": True})), ids=str)
def test_ddim_batch_step_equals_oracle(kind, clips, options, oracle):
    results = []
    for library in (oracle, ours):
        scheduler = library.DDIMParallelScheduler(prediction_type=kind, clip_sample=clips)
        scheduler.set_timesteps(10)
        results.append(scheduler.batch_step_no_noise(0.4 * X.flip(0), scheduler.timesteps[[0, 3, 9, 5]], X, **options))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4 * float(results[0].abs().max()))


@pytest.mark.parametrize(("kind", "variance"), itertools.product(KINDS, ("fixed_small", "learned_range")), ids=str)
@pytest.mark.parametrize("extra", [{}, {"thresholding": True, "sample_max_value": 1.5}], ids=str)
def test_ddpm_batch_step_equals_oracle(kind, variance, extra, oracle):
    results, config = [], {"prediction_type": kind, "variance_type": variance, **extra}
    for library in (oracle, ours):
        scheduler = library.DDPMParallelScheduler(**config)
        scheduler.set_timesteps(10)
        output = network(X, 3, config)
        results.append(scheduler.batch_step_no_noise(output, scheduler.timesteps[[0, 3, 9, 5]], X))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4 * float(results[0].abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_batch_step_is_step(dtype):
    """Each sample's next is what it gets alone."""
    scheduler = make("DDIMParallelScheduler", thresholding=True, sample_max_value=2.0)
    scheduler.set_timesteps(10)
    x, times = X.to(dtype), scheduler.timesteps[[2, 2, 9, 0]]
    together = scheduler.batch_step_no_noise(0.4 * x, times, x)
    assert together.dtype == dtype
    for i, t in enumerate(times):
        torch.testing.assert_close(together[i : i + 1], scheduler.step(0.4 * x[i : i + 1], t, x[i : i + 1]).prev_sample)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_inversion_and_back(spacing):
    """From a picture to noise and back: the two errors, each of first order, cancel but for second-order terms."""
    config = {"timestep_spacing": spacing, "clip_sample": False, "set_alpha_to_one": False}
    away = []
    for steps in (50, 200):
        there, back = make("DDIMInverseScheduler", **config), make("DDIMScheduler", **config)
        there.set_timesteps(steps)
        back.set_timesteps(steps)
        assert there.timesteps.tolist() == back.timesteps.tolist()[::-1]
        again = trajectory(back, x=trajectory(there, x=X)[-1])[-1]
        away.append(float((again - X).abs().max()))
    assert away[1] < away[0] / 2 and away[1] < 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_inversion_converges(kind):
    """To the exact solution of the ODE, for a model that is asked at the level of the sample."""
    scheduler = make("DDIMInverseScheduler", prediction_type=kind, clip_sample=False, set_alpha_to_one=False)
    counts = [50, 100, 200, 400]
    assert order(counts, [ode_error(scheduler.table(n), kind) for n in counts]) == pytest.approx(1, abs=0.25)


def test_inversion_differences(oracle):
    """The peer steps from `t - 1000 // n`, divides by zero for models of the clean sample, and refuses `linspace`."""
    uneven = Case("DDIMInverseScheduler", {"timestep_spacing": "trailing"}, 7)
    (_, reference), (mine, samples) = uneven.run(oracle), uneven.run(ours)
    assert not torch.allclose(reference[2], samples[2], rtol=1e-3)
    levels = mine.table(7).levels
    assert torch.allclose(torch.from_numpy(levels.alpha[1:] ** 2).float(), mine.alphas_cumprod[mine.timesteps])
    clean = Case("DDIMInverseScheduler", {"prediction_type": "sample"})
    assert not clean.run(oracle)[1][-1].isfinite().all() and clean.run(ours)[1][-1].isfinite().all()
    with pytest.raises(ValueError, match="linspace"):
        Case("DDIMInverseScheduler", {"timestep_spacing": "linspace"}).run(oracle)


@pytest.mark.parametrize("told", [False, True], ids=["next", "prev_timestep"])
@pytest.mark.parametrize(("kind", "variance", "clips", "steps"), itertools.product(
    ("epsilon", "sample"), ("fixed_small_log", "learned_range"), (True, False), (2, 4, 7, 25, 50)), ids=str)
def test_unclip_equals_oracle(kind, variance, clips, steps, told, oracle):
    """The peer is told where to go, as its pipelines do; ours may be, and knows otherwise."""
    results = []
    for library in (oracle, ours):
        scheduler = library.UnCLIPScheduler(prediction_type=kind, variance_type=variance, clip_sample=clips)
        scheduler.set_timesteps(steps)
        times, generator, x = scheduler.timesteps, torch.Generator().manual_seed(0), X
        samples = [x]
        for i, t in enumerate(times):
            goes_to = times[i + 1] if (told or library is oracle) and i + 1 < steps else None
            output = network(x, t, scheduler.config)
            x = scheduler.step(output, t, x, prev_timestep=goes_to, generator=generator).prev_sample
            samples.append(x)
        results.append(samples)
    for i, (reference, mine) in enumerate(zip(*results, strict=True)):
        # the peer ends with 0.9995 · x0: it divides two roundings of 1 - alphas_cumprod[0]
        allowed = (1e-3 if i == steps else 1e-4) * reference.abs().max() + 2**-22 * results[0][i - 1].abs().max()
        assert (mine - reference).abs().max() <= allowed, f"step {i}"


def test_unclip_differences(oracle):
    """One step starts from noise, a step goes to the next timestep, and the last is the clean sample."""
    with pytest.raises(ZeroDivisionError):
        oracle.UnCLIPScheduler().set_timesteps(1)
    mine, theirs = make("UnCLIPScheduler", clip_sample=False), oracle.UnCLIPScheduler(clip_sample=False)
    mine.set_timesteps(1)
    assert mine.timesteps.tolist() == [999]
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(5)
    assert not torch.allclose(*(s.step(0.3 * X, 500, X, generator=torch.Generator().manual_seed(0)).prev_sample
                                for s in (mine, theirs)), rtol=1e-2)
    end = mine.step(0.3 * X, 0, X)
    torch.testing.assert_close(end.prev_sample, end.pred_original_sample)
