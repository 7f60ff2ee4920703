"""A wrong call gets an error that says what was given and what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from .cases import make
from .plans import PLANS, every_class

X = torch.zeros(1, 3, 4, 4)
CHOICES = [
    ("prediction_type", "epsilom", "'epsilon'"), ("prediction_type", "v", "'v_prediction'"),
    ("timestep_spacing", "Linspace", "'linspace'"), ("beta_schedule", "scaled-linear", "'scaled_linear'"),
    ("variance_type", "fixed-small", "'fixed_small'"), ("interpolation_type", "log-linear", "'log_linear'"),
    ("timestep_type", "continous", "'continuous'"), ("final_sigmas_type", "sigma_mim", "'sigma_min'"),
]


def message(call) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "option", "given", "allowed"),
    [(name, *choice) for name in sorted(PLANS) for choice in CHOICES if choice[0] in make(name).config
     and (choice[0] != "prediction_type" or "epsilon" in make(name).prediction_types)])
def test_unknown_choices(name, option, given, allowed):
    said = message(lambda: make(name, **{option: given}).table(5))
    assert option in said and repr(given) in said and allowed in said
    assert given == "v" or f"did you mean {allowed}?" in said


@every_class
@pytest.mark.parametrize("steps", [0, -1, 1001, True, 10.0, "10", None, np.float32(3)], ids=repr)
def test_number_of_steps(name, steps):
    """A whole number from 1 to the length of training, if that is one of levels. Once, `True` was taken for 1."""
    scheduler, trained_anywhere = make(name), name.startswith(("EDM", "Cosine", "FlowMatch", "IPNDM"))
    for call in (make(name).set_timesteps, make(name).table):
        if trained_anywhere and steps == 1001:
            call(steps)
            continue
        said = message(lambda: call(steps))  # noqa: B023
        allowed = "of at least 1" if trained_anywhere else f"from 1 to {len(scheduler)}"
        assert repr(steps) in said and allowed in said


@every_class
@pytest.mark.parametrize("steps", [np.int64(7), np.int32(7)], ids=repr)
def test_numpy_numbers_are_numbers(name, steps):
    assert torch.equal(make(name).table(steps).timesteps, make(name).table(7).timesteps)


@every_class
def test_step_before_set_timesteps(name):
    scheduler = make(name)
    if scheduler.steps_at_once:
        assert scheduler.step(X, 500, X).prev_sample.shape == X.shape
    else:
        assert f"{name}.set_timesteps" in message(lambda: scheduler.step(X, 500, X))


@every_class
def test_a_timestep_that_is_not_in_the_list(name):
    scheduler = make(name)
    scheduler.set_timesteps(5)
    for call in (scheduler.step, lambda output, t, x: scheduler.index_for_timestep(t)):
        said = message(lambda: call(X, 123, X))  # noqa: B023
        assert "123" in said and f"{scheduler.timesteps[0]:g}" in said and f"{scheduler.timesteps[-1]:g}" in said
    if scheduler.input_is_ve:
        assert "123" in message(lambda: scheduler.scale_model_input(X, 123))


@every_class
def test_unknown_options(name):
    with pytest.raises(TypeError, match="takes no argument 'etaa'"):
        make(name).table(5, etaa=1.0)
    with pytest.raises(TypeError, match="bta_start"):
        make(name, bta_start=1.0)


@every_class
def test_lists_of_ones_own(name):
    """They are taken, or refused by name: never passed over. Once, DDIM and PNDM ignored both."""
    scheduler = make(name)
    for option, values in (("timesteps", [900, 500, 3]), ("sigmas", [9.0, 5.0, 1.0, 0.0])):
        try:
            table = scheduler.table(**{option: values})
        except (TypeError, ValueError) as error:
            assert option in str(error)
        else:
            assert -(-len(table) // scheduler.order) == 3
            given = table.timesteps.tolist() if option == "timesteps" else table.levels.sigma.tolist()
            assert set(values) <= set(given)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("timesteps", [[], [5, 900], [900, 900], [1000, 5], [900, -1], [[900, 5]], [900, float("nan")]], ids=str)
def test_wrong_lists_of_timesteps(name, timesteps):
    assert "timesteps must" in message(lambda: make(name).set_timesteps(timesteps=timesteps))


@pytest.mark.parametrize("sigmas", [[], [5.0], [1.0, 5.0], [5.0, 5.0, 0.0], [5.0, 1.0, -1.0], [5.0, float("nan"), 0.0]], ids=str)
def test_wrong_lists_of_levels(sigmas):
    """Falling, and not below 0. Once, negative and undefined levels were taken."""
    assert "sigmas must" in message(lambda: make("EulerDiscreteScheduler").set_timesteps(sigmas=sigmas))


def test_exclusive_options():
    """Once, a number of steps beside a list was passed over; the peer refuses it."""
    euler, ddpm = make("EulerDiscreteScheduler"), make("DDPMScheduler")
    assert "timesteps or sigmas" in message(lambda: euler.set_timesteps(timesteps=[900, 5], sigmas=[9.0, 1.0]))
    for call in (lambda: euler.set_timesteps(5, timesteps=[900, 5]), lambda: euler.set_timesteps(5, sigmas=[9.0, 1.0]),
                 lambda: ddpm.set_timesteps(5, timesteps=[900, 5])):
        assert "num_inference_steps" in message(call)
    ramps = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
    for one, other in (ramps[:2], ramps[1:], ramps[::2]):
        said = message(lambda: make("EulerDiscreteScheduler", **{one: True, other: True}))  # noqa: B023
        assert one in said and other in said
    assert "ramp" in message(lambda: make("EulerDiscreteScheduler", use_karras_sigmas=True).set_timesteps(timesteps=[900, 5]))


def test_offset_beyond_training():
    assert "steps_offset" in message(lambda: make("DDIMScheduler", steps_offset=1).set_timesteps(1000))


@every_class
@pytest.mark.parametrize("begin", [-1, 10**6])
def test_a_start_beyond_the_trajectory(name, begin):
    """Once, -1 was read from the end and failed later, a start beyond the end gave an empty table."""
    assert "begin" in message(lambda: make(name).table(10, begin=begin))
