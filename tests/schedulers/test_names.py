"""Short names: each is the class and the config that k-diffusion, AUTOMATIC1111's web UI, ComfyUI and SD.Next mean by it."""

from __future__ import annotations

import pytest
import torch

import calotype
import calotype.schedulers as ours
from calotype.registry import SCHEDULERS
from calotype.scheduler_names import SHORT_NAMES, meaning, named_scheduler, short_names

from .cases import every, make, network

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
      "prediction_type": "v_prediction"}
RAMPS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"


@pytest.mark.parametrize(("spellings", "kind", "entries"), [
    (("euler", "Euler", "k_euler", "sample_euler"), "EulerDiscreteScheduler", {"use_karras_sigmas": False}),
    (("euler_a", "Euler a", "euler_ancestral", "sample_euler_ancestral"), "EulerAncestralDiscreteScheduler", {}),
    (("heun", "Heun"), "HeunDiscreteScheduler", {}),
    (("lms", "LMS"), "LMSDiscreteScheduler", {"use_karras_sigmas": False}),
    (("lms_karras", "LMS Karras"), "LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    (("dpm2", "DPM2", "dpm_2", "k_dpm_2"), "KDPM2DiscreteScheduler", {"use_karras_sigmas": False}),
    (("dpm2_a", "DPM2 a", "dpm_2_ancestral", "k_dpm_2_a"), "KDPM2AncestralDiscreteScheduler", {}),
    (("dpm2_karras", "DPM2 Karras"), "KDPM2DiscreteScheduler", {"use_karras_sigmas": True}),
    (("dpmpp_2m", "DPM++ 2M"), MULTISTEP,
     {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "use_karras_sigmas": False}),
    (("dpmpp_2m_karras", "DPM++ 2M Karras"), MULTISTEP,
     {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True}),
    (("dpmpp_2m_sde", "DPM++ 2M SDE"), MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "solver_type": "midpoint"}),
    (("dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun"), MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    (("dpmpp_2m_sde_karras", "DPM++ 2M SDE Karras"), MULTISTEP,
     {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "use_karras_sigmas": True, "final_sigmas_type": "zero"}),
    (("dpmpp_2m_sde_exponential", "DPM++ 2M SDE Exponential"), MULTISTEP, {"use_exponential_sigmas": True}),
    (("dpmpp_3m_sde", "DPM++ 3M SDE"), MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    (("dpmpp_2s", "DPM++ 2S"), SINGLESTEP, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    (("dpmpp_sde", "DPM++ SDE"), "DPMSolverSDEScheduler", {"use_karras_sigmas": False}),
    (("dpmpp_sde_karras", "DPM++ SDE Karras"), "DPMSolverSDEScheduler", {"use_karras_sigmas": True}),
    (("ddim", "DDIM"), "DDIMScheduler", {}), (("ddpm",), "DDPMScheduler", {}),
    (("pndm",), "PNDMScheduler", {"skip_prk_steps": False}), (("plms", "PLMS"), "PNDMScheduler", {"skip_prk_steps": True}),
    (("unipc", "UniPC", "uni_pc"), "UniPCMultistepScheduler", {"solver_type": "bh2"}),
    (("uni_pc_bh2",), "UniPCMultistepScheduler", {"solver_type": "bh2"}),
    (("deis", "DEIS"), "DEISMultistepScheduler", {}), (("sa_solver", "SA Solver"), "SASolverScheduler", {}),
    (("lcm", "LCM"), "LCMScheduler", {}), (("tcd", "TCD"), "TCDScheduler", {}), (("ipndm",), "IPNDMScheduler", {}),
], ids=lambda it: it[0] if isinstance(it, tuple) else "")
def test_a_name_is_what_others_mean_by_it(spellings, kind, entries):
    for name in spellings:
        scheduler = named_scheduler(name, make("DDIMScheduler", **SD).config)
        assert type(scheduler).__name__ == kind
        assert {key: scheduler.config[key] for key in entries} == entries
        assert scheduler.config["prediction_type"] == "v_prediction"  # what the name does not say stays


@every("name", SHORT_NAMES)
def test_every_name_makes_a_scheduler_that_runs(name):
    scheduler = named_scheduler(name, {} if "flow" in name else SD | {"prediction_type": "epsilon"})
    kind, entries = meaning(name)
    assert type(scheduler) is getattr(ours, kind)
    assert {key: scheduler.config[key] for key in entries} == entries
    assert sum(scheduler.config.get(ramp, False) for ramp in RAMPS) == name.endswith(("karras", "exponential", "beta"))
    assert len(scheduler.table(2)) >= 2


def test_the_name_of_a_class_is_a_name_too():
    assert meaning("SCMScheduler") == ("SCMScheduler", {})
    assert named_scheduler("EulerDiscreteScheduler", SD | {"use_karras_sigmas": True}).config.use_karras_sigmas


def test_a_name_says_the_whole_of_its_solver():
    """Taken from the config of another, `dpmpp_2m` is without its fresh noise, its order and its ramp."""
    other = named_scheduler("dpmpp_3m_sde_karras", SD).config
    assert named_scheduler("dpmpp_2m", other).table(7).steps == named_scheduler("dpmpp_2m", SD).table(7).steps
    assert named_scheduler("euler", other).table(7).steps == named_scheduler("euler", SD).table(7).steps


@every("name", ["ddim", "ddpm", "DDIMScheduler"])
def test_clipping_is_never_begun_by_a_change_of_solver(name):
    """Latents are not clipped by solvers that clip by default; models of pixels go on being clipped."""
    assert not named_scheduler(name, make("PNDMScheduler", **SD).config).config.clip_sample
    assert named_scheduler(name, make("DDPMScheduler").config).config.clip_sample
    assert not named_scheduler(name, make("DDPMScheduler", clip_sample=False).config).config.clip_sample


def test_dpmpp_2m_karras_is_that_of_k_diffusion():
    """`x' = s'/s · x - expm1(-h) · d` with `d = (1 + 1/2r) x0 - 1/2r · x0 before`, on the ramp of Karras, in VE samples."""
    table = named_scheduler("DPM++ 2M Karras", SD | {"prediction_type": "sample"}).table(20)
    sigmas = table.levels.sigma / table.levels.alpha
    x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state, ve, past = table.new_state(), x / table.levels.alpha[0], None
    for i in range(20):
        x0 = network(x, 0, {})
        times, d = -torch.from_numpy(sigmas).log(), x0
        h = times[i + 1] - times[i]
        if past is not None and i < 19:
            ratio = (times[i] - times[i - 1]) / h
            d = (1 + 1 / (2 * ratio)) * x0 - 1 / (2 * ratio) * past
        ve, past = sigmas[i + 1] / sigmas[i] * ve - torch.expm1(-h) * d, x0
        x = table.step(i, x0, x, state)
        assert torch.allclose(x / table.levels.alpha[i + 1], ve, rtol=1e-9)


def test_names_of_a_class():
    assert short_names(MULTISTEP) == ["dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m", "dpmpp_3m_sde"]
    assert short_names("SCMScheduler") == []
    assert {kind for kind, _ in SHORT_NAMES.values()} <= set(SCHEDULERS)
    assert calotype.named_scheduler is named_scheduler


@pytest.mark.parametrize(("given", "near"), [
    ("dpmpp_2m_kerras", "dpmpp_2m_karras"), ("eular", "euler"), ("EulerDiscreteSchedular", "EulerDiscreteScheduler"),
    ("unicp", "unipc"), ("euler_a_karras", "euler_karras"),
])
def test_an_unknown_name(given, near):
    with pytest.raises(ValueError, match=rf"no scheduler '{given}'; did you mean '{near}'\? \(`calotype schedulers` lists"):
        named_scheduler(given, SD)
    with pytest.raises(ValueError, match="no scheduler 'StableDiffusionPipeline'"):
        meaning("StableDiffusionPipeline")
