"""Schedulers whose loop is their own: RePaint, the predictor-corrector of the VE SDE, and the files of all of them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import calotype
import calotype.schedulers as ours
from calotype import registry

X, IMAGE = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
MASKED = (torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.5).float()
ARGUMENTS = {
    "AmusedScheduler": ({"mask_token_id": 8}, {"masking_schedule": "linear"}),
    "RePaintScheduler": ({}, {"eta": 0.5, "beta_end": 0.05, "beta_schedule": "scaled_linear", "clip_sample": False}),
    "ScoreSdeVeScheduler": ({}, {"snr": 0.2, "sigma_max": 50.0, "correct_steps": 2}),
    "VQDiffusionScheduler": ({"num_vec_classes": 9}, {"num_train_timesteps": 50, "gamma_cum_end": 0.9}),
}
every_class = pytest.mark.parametrize("name", sorted(ARGUMENTS))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- files ------------------------------------------------------------------------------------------------------------------


def test_every_class_is_listed():
    assert {cls.__name__ for cls in ours.OWN_STEPS} == set(ARGUMENTS)
    for cls in ours.OWN_STEPS:
        assert registry.find(cls.__name__) is cls is getattr(calotype, cls.__name__)
        assert cls.__name__ not in registry.SCHEDULERS  # what a user may put in another's place
        assert cls not in ours.ALL


@every_class
@pytest.mark.parametrize("told", [False, True], ids=["default", "told"])
def test_files_are_equal_and_read(name, told, oracle, tmp_path):
    """The same arguments make the same file; each library reads the other's."""
    needed, more = ARGUMENTS[name]
    files = []
    for writing, reading in ((oracle, ours), (ours, oracle)):
        folder = tmp_path / writing.__name__
        saved = getattr(writing, name)(**needed, **(more if told else {}))
        saved.save_pretrained(folder)
        files.append(json.loads((folder / "scheduler_config.json").read_text()))
        read = getattr(reading, name).from_pretrained(folder)
        assert {key: read.config[key] for key in needed | more} == {key: saved.config[key] for key in needed | more}
    assert files[0] == files[1]
    again = getattr(ours, name).from_config(json.loads(getattr(ours, name).from_pretrained(folder).to_json_string()))
    assert again.config == getattr(ours, name).from_pretrained(folder).config
    with pytest.raises(TypeError, match="takes no argument 'colour'"):
        getattr(ours, name).from_pretrained(folder, colour="red")


@pytest.mark.parametrize("name", ["AmusedScheduler", "ScoreSdeVeScheduler", "VQDiffusionScheduler"])
def test_nothing_takes_their_place(name):
    assert getattr(ours, name)(**ARGUMENTS[name][0]).compatibles == []


# -- RePaint ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "length", "times"), [
    (10, 3, 3), (10, 2, 2), (10, 10, 10), (20, 10, 10), (7, 3, 2), (250, 10, 10), (1, 1, 1), (5, 5, 2), (9, 4, 3), (6, 1, 4)])
def test_jumps_equal_oracle(steps, length, times, oracle):
    lists = []
    for library in (oracle, ours):
        scheduler = library.RePaintScheduler()
        scheduler.set_timesteps(steps, length, times)
        assert scheduler.num_inference_steps == steps
        lists.append(scheduler.timesteps)
    assert lists[0].dtype == lists[1].dtype and torch.equal(*lists)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("config", [{}, {"clip_sample": False}, {"beta_schedule": "scaled_linear"}, {"num_train_timesteps": 100},
                                    {"beta_schedule": "squaredcos_cap_v2"}], ids=str)
