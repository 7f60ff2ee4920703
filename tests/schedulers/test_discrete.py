"""Samplers of tokens: VQ-Diffusion's transitions and MaskGIT's masking, against the oracle and against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

import calotype.schedulers as ours

MASK = 8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vq(num_vec_classes: int = 5, **config):
    return ours.VQDiffusionScheduler(num_vec_classes, **config)


def amused(steps: int = 10, temperature=(2, 0), **config):
    scheduler = ours.AmusedScheduler(MASK, **config)
    scheduler.set_timesteps(steps, temperature)
    return scheduler


def log_chances(classes: int, tokens: torch.Tensor, seed: int) -> torch.Tensor:
    """[B, K, N] what a model that looks at the tokens says."""
    leaning = torch.nn.functional.one_hot(tokens, classes).transpose(1, 2)[:, :-1]
    drawn = torch.randn(len(tokens), classes - 1, tokens.shape[1], generator=seeded(seed))
    return torch.log_softmax(2 * drawn + leaning, 1)


# -- VQ-Diffusion -----------------------------------------------------------------------------------------------------------

CHANCES = {"alpha_cum_start": 0.99, "alpha_cum_end": 0.1, "gamma_cum_start": 0.001, "gamma_cum_end": 0.8}


def transitions(scheduler, t: int, start: int = -1) -> torch.Tensor:
    """[K + 1, K + 1] how likely each token (column) becomes each (row) from timestep `start` to `t`, by the definition."""
    config, tokens = scheduler.config, scheduler.mask_class

    def so_far(time: int) -> tuple[float, float]:
        share = time / (config.num_train_timesteps - 1)
        return (1.0, 0.0) if time < 0 else (
            config.alpha_cum_start + share * (config.alpha_cum_end - config.alpha_cum_start),
            config.gamma_cum_start + share * (config.gamma_cum_end - config.gamma_cum_start))

    (kept, masked), (kept_before, masked_before) = so_far(t), so_far(start)
    keep, mask = kept / kept_before, 1 - (1 - masked) / (1 - masked_before)
    matrix = torch.full((tokens + 1, tokens + 1), (1 - keep - mask) / tokens, dtype=torch.float64)
    matrix[:-1, :-1] += keep * torch.eye(tokens)
    matrix[-1], matrix[:, -1], matrix[-1, -1] = mask, 0.0, 1.0
    return matrix


@pytest.mark.parametrize("config", [{}, CHANCES], ids=["default", "mild"])
@pytest.mark.parametrize("t", [0, 1, 10, 60, 99])
def test_posterior_is_bayes(config, t):
    """Over a tiny vocabulary, by summing over all clean and all earlier tokens; and the transitions compose."""
    scheduler = vq(**config)
    before, through = transitions(scheduler, t - 1), transitions(scheduler, t, t - 1)
    assert torch.allclose(through @ before, transitions(scheduler, t), atol=1e-12)
    assert torch.allclose(through.sum(0), torch.ones(5, dtype=torch.float64))
    tokens = torch.tensor([[0, 3, 4, 2, 4]])
    said = log_chances(5, tokens, t)
    got = scheduler.q_posterior(said, tokens, t).double().exp()
    for n, token in enumerate(tokens[0].tolist()):
        joint = through[token][:, None] * before  # [x_before, x_0]
        bayes = (joint / joint.sum(0, keepdim=True))[:, :-1] @ said[0, :, n].double().exp()
        torch.testing.assert_close(got[0, :, n], bayes, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(got.sum(1), torch.ones(1, 5, dtype=torch.float64), rtol=0, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize(("steps", "config"), [(1, {}), (7, {}), (100, {}), (40, CHANCES | {"num_train_timesteps": 40})], ids=str)
def test_vq_diffusion_equals_oracle(classes, steps, config, oracle):
    """Posteriors and, seed for seed, all tokens."""
    results = []
    for library in (oracle, ours):
        scheduler = library.VQDiffusionScheduler(classes, **config)
        scheduler.set_timesteps(steps)
        tokens, generator, seen = torch.full((2, 12), classes - 1), seeded(), [scheduler.timesteps]
        for t in scheduler.timesteps:
            said = log_chances(classes, tokens, int(t))
            seen.append(scheduler.q_posterior(said, tokens, t).exp())
            tokens = scheduler.step(said, t, tokens, generator).prev_sample
            seen.append(tokens)
        results.append(seen)
    for reference, mine in zip(*results, strict=True):
        assert mine.dtype == reference.dtype
        torch.testing.assert_close(mine, reference, rtol=0, atol=5e-6)
    assert (tokens < classes - 1).all()


def test_a_perfect_model_draws_the_data():
    """Tokens of which the model knows how frequent they are, and that were replaced or masked, come out as frequent."""
    scheduler, frequent = vq(4, **CHANCES, num_train_timesteps=20), torch.tensor([0.6, 0.3, 0.1])
    scheduler.set_timesteps(20)
    tokens, generator = torch.full((1, 20000), 3), seeded()
    reached = transitions(scheduler, 19)[:, :-1] @ frequent.double()
    tokens = torch.multinomial(reached, 20000, replacement=True, generator=generator)[None]
    for t in scheduler.timesteps:
        joint = transitions(scheduler, int(t))[:, :-1] * frequent.double()  # [x_t, x_0]
        said = (joint / joint.sum(1, keepdim=True))[tokens[0]].log().T[None].float()
        tokens = scheduler.step(said, t, tokens, generator).prev_sample
    got = torch.bincount(tokens[0], minlength=3) / 20000
    torch.testing.assert_close(got, frequent, rtol=0, atol=0.015)


def test_posterior_of_samples_at_their_own_timesteps():
    scheduler, tokens = vq(), torch.tensor([[0, 4, 2], [4, 4, 1]])
    said = log_chances(5, tokens, 0)
    together = scheduler.q_posterior(said, tokens, torch.tensor([3, 70]))
    for i, t in enumerate((3, 70)):
        torch.testing.assert_close(together[i : i + 1], scheduler.q_posterior(said[i : i + 1], tokens[i : i + 1], t))


def test_posterior_is_one_graph():
    """Nothing is read back: a traced posterior is right for other timesteps and tokens."""
    scheduler, tokens = vq(), torch.tensor([[0, 4, 2, 3]])
    traced = torch.compile(scheduler.q_posterior, fullgraph=True, backend="eager")
    for t in (7, 80):
        said = log_chances(5, tokens, t)
        torch.testing.assert_close(traced(said, tokens, torch.tensor(t)), scheduler.q_posterior(said, tokens, t))


def test_tokens_that_a_model_rules_out():
    """A pipeline truncates: logarithms of minus infinity give tokens that are never drawn, and no NaN."""
    scheduler, tokens = vq(), torch.full((1, 2000), 4)
    scheduler.set_timesteps(100)
    said = torch.tensor([-math.inf, 0.0, -math.inf, -math.inf]).log_softmax(0).view(1, 4, 1).expand(1, 4, 2000)
    for t in (99, 50, 0):
        assert not scheduler.q_posterior(said, tokens, t).isnan().any()
        drawn = scheduler.step(said, t, tokens, seeded()).prev_sample
        assert set(drawn.unique().tolist()) <= {1, 4}


# -- MaskGIT ----------------------------------------------------------------------------------------------------------------


def logits(sample: torch.Tensor, seed: int, classes: int = MASK) -> torch.Tensor:
    shape = (len(sample), classes, *sample.shape[1:]) if sample.ndim == 3 else (*sample.shape, classes)
    return torch.randn(shape, generator=seeded(seed))


@pytest.mark.parametrize("masking_schedule", ["cosine", "linear"])
@pytest.mark.parametrize("temperature", [(2, 0), 1.3, [4, 1]], ids=str)
@pytest.mark.parametrize(("shape", "steps"), [((2, 4, 4), 12), ((2, 16), 1), ((2, 16), 7), ((1, 500), 10), ((1, 500), 20)])
def test_amused_equals_oracle(masking_schedule, temperature, shape, steps, oracle):
    """Seed for seed all tokens, whether they begin masked entirely or in part."""
    results = []
    for library in (oracle, ours):
        scheduler = library.AmusedScheduler(MASK, masking_schedule)
        scheduler.set_timesteps(steps, temperature)
        seen = [scheduler.timesteps, scheduler.temperatures]
        for share in (1.0, 0.5):
            sample, generator = torch.full(shape, MASK), seeded()
            if share < 1:
                sample = sample.where(torch.rand(shape, generator=generator) < share, 0)
            for t in scheduler.timesteps:
                output = scheduler.step(logits(sample, int(t)), t, sample, share, generator)
                sample = output.prev_sample
                seen += [sample, output.pred_original_sample, scheduler.add_noise(torch.zeros(2, 99).long(), t, seeded())]
        results.append(seen)
    for reference, mine in zip(*results, strict=True):
        assert mine.dtype == reference.dtype and torch.equal(mine, reference)


@pytest.mark.parametrize("masking_schedule", ["cosine", "linear"])
def test_masks_fall_and_what_is_kept_stays(masking_schedule):
    """After step i of n, cos(pi/2 · i/n) of the tokens are masked, or 1 - i/n; a token that is kept never changes."""
    scheduler, sample, generator = amused(12, masking_schedule=masking_schedule), torch.full((2, 20, 20), MASK), seeded()
    for i, t in enumerate(scheduler.timesteps, 1):
        following, said = scheduler.step(logits(sample, i), t, sample, generator=generator)
        share = math.cos(math.pi / 2 * i / 12) if masking_schedule == "cosine" else 1 - i / 12
        assert ((following == MASK).flatten(1).sum(1) - 400 * share).abs().max() <= 1
        assert torch.equal(following[sample != MASK], sample[sample != MASK])
        assert (said != MASK).all() and torch.equal(following[following != MASK], said[following != MASK])
        sample = following
    assert (sample != MASK).all()


def test_without_temperature_the_surest_are_kept():
    scheduler, sample = amused(2, (0, 0)), torch.full((1, 100), MASK)
    output = logits(sample, 3)
    following, said = scheduler.step(output, 1, sample, generator=seeded())
    sure = output.softmax(-1).gather(2, said[..., None])[..., 0]
    assert sure[following == MASK].max() < sure[following != MASK].min()


def test_one_token_at_least_is_drawn_in_each_step():
    """However few there are: of three tokens and ten steps, one stays masked until the last."""
    scheduler, sample = amused(10), torch.full((1, 3), MASK)
    counts = []
    for t in scheduler.timesteps:
        sample = scheduler.step(logits(sample, 1), t, sample, generator=seeded()).prev_sample
        counts.append(int((sample == MASK).sum()))
    assert counts[0] == 2 and counts[-2:] == [1, 0]


# -- both -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [vq, amused])
def test_a_seed_repeats_and_matters(make):
    """And nothing on the scheduler or its inputs changes: one may be shared."""
    scheduler = make()
    scheduler.set_timesteps(10)
    sample = torch.full((1, 50), 4 if make is vq else MASK)
    output = log_chances(5, sample, 0) if make is vq else logits(sample, 0)
    before = sample.clone(), output.clone(), {key: str(value) for key, value in vars(scheduler).items()}
    one, same, other = (scheduler.step(output, 5, sample, generator=seeded(seed)).prev_sample for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    plain = scheduler.step(output, 5, sample, generator=seeded(1), return_dict=False)
    assert isinstance(plain, tuple) and torch.equal(plain[0], one)
    assert torch.equal(sample, before[0]) and torch.equal(output, before[1])
    assert {key: str(value) for key, value in vars(scheduler).items()} == before[2]


@pytest.mark.parametrize("steps", [0, -1, True, 10.0, "10", None], ids=repr)
def test_wrong_numbers_of_steps(steps):
    for scheduler in (vq(), amused()):
        with pytest.raises(ValueError, match="num_inference_steps is .* whole number"):
            scheduler.set_timesteps(steps)


def test_wrong_calls():
    """What was given, and what is allowed."""
    tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="from 1 to 100"):
        vq().set_timesteps(101)
    with pytest.raises(ValueError, match="num_vec_classes is 1"):
        vq(1)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        amused(masking_schedule="cosin")
    with pytest.raises(ValueError, match=r"temperature is \(1, 2, 3\)"):
        amused(temperature=(1, 2, 3))
    with pytest.raises(ValueError, match="AmusedScheduler.set_timesteps"):
        ours.AmusedScheduler(MASK).step(logits(tokens, 0), 1, tokens)
    for call in (lambda: amused().step(logits(tokens, 0), 10, tokens), lambda: amused().add_noise(tokens, 10),
                 lambda: vq(num_train_timesteps=10).step(log_chances(5, tokens, 0), 10, tokens)):
        with pytest.raises(ValueError, match="timestep 10 is not one of the scheduler's: 9, 8"):
            call()
    with pytest.raises(TypeError, match="mask_token_id"):
        ours.AmusedScheduler()
