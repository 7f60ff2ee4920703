"""The stateful scheduler that people write loops with: reuse, timesteps of any kind, what comes back."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from .cases import calls, make, network, trajectory
from .gaussian import best_output
from .plans import PLANS, every_class, with_betas

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def ready(name: str, steps: int = 8, **config):
    scheduler = make(name, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def same(one, other) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_class
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_second_generation_is_like_the_first(name, steps):
    """With `set_timesteps` in between, and without: no output, row or option of the first leaks into the second."""
    config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler = ready(name, steps, **config)
    first = trajectory(scheduler, x=X)
    assert same(trajectory(scheduler, x=X), first)
    scheduler.set_timesteps(steps)
    assert same(trajectory(scheduler, x=X), first)
    trajectory(scheduler, x=X * 2, timesteps=calls(scheduler)[: steps // 2])  # left in the middle
    assert same(trajectory(scheduler, x=X), first)
    midway, fresh = calls(scheduler)[steps // 2 :], ready(name, steps, **config)
    assert same(trajectory(scheduler, x=X, timesteps=midway), trajectory(fresh, x=X, timesteps=midway))
    scheduler.set_timesteps(steps + 3)
    assert len(trajectory(scheduler, x=X)) != len(first)


@every_class
def test_timesteps_of_any_kind(name):
    """An int, a float, a NumPy scalar, a tensor without dimensions or with one element: all are the timestep."""
    scheduler = ready(name)
    first = trajectory(scheduler, x=X)
    times = calls(scheduler)
    kinds = [list(times), times.tolist(), [float(t) for t in times], list(times.numpy()), [t[None] for t in times],
             list(times.double()), [np.float64(t) for t in times]]
    for timesteps in kinds:
        assert same(trajectory(scheduler, x=X, timesteps=timesteps), first)


@every_class
def test_what_a_step_returns(name):
    scheduler = ready(name)
    t = scheduler.timesteps[0]
    scheduled = copy.deepcopy(scheduler)
    torch.manual_seed(0)
    output = scheduler.step(0.5 * X, t, X)
    torch.manual_seed(0)
    plain = scheduled.step(0.5 * X, t, X, return_dict=False)
    assert isinstance(plain, tuple) and torch.equal(plain[0], output.prev_sample)
    assert torch.equal(output[0], output.prev_sample) and torch.equal(output["prev_sample"], output.prev_sample)
    prev_sample, pred_original_sample = output
    assert pred_original_sample.shape == X.shape and torch.equal(prev_sample, output.prev_sample)
    assert list(output.keys()) == ["prev_sample", "pred_original_sample"]


@every_class
def test_predicted_clean_sample_is_the_models(name):
    """`pred_original_sample` inverts `add_noise`, if the model knows the noise."""
    scheduler = ready(name, **{clips: False for clips in ("clip_sample", "clip_denoised") if clips in make(name).config})
    t, noise = scheduler.timesteps[2], torch.randn(2, 3, 4, 4)
    noised = scheduler.add_noise(X, noise, t[None].expand(2))
    kind = PLANS[name].kind(scheduler.config.get("prediction_type", "epsilon"))
    output = best_output(scheduler.table(8), 2, noised, kind, mean=X, spread=0.0)
    predicted = scheduler.step(output, t, noised).pred_original_sample
    torch.testing.assert_close(predicted, X, rtol=1e-3, atol=1e-3)


@every_class
def test_inputs_are_left_alone(name):
    scheduler, output, x = ready(name), 0.5 * X, X.clone()
    for t in scheduler.timesteps[:3]:
        scheduler.scale_model_input(x, t)
        scheduler.step(output, t, x)
    assert torch.equal(output, 0.5 * X) and torch.equal(x, X)


@every_class
def test_step_index_follows(name):
    scheduler = ready(name)
    assert scheduler.step_index is None and scheduler.begin_index is None
    for i, t in enumerate(calls(scheduler)):
        scheduler.step(X, t, X)
        assert scheduler.step_index == i
    scheduler.set_timesteps(8)
    assert scheduler.step_index is None


@every_class
def test_begin_index(name):
    """Image-to-image: a start that is told is the start that is found; `set_timesteps` forgets it."""
    scheduler = ready(name, **({"skip_prk_steps": True} if name == "PNDMScheduler" else {}))
    found = trajectory(scheduler, x=X, timesteps=calls(scheduler)[4:])
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(4)
    assert scheduler.begin_index == 4
    assert same(trajectory(scheduler, x=X, timesteps=calls(scheduler)[4:]), found)
    scheduler.set_timesteps(8)
    assert scheduler.begin_index is None


@every_class
def test_scaling_of_inputs(name):
    """Samples that grow with the noise are scaled to unit variance for the model; others pass as they are."""
    scheduler = ready(name)
    deviation = scheduler.config.get("sigma_data", 1.0)
    for row, t in enumerate(calls(scheduler)):
        scaled = scheduler.scale_model_input(X, t)
        if scheduler.input_is_ve:
            sigma = torch.tensor(scheduler.table(scheduler.num_inference_steps).levels.sigma[row]).float()
            torch.testing.assert_close(scaled, X / (sigma**2 + deviation**2).sqrt())
        else:
            assert scaled is X
        scheduler.step(network(scaled, t, scheduler.config), t, X)
    if scheduler.input_is_ve:
        with pytest.raises(ValueError, match="needs the timestep"):
            scheduler.scale_model_input(X)


@every_class
def test_copies_are_independent(name):
    """A copy made midway, or after pickling, goes on as the original does, and does not disturb it."""
    scheduler = ready(name)
    first = trajectory(scheduler, x=X)
    trajectory(scheduler, x=X, timesteps=scheduler.timesteps[:4])
    twin = copy.deepcopy(scheduler)
    if name in ("DDIMScheduler", "EulerDiscreteScheduler"):  # no noise: goes on from the fourth sample
        assert torch.equal(trajectory(twin, x=first[4], timesteps=twin.timesteps[4:])[-1], first[-1])
        assert torch.equal(trajectory(scheduler, x=first[4], timesteps=scheduler.timesteps[4:])[-1], first[-1])
    fresh = pickle.loads(pickle.dumps(ready(name)))
    assert same(trajectory(fresh, x=X), first) and fresh.config == scheduler.config


@with_betas
def test_length_and_attributes(name):
    """What people read off a scheduler."""
    scheduler = make(name, num_train_timesteps=200)
    assert len(scheduler) == len(scheduler.alphas_cumprod) == 200
    assert scheduler.order in (1, 2) and scheduler.num_inference_steps is None
    assert scheduler.timesteps.tolist() == list(range(199, -1, -1))[:: -1 if PLANS[name].rising else 1]
    scheduler.set_timesteps(10)
    assert scheduler.num_inference_steps == 10
    torch.testing.assert_close(torch.cumprod(scheduler.alphas, 0), scheduler.alphas_cumprod, rtol=1e-4, atol=0)
    assert torch.equal(scheduler.alphas, 1 - scheduler.betas)


@every_class
def test_default_dtype_does_not_matter(name):
    """The library of a user who works in double precision gives the same numbers."""
    expected = trajectory(ready(name), x=X)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.allclose(trajectory(ready(name), x=X)[-1], expected[-1])
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", [name for name in sorted(PLANS) if "beta_end" not in make(name).config])
def test_length_without_betas(name):
    assert len(make(name, num_train_timesteps=200)) == 200 and make(name).num_inference_steps is None
    assert ready(name, 10).num_inference_steps == 10 == -(-len(calls(ready(name, 10))) // make(name).order)


def test_every_class_is_planned():
    """A new scheduler is not tested until it has a plan."""
    from calotype.schedulers import ALL

    assert {cls.__name__ for cls in ALL} == set(PLANS)