def test_repaint_steps_equal_oracle(config, eta, oracle):
    """Every step of a trajectory with jumps, from the same sample and with the same noise."""
    theirs, mine = (library.RePaintScheduler(eta=eta, **config) for library in (oracle, ours))
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(10, 4, 2)
    x, last = X, math.inf
    for t in mine.timesteps:
        if t < last:
            output = torch.tanh(0.7 * x + float(t) / 1000)
            reference, got = (s.step(output, t, x, IMAGE, MASKED, seeded(int(t))) for s in (theirs, mine))
            allowed = 1e-4 * reference.prev_sample.abs().max()
            assert (got.prev_sample - reference.prev_sample).abs().max() <= allowed
            torch.testing.assert_close(got.pred_original_sample, reference.pred_original_sample, rtol=1e-4, atol=1e-4)
            x = got.prev_sample
        else:
            x = mine.undo_step(x, last, seeded(int(t)))
        last = t


def test_the_known_part_is_the_original():
    """Where nothing is painted the picture comes out as it went in; where all is, DDIM's."""
    scheduler = ours.RePaintScheduler()
    scheduler.set_timesteps(10, 10, 1)
    table = scheduler.table(10)
    x, free, state = X, X, table.new_state()
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(torch.tanh(x), t, x, IMAGE, torch.ones(1)).prev_sample
        output = torch.tanh(free)
        mine = scheduler.step(output, t, free, IMAGE, torch.zeros(1)).prev_sample
        free = table.step(i, output, free, state)
        torch.testing.assert_close(mine, free)
    torch.testing.assert_close(x, IMAGE)


