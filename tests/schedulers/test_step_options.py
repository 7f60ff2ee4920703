"""Options of `step` for one step, then plain steps: nothing of the first is left; and copies go their own way."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch

from .cases import make
from .plans import PLANS, every_class

OPTIONS = {"eta": 0.7, "use_clipped_model_output": True, "s_churn": 6.0, "s_noise": 1.05, "order": 2, "variance_noise": 1,
           "prev_timestep": -1}
PAIRS = [(name, option) for name in sorted(PLANS) for option in inspect.signature(type(make(name)).step).parameters
         if option in OPTIONS]


def noise(seed):
    return torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def trajectory(scheduler, special=(), options=None):
    """Six steps, those in `special` with `options`."""
    scheduler.set_timesteps(6)
    return go_on(scheduler, noise(0) * float(scheduler.init_noise_sigma), 0, 6, special, options)


def go_on(scheduler, x, first, last, special=(), options=None):
    takes = inspect.signature(scheduler.step).parameters
    for i, t in list(enumerate(scheduler.timesteps))[first:min(last, len(scheduler._times))]:
        chosen = dict(options or {}) if i in special else {}
        if "variance_noise" in chosen:
            chosen["variance_noise"] = noise(50 + i)
        if "prev_timestep" in chosen:
            chosen["prev_timestep"] = int(scheduler.timesteps[i + 1]) if i < 5 else -1
        drawing = {"generator": torch.Generator().manual_seed(100 + i)} if "generator" in takes else {}
        output = torch.tanh(scheduler.scale_model_input(x, t) * 0.7 + 0.1)
        x = scheduler.step(output, t, x, **drawing, **chosen).prev_sample
    return x


@pytest.mark.parametrize(("name", "option"), PAIRS)
def test_options_for_some_steps(name, option):
    """Whichever these are. Once, UnCLIP's `prev_timestep`, and another `order` of LMS, ended in an `IndexError`."""
    options = {option: OPTIONS[option]} | ({"s_churn": 6.0} if option == "s_noise" and (name, "s_churn") in PAIRS else {})
    used = make(name)
    for special in ((0,), (1,), (0, 2, 4), (0, 1), (3, 4)):
        assert torch.isfinite(trajectory(used, special, options)).all()
        assert torch.equal(trajectory(used), trajectory(make(name)))


def test_a_jump_leaves_no_trace():
    """To the timestep that is next in any case, which is what a plain step does."""
    plain = trajectory(make("UnCLIPScheduler"))
    for special in ((0,), (2, 3), range(6)):
        assert torch.allclose(trajectory(make("UnCLIPScheduler"), special, {"prev_timestep": -1}), plain, atol=1e-6)


def test_another_order_begins_anew():
    """What a step of lower order has forgotten, the next cannot mix."""
    lms = make("LMSDiscreteScheduler")
    lms.set_timesteps(6)
    x = go_on(lms, noise(0) * float(lms.init_noise_sigma), 0, 3, (0, 1, 2), {"order": 2})
    entered = make("LMSDiscreteScheduler")
    entered.set_timesteps(6)
    assert torch.equal(go_on(lms, x, 3, 6), go_on(entered, x, 3, 6))


@every_class
def test_copies_go_their_own_way(name):
    """From before `set_timesteps`, and in the middle. Once, copies shared their tables and what they remembered."""
    if name == "SCMScheduler":
        pytest.skip("its last timestep is no step")
    expected, original = trajectory(make(name)), make(name)
    other = copy.copy(original)
    other.set_timesteps(4)
    x = noise(0) * float(other.init_noise_sigma)
    go_on(other, x, 0, 4)
    assert torch.equal(trajectory(original), expected)
    original.set_timesteps(6)
    half = go_on(original, noise(0) * float(original.init_noise_sigma), 0, 3)
    other = copy.copy(original)  # they go on in turns
    ends = [go_on(each, half, 3, 6) for each in (other, original)]
    assert torch.equal(*ends)


# -- steps that divide by zero --------------------------------------------------------------------------------------------------

ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "DDIMParallelScheduler"])
def test_pure_noise_and_a_prediction_of_noise(name, clip):
    """An error in advance, of tables and steps; and each way out that it names is one."""
    wrong = make(name, **ZERO_SNR, prediction_type="epsilon", clip_sample=clip)
    wrong.set_timesteps(3)
    for call in (lambda: wrong.table(3), lambda: wrong.step(noise(0), 999, noise(1))):
        with pytest.raises(ValueError, match="at timestep 999 a sample is pure noise, of which a prediction_type of 'epsilon'"):
            call()
    assert wrong.table(3, begin=1).undefined_row() is None
    right = [type(wrong).from_config(wrong.config, prediction_type="v_prediction"),
             type(wrong).from_config(wrong.config, rescale_betas_zero_snr=False)]
    for scheduler in right:
        assert scheduler.table(3).undefined_row() is None
        assert torch.isfinite(trajectory(scheduler)).all()


@every_class
def test_what_works_is_defined(name):
    assert make(name).table(5).undefined_row() is None


def test_the_advice_of_too_many_steps_works():
    """Fewer of them, or a smaller offset."""
    ddim = make("DDIMScheduler", steps_offset=1)
    with pytest.raises(ValueError, match="take fewer steps, or a smaller steps_offset"):
        ddim.table(1000)
    assert len(ddim.table(999)) == 999
    assert len(make("DDIMScheduler", steps_offset=0).table(1000)) == 1000
