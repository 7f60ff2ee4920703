"""Flow matching: what its schedulers have beside trajectories (`plans.py`), and where they are right and the peer is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import calotype.schedulers as ours
from calotype.schedulers.table import Table

from .cases import Case, make, network, trajectory
from .gaussian import ode_error

EULER, HEUN, LCM = (f"FlowMatch{name}Scheduler" for name in ("EulerDiscrete", "HeunDiscrete", "LCM"))
X, NOISE, TOKENS = torch.randn(3, 2, 5, 3, generator=torch.Generator().manual_seed(0))
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SOLVERS = [f"{name}Scheduler" for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep")]
each = pytest.mark.parametrize("name", [EULER, HEUN, LCM])


@each
def test_scale_noise_equals_oracle(name, oracle):
    """At timesteps of training, and of a trajectory (where the peer's Heun fails: it multiplies its whole list)."""
    for steps in (None, 7) if name != HEUN else ():
        noised = []
        for library in (oracle, ours):
            scheduler = getattr(library, name)(shift=3.0)
            if steps:
                scheduler.set_timesteps(steps)
            noised.append(scheduler.scale_noise(X, scheduler.timesteps[[3, 5]], NOISE))
        torch.testing.assert_close(*noised)


@each
def test_any_timestep_can_be_noised_to(name, oracle):
    """By the definition of a timestep. The peer looks it up by float equality, and fails (its issue #11749)."""
    with pytest.raises((IndexError, RuntimeError)):
        getattr(oracle, name)().scale_noise(X, torch.tensor([254, 500]), NOISE)
    scheduler = make(name)
    for steps in (None, 9):
        if steps:
            scheduler.set_timesteps(steps)
        share = torch.tensor([0.254, 0.5])[:, None, None]
        noised = scheduler.scale_noise(X, torch.tensor([254, 500]), NOISE)
        torch.testing.assert_close(noised, (1 - share) * X + share * NOISE)
    scheduler.set_timesteps(7)
    inexact = scheduler.timesteps[3].double() * (1 + 1e-8)
    assert scheduler.scale_noise(X, inexact[None], NOISE).isfinite().all()
    assert scheduler.index_for_timestep(inexact) == (4 if name == HEUN else 3)  # where a step opens


@pytest.mark.parametrize("name", [EULER, LCM])
def test_timesteps_of_ones_own_are_not_shifted_again(name, oracle):
    """They are what the model is told, so the level is theirs; the peer's levels are not (its issues #14013 and #14461)."""
    given = [1000.0, 900.0, 750.0, 500.0]  # those that `sigmas` of 1, 0.75, 0.5, 0.25 have with this shift
    theirs, mine = (getattr(library, name)(shift=3.0) for library in (oracle, ours))
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(timesteps=given)
    assert mine.timesteps.tolist() == theirs.timesteps.tolist() == given
    assert mine.sigmas.tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert theirs.sigmas.tolist()[1] == pytest.approx(27 / 28)
    again = mine.sigmas
    mine.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(mine.sigmas, again)


def test_inverted_levels_are_shares_of_picture(oracle):
    """Mochi: a trajectory is that of the levels not inverted, with the output's sign turned, and so is the noising."""
    mine, plain = make(EULER, invert_sigmas=True, shift=3.0), make(EULER, shift=3.0)
    for scheduler in (mine, plain):
        scheduler.set_timesteps(5)
    torch.testing.assert_close(mine.sigmas, 1 - plain.sigmas)
    one = two = X
    for t, u in zip(mine.timesteps, plain.timesteps, strict=True):
        output = torch.tanh(one)
        first, second = mine.step(-output, t, one), plain.step(output, u, two)
        one, two = first.prev_sample, second.prev_sample
        torch.testing.assert_close(first.pred_original_sample, second.pred_original_sample)
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(mine.scale_noise(X, t, NOISE), plain.scale_noise(X, u, NOISE))
    assert torch.equal(mine.scale_noise(X, torch.tensor([0.0]), NOISE), NOISE)
    peer = oracle.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    peer.set_timesteps(5)
    assert torch.equal(peer.scale_noise(X, peer.timesteps[:1], NOISE), X)  # the sample that generation begins with


def test_tokens_at_timesteps_of_their_own_equal_oracle(oracle):
    at = torch.tensor([[1000.0, 857.6923, 500.0, 10.0, 0.0], [900.0, 602.1505, 8.928571, 3.0, 1000.0]])
    stepped = []
    for library in (oracle, ours):
        scheduler = library.FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(4)
        stepped.append([scheduler.step(NOISE, t, X, per_token_timesteps=at, return_dict=False)[0] for t in scheduler.timesteps])
        assert scheduler.step_index in (3, 4)
    torch.testing.assert_close(*stepped)
    with pytest.raises(ValueError, match="stochastic_sampling takes no per_token_timesteps"):
        scheduler = make(EULER, stochastic_sampling=True)
        scheduler.set_timesteps(4)
        scheduler.step(NOISE, scheduler.timesteps[0], X, per_token_timesteps=at)


@pytest.mark.parametrize("config", [{"scale_factors": [1.0, 1.5, 2.0]},
                                    {"scale_factors": [1.1, 1.5, 1.9], "upscale_mode": "nearest"}], ids=str)
def test_samples_that_grow_equal_oracle(config, oracle):
    case = Case(LCM, {"shift": 3.0, **config}, 4)
    (_, reference), (mine, samples) = case.run(oracle), case.run(ours)
    for expected, sample in zip(reference, samples, strict=True):
        torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-4)
    again = trajectory(mine)
    assert [sample.shape for sample in again] == [sample.shape for sample in samples]
    with pytest.raises(ValueError, match="scale_factors are for loops of one's own"):
        mine.table(4)
    with pytest.raises(ValueError, match="3 scale_factors, but must be one for each step but the last: 4"):
        mine.set_timesteps(5)
    with pytest.raises(ValueError, match="upscale_mode is 'cubic', but must be .*did you mean 'bicubic'"):
        mine.set_scale_factors([1.0, 2.0], "cubic")