@pytest.mark.parametrize("steps", [10, 250])
def test_undo_goes_back_to_the_level(steps):
    """A step down with the true noise and back up has the variance of its level; the draw is seeded."""
    scheduler = ours.RePaintScheduler(clip_sample=False)
    scheduler.set_timesteps(steps, 5, 2)
    picture, noise = torch.full((1, 1, 300, 300), 0.3), torch.randn(1, 1, 300, 300, generator=seeded())
    for t in scheduler.timesteps[[0, steps // 2, -1]]:
        kept = float(scheduler.alphas_cumprod[t])
        x = kept**0.5 * picture + (1 - kept) ** 0.5 * noise
        lower = scheduler.step(noise, t, x, picture, torch.zeros(1)).prev_sample
        back = scheduler.undo_step(lower, t, seeded(1))
        assert torch.equal(back, scheduler.undo_step(lower, int(t), seeded(1)))
        assert float(back.mean()) == pytest.approx(0.3 * kept**0.5, abs=0.01)
        assert float(back.var()) == pytest.approx(1 - kept, rel=0.03)


def test_eta_may_be_set_as_pipelines_do():
    one, other = ours.RePaintScheduler(eta=1.0), ours.RePaintScheduler()
    other.eta = 1.0
    for scheduler in (one, other):
        scheduler.set_timesteps(10)
    assert torch.equal(*(s.step(X, 500, X, IMAGE, MASKED, seeded()).prev_sample for s in (one, other)))


def test_repaint_takes_the_config_of_its_model():
    """People load it from a DDPM checkpoint."""
    trained = ours.DDPMScheduler(beta_end=0.05, clip_sample=False, prediction_type="sample")
    made = ours.RePaintScheduler.from_config(trained.config)
    assert (made.config.beta_end, made.config.clip_sample) == (0.05, False)
    made.set_timesteps(10)
    assert torch.equal(made.step(IMAGE, 500, X, IMAGE, MASKED).pred_original_sample, IMAGE)


@pytest.mark.parametrize(
    ("name", "value"), [("jump_length", 0), ("jump_length", 2.5), ("jump_n_sample", 0), ("jump_n_sample", True)])
def test_wrong_jumps(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, but must be a whole number of at least 1"):
        ours.RePaintScheduler().set_timesteps(10, **{name: value})


# -- the VE SDE -------------------------------------------------------------------------------------------------------------


def score(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Of a Gaussian of deviation 0.5, and something that is not linear."""
    return -x / (0.25 + sigma**2) + 0.1 * torch.tanh(x / (1 + sigma)) / (1 + sigma)


def follow(scheduler, x: torch.Tensor, generator) -> list[torch.Tensor]:
    seen = [scheduler.timesteps, scheduler.sigmas, scheduler.discrete_sigmas]
    for i, t in enumerate(scheduler.timesteps):
        for _ in range(scheduler.config.correct_steps):
            x = scheduler.step_correct(score(x, scheduler.sigmas[i]), x, generator).prev_sample
            seen.append(x)
        x, mean = scheduler.step_pred(score(x, scheduler.sigmas[i]), t, x, generator, return_dict=False)
        seen += [x, mean]
    return seen


@pytest.mark.parametrize(("config", "steps", "ends"), [
    ({}, 2, ()), ({}, 10, ()), ({}, 200, ()), ({"sampling_eps": 0.1}, 30, ()), ({"correct_steps": 3, "snr": 0.3}, 10, ()),
    ({"sigma_min": 0.1, "sigma_max": 50.0, "sampling_eps": 1e-3}, 25, ()), ({}, 12, (0.1, 80.0))], ids=str)
def test_sde_equals_oracle(config, steps, ends, oracle):
    """Corrected and predicted samples and their means, and all levels."""
    results = []
    for library in (oracle, ours):
        scheduler = library.ScoreSdeVeScheduler(**config)
        scheduler.set_timesteps(steps)
        scheduler.set_sigmas(steps, *ends)
        results.append(follow(scheduler, X * scheduler.init_noise_sigma, seeded()))
    for reference, mine in zip(*results, strict=True):
        assert mine.dtype == reference.dtype
        assert (mine - reference).abs().max() <= 1e-4 * reference.abs().max()


def test_sde_samples_a_gaussian():
    """With the exact score, what comes out has the deviation of the data."""
    scheduler = ours.ScoreSdeVeScheduler(sigma_max=20.0)
    scheduler.set_timesteps(300)
    x = 20 * torch.randn(1, 1, 150, 150, generator=seeded())
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=True):
        x = scheduler.step_correct(-x / (0.25 + sigma**2), x, seeded(int(1e6 * t))).prev_sample
        x = scheduler.step_pred(-x / (0.25 + sigma**2), t, x, seeded(int(1e6 * t) + 1)).prev_sample
    assert float(x.std()) == pytest.approx(0.5, rel=0.05) and abs(float(x.mean())) < 0.02


def test_each_time_is_its_own_level():
    """For as many steps as training had too, where times are rounded to single precision."""
    for steps in (7, 100, 2000):
        scheduler = ours.ScoreSdeVeScheduler()
        scheduler.set_timesteps(steps)
        falls = scheduler.step_pred(torch.ones(steps), scheduler.timesteps, torch.zeros(steps)).prev_sample_mean
        levels = np.geomspace(1348, 0.01, steps)
        assert np.allclose(falls, levels**2 - np.append(levels[1:], 0.0) ** 2, rtol=1e-5)


def test_samples_at_their_own_times():
    scheduler = ours.ScoreSdeVeScheduler()
    scheduler.set_timesteps(10)
    times = scheduler.timesteps[[2, 7]]
    together = scheduler.step_pred(X, times, X).prev_sample_mean
    for i in range(2):
        torch.testing.assert_close(together[i], scheduler.step_pred(X[i], times[i], X[i]).prev_sample_mean)


def test_sde_noising_equals_oracle(oracle):
    at = torch.tensor([3, 1999])
    reference, mine = (library.ScoreSdeVeScheduler().add_noise(IMAGE, X, at) for library in (oracle, ours))
    torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-5)
    assert ours.ScoreSdeVeScheduler().scale_model_input(X, 0.5) is X and len(ours.ScoreSdeVeScheduler()) == 2000


def test_wrong_calls_of_the_sde():
    for steps in (0, True, 2.0, None):
        for call in (ours.ScoreSdeVeScheduler().set_timesteps, ours.ScoreSdeVeScheduler().set_sigmas):
            with pytest.raises(ValueError, match="num_inference_steps is .* whole number of at least 1"):
                call(steps)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        ours.ScoreSdeVeScheduler(sigma_min=5.0, sigma_max=1.0)
