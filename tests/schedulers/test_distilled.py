"""Solvers of distilled models: where LCM and TCD enter, end, and part from the oracle."""

from __future__ import annotations

import itertools

import pytest
import torch

import calotype.schedulers as ours

from .cases import Case, make, trajectory

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
BOTH = ("LCMScheduler", "TCDScheduler")


@pytest.mark.parametrize(("name", "original", "strength", "steps"), itertools.product(
    BOTH, (None, 25, 50, 100), (0.3, 0.75, 1.0), (1, 4, 7)), ids=str)
def test_timesteps_equal_oracle(name, original, strength, steps, oracle):
    theirs, mine = (getattr(library, name)() for library in (oracle, ours))
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(steps, original_inference_steps=original, strength=strength)
    assert mine.timesteps.tolist() == theirs.timesteps.tolist()
    assert mine.num_inference_steps == theirs.num_inference_steps == steps


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize(("arguments", "said"), [
    ({"num_inference_steps": 51}, "from 1 to 50"), ({"num_inference_steps": 16, "strength": 0.3}, "from 1 to 15"),
    ({"num_inference_steps": 0, "original_inference_steps": 20}, "is 0"),
    ({"num_inference_steps": 4, "strength": 0.0}, "strength is"),
    ({"num_inference_steps": 21, "original_inference_steps": 20}, "21.* 20"),
    ({"num_inference_steps": 3, "timesteps": [9]}, "not both"),
], ids=str)
def test_bad_calls(name, arguments, said):
    with pytest.raises(ValueError, match=said):
        make(name).set_timesteps(**arguments)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_denoised_is_the_consistency_function(kind, oracle):
    """Also as the second of a tuple. At timestep 0 it is the sample itself."""
    results = []
    for library in (oracle, ours):
        scheduler = library.LCMScheduler(prediction_type=kind, timestep_scaling=0.01)
        scheduler.set_timesteps(timesteps=[999, 40, 0])
        outputs = [scheduler.step(0.3 * X, t, X, generator=torch.Generator().manual_seed(1)) for t in scheduler.timesteps]
        assert torch.equal(outputs[-1].denoised, X)
        scheduler.set_timesteps(4)
        assert len(scheduler.step(X, scheduler.timesteps[0], X, return_dict=False)) == 2
        results.append([output.denoised for output in outputs])
    for reference, mine in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BOTH)
def test_the_last_step_adds_no_noise(name, oracle):
    """However the trajectory was shortened. The peer's LCM counts the timesteps that it dropped, and noises the picture."""
    finals = []
    for library in (oracle, ours):
        scheduler = getattr(library, name)()
        scheduler.set_timesteps(timesteps=[999, 759, 499, 259], strength=0.5)
        assert scheduler.timesteps.tolist() == [499, 259]
        seeds = [trajectory(scheduler, x=X, generator=torch.Generator().manual_seed(0), timesteps=scheduler.timesteps[:1])[-1]]
        for seed in (1, 2):
            seeds.append(scheduler.step(0.3 * X, 259, seeds[0], generator=torch.Generator().manual_seed(seed)).prev_sample)
            scheduler.set_timesteps(timesteps=[999, 759, 499, 259], strength=0.5)
            trajectory(scheduler, x=X, generator=torch.Generator().manual_seed(0), timesteps=scheduler.timesteps[:1])
        finals.append(torch.equal(seeds[1], seeds[2]))
    assert finals == [name == "TCDScheduler", True]


def test_tcd_clips(oracle):
    """The peer's takes `clip_sample` and `thresholding`, and does neither."""
    for config in ({"clip_sample": True}, {"thresholding": True}):
        plain, clipped = ([Case("TCDScheduler", c).run(library)[1][-1] for library in (oracle, ours)] for c in ({}, config))
        assert torch.equal(plain[0], clipped[0]) and not torch.allclose(plain[1], clipped[1])
    scheduler = make("TCDScheduler", clip_sample=True)
    scheduler.set_timesteps(4)
    assert scheduler.step(9 * X, 999, X).pred_original_sample.abs().max() == 1


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_is_a_share(eta):
    with pytest.raises(ValueError, match="eta is"):
        make("TCDScheduler").table(4, eta=eta)