def test_shift_can_be_replaced(oracle):
    for name in (EULER, LCM):
        theirs, mine = (getattr(library, name)() for library in (oracle, ours))
        for scheduler in (theirs, mine):
            scheduler.set_shift(3.0)
            scheduler.set_timesteps(6)
        assert mine.shift == theirs.shift == 3.0 and mine.sigma_min == pytest.approx(theirs.sigma_min)
        torch.testing.assert_close(mine.sigmas, theirs.sigmas)


def test_tables_take_mu():
    """The library's own loop gives it, as `set_timesteps` does."""
    for name in (EULER, *SOLVERS):
        scheduler = make(name, **(FLOW if name in SOLVERS else {}), use_dynamic_shifting=True)
        scheduler.set_timesteps(6, mu=1.2)
        table = scheduler.table(6, mu=1.2)
        assert isinstance(table, Table) and torch.equal(table.timesteps, scheduler.timesteps)
        assert table.levels.sigma[2] != scheduler.table(6, mu=0.2).levels.sigma[2]


def test_entries_of_another_class_change_nothing():
    """A config of Euler's brings its `shift_terminal`, which DPM-Solver keeps and does not know."""
    brought = type(make(SOLVERS[0])).from_config(make(EULER, shift_terminal=0.3).config, **FLOW)
    assert brought.config.shift_terminal == 0.3
    assert np.array_equal(brought.table(5).levels.sigma, make(SOLVERS[0], **FLOW).table(5).levels.sigma)


