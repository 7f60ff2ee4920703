"""Samplers of timesteps: their distributions, their seeds, and wrong calls."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calotype.training.timesteps import SAMPLERS, timestep_sampler

OPTIONS = {"range": {"begin": 0.2, "end": 0.4, "multiplier": 3.0}, "earlier": {"multiplier": 2.0}, "later": {"multiplier": 2.0},
           "bounded": {"low": 0.25, "high": 0.75}}
EVEN = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sampler(name, **options):
    return timestep_sampler(name, **OPTIONS.get(name, {}), **options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_are_of_the_generator(name):
    before = torch.get_rng_state()
    one, same, other = (sampler(name)(50, seeded(seed), "cpu") for seed in (0, 0, 1))
    assert one.shape == (50,) and one.dtype is torch.float64
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.min() >= 0 and (name == "log_normal" or one.max() < 1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_stratified_batch_has_one_draw_in_each_part(name):
    """Of the distribution's n equally likely parts; and single draws still have the distribution."""
    parts = torch.linspace(0, 1, 17, dtype=torch.float64)
    edges = sampler(name).quantile(parts).sort().values
    edges[0], edges[-1] = -1, math.inf
    for seed in range(5):
        drawn = sampler(name, stratified=True)(16, seeded(seed), "cpu")
        assert torch.histc(torch.bucketize(drawn, edges).double(), 16, 1, 16).tolist() == [1] * 16
    generator = seeded()
    first = torch.cat([sampler(name, stratified=True)(3, generator, "cpu")[:1] for _ in range(2000)])
    median = sampler(name).quantile(torch.tensor([0.5], dtype=torch.float64))
    assert 0.46 < float((first < median).double().mean()) < 0.54


def test_means_of_stratified_batches_vary_less():
    spread = [torch.stack([sampler("uniform", stratified=kind)(64, generator, "cpu").mean() for _ in range(100)]).std()
              for kind, generator in ((False, seeded()), (True, seeded()))]
    assert spread[1] < spread[0] / 5


def density(name, edges, **options):
    """The share of draws between `edges`, by the quantile function."""
    return np.histogram(timestep_sampler(name, **options).quantile(EVEN).numpy(), edges)[0] / len(EVEN)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 1.5)])
def test_logit_normal_has_its_density(mean, std):
    """Esser et al. 2024, equation 19."""
    edges = np.linspace(0.01, 0.99, 99)
    u = (edges[1:] + edges[:-1]) / 2
    expected = np.exp(-((np.log(u / (1 - u)) - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi) * u * (1 - u))
    np.testing.assert_allclose(density("logit_normal", edges, mean=mean, std=std), expected * 0.98 / 98, atol=2e-4)
    drawn = torch.logit(timestep_sampler("logit_normal", mean=mean, std=std)(20_000, seeded(), "cpu"))
    assert abs(float(drawn.mean()) - mean) < 0.04 and abs(float(drawn.std()) - std) < 0.04


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.29, 1.75])
def test_mode_equals_oracle(scale, diffusers):
    from diffusers.training_utils import compute_density_for_timestep_sampling

    reference = compute_density_for_timestep_sampling("mode", 1000, mode_scale=scale, generator=seeded())
    mine = timestep_sampler("mode", scale=scale).quantile(torch.rand(1000, generator=seeded()).double())
    torch.testing.assert_close(mine.float(), reference, rtol=1e-5, atol=1e-6)


def test_logit_normal_is_distributed_as_the_oracle_s(diffusers):
    from diffusers.training_utils import compute_density_for_timestep_sampling

    reference = compute_density_for_timestep_sampling("logit_normal", 50_000, logit_mean=0.3, logit_std=0.8, generator=seeded())
    at = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    mine = timestep_sampler("logit_normal", mean=0.3, std=0.8).quantile(at)
    torch.testing.assert_close(torch.quantile(reference.double(), at), mine, rtol=0, atol=0.01)


def test_a_shift_is_another_mean_of_the_logit():
    """So that a shifted logit-normal needs no sampler of its own."""
    moved = timestep_sampler("logit_normal").quantile(EVEN)
    moved = 3 * moved / (1 + 2 * moved)
    torch.testing.assert_close(timestep_sampler("logit_normal", mean=math.log(3)).quantile(EVEN), moved)
    odds = timestep_sampler("shifted", shift=3.0).quantile(EVEN)
    torch.testing.assert_close(odds / (1 - odds), 3 * EVEN / (1 - EVEN))


@pytest.mark.parametrize(("name", "options", "inside"), [
    ("range", {"begin": 0.2, "end": 0.4, "multiplier": 3.0}, (0.2, 0.4)), ("earlier", {"multiplier": 2.0}, (0.0, 0.25)),
    ("later", {"multiplier": 4.0, "portion": 0.5}, (0.5, 1.0)),
    ("range", {"begin": 0.0, "end": 0.5, "multiplier": 0.1}, (0.0, 0.5))])
def test_a_bias_makes_a_range_more_frequent(name, options, inside):
    edges = np.linspace(0, 1, 21)
    shares = density(name, edges, **options)
    middle = (edges[1:] + edges[:-1]) / 2
    weights = np.where((middle > inside[0]) & (middle < inside[1]), options["multiplier"], 1.0)
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=1e-4)


def test_bounds_are_kept():
    drawn = timestep_sampler("bounded", low=0.29, high=0.57)(20_000, seeded(), "cpu")
    assert 0.29 <= drawn.min() < 0.2901 and 0.5699 < drawn.max() < 0.57
    assert set((drawn * 100).long().tolist()) == set(range(29, 57))


def test_log_normal_is_of_karras():
    drawn = timestep_sampler("log_normal")(20_000, seeded(), "cpu").log()
    assert abs(float(drawn.mean()) + 1.2) < 0.04 and abs(float(drawn.std()) - 1.2) < 0.04


@pytest.mark.parametrize("name", ["logit_normal", "log_normal"])
def test_a_draw_of_exactly_zero_is_finite(name):
    assert timestep_sampler(name).quantile(torch.zeros(1, dtype=torch.float64)).log().isfinite().all()


@pytest.mark.parametrize(("name", "options", "error", "words"), [
    ("logit_norm", {}, ValueError, r"timestep_sampler is 'logit_norm', but must be .*; did you mean 'logit_normal'"),
    ("logit_normal", {"men": 0}, TypeError, r"takes no argument 'men'; did you mean 'mean'"),
    ("logit_normal", {"std": 0.0}, ValueError, "std is 0.0, but must be more than 0"),
    ("log_normal", {"std": -1.0}, ValueError, "std is -1.0"),
    ("mode", {"scale": 2.0}, ValueError, r"scale is 2.0, but must be from -1 to 1.752"),
    ("shifted", {"shift": -3.0}, ValueError, "shift is -3.0"),
    ("bounded", {"low": 200, "high": 400}, ValueError, "low is 200 and high is 400, .* divided by num_train_timesteps"),
    ("range", {"begin": 0.5, "end": 0.5, "multiplier": 2.0}, ValueError, "begin is 0.5 and end is 0.5"),
    ("range", {"begin": 0.0, "end": 0.5, "multiplier": 0.0}, ValueError, "multiplier is 0.0"),
    ("range", {"begin": 0.0}, TypeError, "needs end and multiplier"),
    ("later", {"multiplier": 2.0, "portion": 1.5}, ValueError, "begin is -0.5")])
def test_wrong_calls(name, options, error, words):
    with pytest.raises(error, match=words):
        timestep_sampler(name, **options)
