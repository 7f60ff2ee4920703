"""The loss at fixed noise: whatever the model says, however it is batched."""

from __future__ import annotations

import pytest
import torch

import calotype
from calotype.evaluation import held_out_loss
from calotype.evaluation.judging import pipeline_loss

CLEAN = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def denoise(x0, alpha, sigma, noise):
    """A clean sample that is wrong by something that depends on the sample alone."""
    x = alpha * x0 + sigma * noise
    return 0.8 * x0 + 0.1 * torch.sin(3 * x / torch.hypot(alpha, sigma))


def saying(kind):
    """The same denoiser, in the words of a prediction type: it knows the clean samples, and reads the noise off the sample."""
    scheduler = calotype.DDIMScheduler(prediction_type=kind)

    def predict(sample, timesteps, indices):
        kept = scheduler.alphas_cumprod[timesteps].double()[:, None, None, None]
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        x, x0 = sample.double(), CLEAN[indices].double()
        meant = denoise(x0, alpha, sigma, (x - alpha * x0) / sigma)
        noise = (x - alpha * meant) / sigma
        said = {"epsilon": noise, "sample": meant, "v_prediction": alpha * noise - sigma * meant,
                "flow_prediction": noise - meant}
        return said[kind].float()

    return predict, scheduler


def test_it_does_not_depend_on_what_is_predicted():
    losses = [held_out_loss(*saying(kind), CLEAN) for kind in ("epsilon", "sample", "v_prediction", "flow_prediction")]
    for loss in losses[1:]:
        assert loss.epsilon == pytest.approx(losses[0].epsilon, rel=1e-3)
        assert loss.clean == pytest.approx(losses[0].clean, rel=1e-3)
        assert loss.error == pytest.approx(losses[0].error, rel=1e-2)


def test_its_two_forms_are_in_the_ratio_of_signal_to_noise():
    loss = held_out_loss(*saying("v_prediction"), CLEAN, bands=7)
    assert len(loss.bands) == 7
    for band in loss.bands:
        assert band.epsilon == pytest.approx(band.clean * torch.tensor(band.log_snr).exp().item(), rel=1e-3)
    assert [band.timestep for band in loss.bands] == sorted(band.timestep for band in loss.bands)
    assert loss.epsilon == pytest.approx(sum(band.epsilon for band in loss.bands) / 7, rel=1e-9)


def test_it_does_not_depend_on_the_kind_of_samples():
    """Variance-exploding samples, scaled as the model wants them, are the same samples."""
    predict, _ = saying("epsilon")
    preserving = held_out_loss(predict, calotype.DDIMScheduler(), CLEAN)
    exploding = held_out_loss(lambda x, t, i: predict(x, t.long(), i), calotype.EulerDiscreteScheduler(), CLEAN)
    assert exploding.epsilon == pytest.approx(preserving.epsilon, rel=1e-3)
    assert exploding.clean == pytest.approx(preserving.clean, rel=1e-3)
    pndm = calotype.PNDMScheduler(skip_prk_steps=True)
    pndm.set_timesteps(4)
    assert held_out_loss(predict, pndm, CLEAN) == preserving


@pytest.mark.parametrize(("scheduler", "kind"), [
    (calotype.FlowMatchEulerDiscreteScheduler(shift=3.0), "flow"), (calotype.EDMEulerScheduler(), "edm")])
def test_a_perfect_model_of_other_processes_has_none(scheduler, kind):
    def predict(sample, timesteps, indices):
        x0 = CLEAN[indices].double()
        if kind == "flow":
            sigma = (timesteps.double() / 1000)[:, None, None, None]
            return (((sample.double() - (1 - sigma) * x0) / sigma) - x0).float()
        sigma = (4 * timesteps.double()).exp()[:, None, None, None]
        x = sample.double() * (sigma**2 + 0.25) ** 0.5
        return ((x0 - 0.25 / (sigma**2 + 0.25) * x) / (sigma * 0.5) * (sigma**2 + 0.25) ** 0.5).float()

    loss = held_out_loss(predict, scheduler, CLEAN, bands=5)
    assert loss.clean < 1e-6
    nothing = held_out_loss(lambda x, t, i: torch.zeros_like(x), scheduler, CLEAN, bands=5)
    assert nothing.clean > 0.1


def test_batches_and_seeds():
    predict, scheduler = saying("epsilon")
    whole = held_out_loss(predict, scheduler, CLEAN, batch=16)
    for batch in (1, 4):
        assert held_out_loss(predict, scheduler, CLEAN, batch=batch) == whole
    other = held_out_loss(predict, scheduler, CLEAN, seeds=(1,))
    both = held_out_loss(predict, scheduler, CLEAN, seeds=(0, 1))
    assert other.epsilon != whole.epsilon
    assert both.epsilon == pytest.approx((whole.epsilon + other.epsilon) / 2, rel=1e-9)
    fewer = held_out_loss(predict, scheduler, CLEAN[:3])
    assert fewer.count == 3


def test_a_model_that_learned_variances():
    predict, scheduler = saying("epsilon")
    learned = held_out_loss(lambda x, t, i: torch.cat([predict(x, t, i), torch.ones_like(x)], 1), scheduler, CLEAN)
    assert learned == held_out_loss(predict, scheduler, CLEAN)


def test_of_a_pipeline():
    pipeline = calotype.DiffusionPipeline.from_pretrained("calotype/emoji")
    clean = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    texts = ["a red apple", "", "a ghost"]
    loss = pipeline_loss(pipeline, clean, texts, bands=2, batch=2)
    again = pipeline_loss(pipeline, clean, texts, bands=2, batch=3)
    assert loss.epsilon == pytest.approx(again.epsilon, rel=1e-4)
    assert loss.epsilon != pytest.approx(pipeline_loss(pipeline, clean, texts[::-1], bands=2).epsilon, rel=1e-5)


@pytest.mark.parametrize(("change", "error", "said"), [
    ({"scheduler": calotype.ScoreSdeVeScheduler()}, TypeError, "a ScoreSdeVeScheduler has none"),
    ({"clean": CLEAN[:0]}, ValueError, "0 samples"), ({"seeds": ()}, ValueError, "0 seeds"),
    ({"bands": 1001}, ValueError, "no more bands than timesteps (1000)"), ({"batch": 0}, ValueError, "batches of 0"),
    ({"predict": lambda x, t, i: x * torch.nan}, ValueError, "the loss is not finite")])
def test_what_is_wrong(change, error, said):
    predict, scheduler = saying("epsilon")
    with pytest.raises(error) as raised:
        held_out_loss(**{"predict": predict, "scheduler": scheduler, "clean": CLEAN, **change})
    assert said in str(raised.value)