def test_wrong_calls():
    for call, said in (
        (lambda: make(EULER, use_dynamic_shifting=True).set_timesteps(5), "needs mu"),
        (lambda: make(EULER, time_shift_type="linaer"), "did you mean 'linear'"),
        (lambda: make(EULER).set_timesteps(sigmas=[1.5, 0.5]), "sigmas must lie in"),
        (lambda: make(EULER).set_timesteps(3, sigmas=[1.0, 0.5]), "num_inference_steps is 3, but there are 2"),
        (lambda: make(EULER).set_timesteps(sigmas=[1.0, 0.5], timesteps=[999]), "2 sigmas, but 1 timesteps"),
        (lambda: make(EULER).set_timesteps(timesteps=[1001, 500]), "timesteps must lie in"),
        (lambda: make(EULER, use_karras_sigmas=True).set_timesteps(timesteps=[900, 500]), "by a ramp"),
        (lambda: make("UniPCMultistepScheduler").set_timesteps(sigmas=[1.0, 0.5]), "use_flow_sigmas"),
        (lambda: make("UniPCMultistepScheduler", shift_terminal=0.1), "needs use_flow_sigmas"),
        (lambda: make("DPMSolverMultistepScheduler", **FLOW).set_timesteps(timesteps=[900, 500]), "timesteps cannot be given"),
        (lambda: make("UniPCMultistepScheduler", solver_p=make("DDIMScheduler")), "solver_p must be .*is DDIMScheduler"),
        (lambda: make("UniPCMultistepScheduler", solver_p=make("DEISMultistepScheduler")), "solver_p must be"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("ramp", [None, "use_karras_sigmas", "use_exponential_sigmas"])
def test_solvers_of_flow_models_converge(name, ramp):
    """On levels of any kind, to the exact ODE, and `add_noise` knows the levels."""
    order = {"final_sigmas_type": "zero"} if name != "DEISMultistepScheduler" else {}
    scheduler = make(name, **FLOW, **order, **({ramp: True} if ramp else {}))
    coarse, fine = (ode_error(scheduler.table(steps), "flow_prediction") for steps in (20, 80))
    assert fine < 0.3 * coarse and fine < 0.03
    assert torch.equal(scheduler.add_noise(X, NOISE, torch.tensor([250])), 0.75 * X + 0.25 * NOISE)
    scheduler.set_timesteps(8)
    sigma = scheduler.sigmas[4]
    torch.testing.assert_close(scheduler.add_noise(X, NOISE, scheduler.timesteps[4]), (1 - sigma) * X + sigma * NOISE)


def test_deis_of_flow_models_comes_to_an_end(oracle):
    """The peer's last step goes nowhere, and leaves the noise of the last model call; up to there both agree."""
    case = Case("DEISMultistepScheduler", {**FLOW, "solver_order": 2}, 10)
    (theirs, reference), (mine, samples) = case.run(oracle), case.run(ours)
    assert mine.timesteps.tolist() == theirs.timesteps.tolist()
    assert theirs.sigmas[-1] == theirs.sigmas[-2] > 0.09 and mine.sigmas[-1] == pytest.approx(0.01, rel=1e-3)
    for expected, sample in zip(reference[:-1], samples[:-1], strict=True):
        assert (sample - expected).abs().max() < 5e-4 * expected.abs().max()  # rounding of the peer: see below
    assert torch.equal(reference[-1], reference[-2]) and not torch.allclose(samples[-1], samples[-2], rtol=1e-2)


DOUBLE = [("UniPCMultistepScheduler", {"predict_x0": False, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min",
                                       "prediction_type": kind, "solver_order": order})
          for kind, order in (("sample", 2), ("sample", 3), ("v_prediction", 3))]
DOUBLE += [("DEISMultistepScheduler", {"use_beta_sigmas": True, "solver_order": 3}),
           *(("DEISMultistepScheduler", {**FLOW, "flow_shift": 3.0, "solver_order": order}) for order in (2, 3))]


@pytest.mark.parametrize(("name", "config"), DOUBLE, ids=str)
def test_unipc_and_deis_agree_in_double_precision(name, config, oracle):
    """Where `plans.py` does not follow the peer by the bound of single precision, that is the peer's cancellation.

    Given the levels and the samples in double precision, the peer's formulas are ours.
    """
    theirs, mine = (getattr(library, name)(**config) for library in (oracle, ours))
    for scheduler in (theirs, mine):
        scheduler.set_timesteps(20)
    levels = mine.table(20).levels
    theirs.sigmas = torch.from_numpy(levels.sigma if config.get("use_flow_sigmas") else levels.sigma / levels.alpha)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for expected, sample in zip(trajectory(theirs, x=x), trajectory(mine, x=x), strict=True):
        torch.testing.assert_close(sample, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("predictor", ["DPMSolverMultistepScheduler", "DEISMultistepScheduler"])
@pytest.mark.parametrize("steps", [4, 20])
def test_another_predictor_equals_oracle(predictor, order, steps, oracle):
    samples = []
    for library in (oracle, ours):
        end = {"final_sigmas_type": "sigma_min"} if predictor.startswith("DPM") else {}
        solver_p = getattr(library, predictor)(solver_order=order, **end)
        scheduler = library.UniPCMultistepScheduler(solver_p=solver_p, predict_x0=bool(end), final_sigmas_type="sigma_min")
        scheduler.set_timesteps(steps)
        samples.append(trajectory(scheduler))
    for expected, sample in zip(*samples, strict=True):
        torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("with_predictor", [False, True])
def test_unipc_in_a_program_of_double_precision(with_predictor, oracle):
    """Where PyTorch's default is float64, the peer mixes it with float32, and fails."""
    def go(library):
        solver_p = library.DPMSolverMultistepScheduler() if with_predictor else None
        scheduler = library.UniPCMultistepScheduler(solver_p=solver_p)
        scheduler.set_timesteps(5)
        return trajectory(scheduler, x=X[None].double())[-1]

    expected = go(ours)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(go(ours), expected)
        with pytest.raises(RuntimeError, match="same dtype"):
            go(oracle)
    finally:
        torch.set_default_dtype(torch.float32)


def test_flow_prediction_is_read_at_levels_of_any_kind(oracle):
    """`noise - x0`, by its definition. The peer reads `x0 = x - sigma · output` also where `x` is variance-preserving."""
    for name in ("DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "PNDMScheduler"):
        scheduler = make(name, prediction_type="flow_prediction", **({"clip_sample": False} if name == "DDIMScheduler" else {}))
        scheduler.set_timesteps(5)
        t = scheduler.timesteps[2]
        predicted = scheduler.step(NOISE - X, t, scheduler.add_noise(X, NOISE, t)).pred_original_sample
        torch.testing.assert_close(predicted, X, rtol=1e-3, atol=1e-3)
    peer = oracle.DPMSolverMultistepScheduler(prediction_type="flow_prediction")
    peer.set_timesteps(5)
    peer._step_index, t = 2, peer.timesteps[2]
    assert not torch.allclose(peer.convert_model_output(NOISE - X, sample=peer.add_noise(X, NOISE, t[None])), X, atol=0.1)


def test_one_step_with_a_terminal_level():
    """A single level is of pure noise, and cannot be stretched; the peer divides by nothing."""
    for name, config in ((EULER, {}), (LCM, {}), ("UniPCMultistepScheduler", FLOW)):
        table = make(name, shift_terminal=0.1, **config).table(1)
        assert np.isfinite(table.levels.sigma).all()
        x = X[None]
        assert table.step(0, network(x, 999, {}), x, table.new_state(), x).isfinite().all()
