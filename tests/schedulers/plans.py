"""How each scheduler class is tested: one entry a class, and every test of this folder takes it up.

To add a scheduler, add its `Plan` to `PLANS`.
"""

from __future__ import annotations

import itertools
import os
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from .cases import Case, Entries, Grid, Order, Plan, every, make

PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")
SMOOTH = {"num_train_timesteps": 4097, "trained_betas": [0.1, *np.linspace(2e-4, 2e-3, 4096).tolist()]}
"""Levels without the kink at clean samples, where the noise grows like a root and hides the order of any solver."""


def goes_elsewhere(config: Entries, steps: int) -> bool:
    """Where the peer's DDIM and PNDM step to `t - 1000 // steps`, which is not the next timestep."""
    spacing = config.get("timestep_spacing", "leading")
    return steps > 1 and (spacing == "linspace" or (spacing == "trailing" and 1000 % steps != 0))


def _pndm_differs(config: Entries, steps: int) -> bool:
    return goes_elsewhere(config, steps) or (steps < 4 and not config.get("skip_prk_steps"))


def _inverse_differs(config: Entries, steps: int) -> bool:
    """Where the peer's inversion steps from another level than the last one reached, or divides by a noise of zero."""
    no_noise = config.get("prediction_type") == "sample" and config.get("set_alpha_to_one", True)
    return goes_elsewhere(config, steps) or no_noise


def _repeats(config: Entries, steps: int) -> bool:
    """Where the peer's multistep solvers find rows by timesteps that repeat (its issue #12771) or lie by rounding below 999."""
    return config.get("beta_schedule") == "squaredcos_cap_v2" and any(config.get(ramp) for ramp in (*RAMPS, "use_lu_lambdas"))


def _goes_nowhere(config: Entries, steps: int) -> bool:
    """Where the last level of a ramp is where the trajectory ends: the peer's order 3 divides by that step's length."""
    ramp = any(config.get(name) for name in (*RAMPS, "use_lu_lambdas"))
    return ramp and config.get("final_sigmas_type") == "sigma_min" and config.get("solver_order") == 3 and steps >= 15


def _dpm_multistep_differs(config: Entries, steps: int) -> bool:
    stochastic = config.get("algorithm_type", "").startswith("sde") and config.get("solver_order") == 3 and steps > 3
    return _repeats(config, steps) or _goes_nowhere(config, steps) or stochastic


def _dpm_singlestep_differs(config: Entries, steps: int) -> bool:
    third = config.get("solver_order") == 3 and config.get("solver_type") == "heun" and steps >= 3
    return _repeats(config, steps) or (third and config.get("algorithm_type", "").startswith("sde"))


def _unipc_differs(config: Entries, steps: int) -> bool:
    """Where the peer's coefficients are infinite at a clean sample; or, towards a small level, off by more than 1e-4.

    These last are not ours: in double precision both agree to 1e-9 (`test_unipc_and_deis_agree_in_double_precision`), and the
    peer's own single precision is off by up to 2e-3, since its weights of the noise cancel.
    """
    clean, order = config.get("final_sigmas_type", "zero") == "zero", config.get("solver_order", 2)
    full, noise = not config.get("lower_order_final", True) and order > 1, not config.get("predict_x0", True)
    kind = config.get("prediction_type")
    cancels = noise and bool(config.get("use_karras_sigmas")) and (kind == "sample" or (kind == "v_prediction" and order == 3))
    return _repeats(config, steps) or cancels or (clean and (config.get("solver_type") == "bh1" or noise or full))


def _deis_differs(config: Entries, steps: int) -> bool:
    """Where levels lie so close that the peer's coefficients of order 3, in single precision, cancel."""
    return _repeats(config, steps) or (bool(config.get("use_beta_sigmas")) and config.get("solver_order") == 3)


COUNTS = (1, 2, 4, 7, 10, 50)
SPACED = {"timestep_spacing": SPACINGS, "prediction_type": PREDICTIONS, "steps_offset": (0, 1)}
BETAS = {"beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"), "timestep_spacing": ("leading", "trailing")}
SHORT = {"num_train_timesteps": (100,), "beta_start": (0.001,), "beta_end": (0.1,), "prediction_type": PREDICTIONS}
TRAINED = {"trained_betas": (np.linspace(1e-4, 0.03, 1000).tolist(),)}
THRESHOLD = {"thresholding": (True,), "sample_max_value": (1.0, 1.5), "dynamic_thresholding_ratio": (0.9, 0.995),
             "prediction_type": PREDICTIONS}
ZERO_SNR = {"rescale_betas_zero_snr": (True,), "prediction_type": ("sample", "v_prediction"), **BETAS}
SD = {"beta_start": (0.00085,), "beta_end": (0.012,), "beta_schedule": ("scaled_linear",)}  # Stable Diffusion's training
EXACT = {"timestep_spacing": SPACINGS, "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
         "prediction_type": PREDICTIONS, "num_train_timesteps": (100, 1000)}
CHURN = ({}, {"s_churn": 5.0}, {"s_churn": 50.0, "s_tmin": 0.5, "s_tmax": 20.0, "s_noise": 1.1})
RAMPS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
ETAS = ({"eta": 0.0}, {"eta": 0.5}, {"eta": 1.0})
DISTILLED = ({"num_inference_steps": 4, "original_inference_steps": 25}, {"num_inference_steps": 4, "strength": 0.5},
             {"num_inference_steps": 3, "original_inference_steps": 30, "strength": 0.31}, {"timesteps": [999, 759, 499, 0]},
             {"timesteps": [999, 700, 300, 50]})


def _ancestral_cancels(config: Entries, steps: int) -> bool:
    """Where the peer's level of the way down, `sqrt(sigma'² - up²)` in single precision, has lost its digits: large steps."""
    linspace = config.get("timestep_spacing", "linspace") == "linspace"
    return config.get("beta_schedule") == "squaredcos_cap_v2" or (
        linspace and steps in (2, 5 if config.get("use_beta_sigmas") else 2))


NO_SAMPLE = ("epsilon", "v_prediction")


def _to_the_level_before_the_last(is_: float, options: Entries = {}, given: int = 0) -> list[Order]:  # noqa: B006
    """Orders of solvers in sigma that end at a clean sample."""
    return [Order({"prediction_type": p, **ramp}, is_, options=options, given=given, left_out=1)
            for p in PREDICTIONS for ramp in ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True})]




def _two_stages(counts: tuple[int, ...], ramped: tuple[int, ...]) -> tuple[Grid, ...]:
    return (
        Grid({**SPACED, "prediction_type": NO_SAMPLE}, counts), Grid(BETAS), Grid({**SHORT, "prediction_type": NO_SAMPLE}),
        Grid(TRAINED),
        *(Grid({ramp: (True,), "prediction_type": NO_SAMPLE, "timestep_spacing": SPACINGS}, ramped) for ramp in RAMPS),
    )


TWO_STAGES = _two_stages(COUNTS, (1, 5, 10))
FEWER_TWO_STAGES = _two_stages((1, 7), (5,))  # of KDPM2, which the peer takes half a second to make



def _edm_multistep_differs(config: Entries, steps: int) -> bool:
    """As for `DPMSolverMultistepScheduler`, of which all levels lie on a ramp."""
    nowhere = config.get("final_sigmas_type") == "sigma_min" and config.get("solver_order") == 3
    stochastic = config.get("algorithm_type", "").startswith("sde") and config.get("solver_order") == 3
    return stochastic or (nowhere and (steps >= 15 or not config.get("lower_order_final", True)))


EDM = {"sigma_schedule": ("karras", "exponential"), "prediction_type": NO_SAMPLE, "final_sigmas_type": ("zero", "sigma_min")}
BARE = {"max_timesteps": None, "intermediate_timesteps": None}
OF_EDM = {"sigma_min": (0.1,), "sigma_max": (10.0,), "sigma_data": (1.0,), "rho": (3.0, 7.0), **EDM}

PLANS: dict[str, Plan] = {
    "CMStochasticIterativeScheduler": Plan(
        grids=(
            Grid({"clip_denoised": (True, False), "s_noise": (1.0, 1.2)}, (1, 2, 3, 7, 40)),
            Grid({"clip_denoised": (True, False), "sigma_min": (0.01,), "sigma_max": (30.0,), "sigma_data": (1.0,),
                  "num_train_timesteps": (18, 150), "rho": (3.0, 7.0)}, (1, 2, 5)),
            Grid({"clip_denoised": (True, False)}, given=tuple(
                {"timesteps": times} for times in ([22, 0], [39, 22, 0], [0], [39], [22.5, 0], [30, 20, 10]))),
        ),
        exact={"sigma_min": (1e-9,), "clip_denoised": (True, False)},
        kind=lambda _: "edm_epsilon",
    ),
    "CosineDPMSolverMultistepScheduler": Plan(
        grids=(
            Grid({**EDM, "final_sigmas_type": ("zero",)}, (2, 5, 20)), Grid({"sigma_schedule": ("karras",)}, (1,)),
            Grid({"solver_order": (1, 2, 3), "solver_type": ("midpoint", "heun"), "sigma_schedule": EDM["sigma_schedule"]},
                 (2, 10)),
            Grid({**OF_EDM, "final_sigmas_type": ("zero",), "sigma_schedule": ("exponential",), "sigma_data": (0.5, 1.0)}, (7,)),
            Grid({"lower_order_final": (False, True), "euler_at_final": (False, True)}, (5, 16)),
        ),
        differs=lambda config, steps: config.get("solver_order") == 3 and steps > 2,  # crashes
        stochastic=[({"solver_order": k, "sigma_min": 0.01}, {}) for k in (1, 2)],
        exact={**EDM, "solver_order": (1, 2, 3), "euler_at_final": (False, True)},
        kind=lambda kind: f"cosine_{kind}",
    ),
    "SCMScheduler": Plan(
        grids=(
            Grid({"sigma_data": (0.5, 1.0)}, given=({"num_inference_steps": 2}, *(
                {"num_inference_steps": steps, "intermediate_timesteps": None, "max_timesteps": most}
                for steps in (1, 2, 5, 20) for most in (1.5708, 1.4)),
                {"num_inference_steps": 2, "max_timesteps": 1.4, "intermediate_timesteps": 1.1},
                {"num_inference_steps": 3, "timesteps": [1.5, 1.0, 0.4, 0.0], **BARE},
                {"num_inference_steps": 1, "timesteps": [1.5, 0.2], **BARE})),
        ),
        exact={"sigma_data": (0.5, 1.0)},
    ),
    "EDMEulerScheduler": Plan(
        grids=(
            Grid(EDM, (2, 5, 20), options=CHURN), Grid({"prediction_type": NO_SAMPLE}, (1,), options=CHURN),
            Grid(OF_EDM, (7,), options=CHURN[:2]),
            Grid(EDM, given=({"sigmas": torch.linspace(0, 1, 6)}, {"num_inference_steps": 6, "sigmas": torch.linspace(0, 1, 6)})),
        ),
        orders=[Order({"sigma_schedule": s, "prediction_type": p, "final_sigmas_type": "sigma_min"}, 1)
                for s in EDM["sigma_schedule"] for p in NO_SAMPLE],
        exact=EDM,
        kind=lambda kind: f"edm_{kind}",
    ),
    "EDMDPMSolverMultistepScheduler": Plan(
        grids=(
            Grid(EDM, (2, 5, 20)), Grid({"prediction_type": NO_SAMPLE}, (1,)), Grid(OF_EDM, (7,)),
            Grid({"solver_order": (1, 2, 3), "solver_type": ("midpoint", "heun"), "sigma_schedule": EDM["sigma_schedule"],
                  "algorithm_type": ("dpmsolver++", "sde-dpmsolver++")}, (3, 10)),
            Grid({"solver_order": (2, 3), "lower_order_final": (False, True), "euler_at_final": (False, True),
                  "final_sigmas_type": ("zero", "sigma_min")}, (5, 16)),
            Grid({"thresholding": (True,), "sample_max_value": (1.0, 1.5), "dynamic_thresholding_ratio": (0.9, 0.995),
                  "prediction_type": NO_SAMPLE}),
        ),
        differs=_edm_multistep_differs,
        orders=[Order({"solver_order": k, "solver_type": t, "sigma_schedule": "exponential", "final_sigmas_type": "sigma_min"}, k)
                for k, t in ((1, "midpoint"), (2, "midpoint"), (2, "heun"))],
        stochastic=[({"algorithm_type": "sde-dpmsolver++", "solver_order": k, "prediction_type": p}, {})
                    for k, p in ((1, "epsilon"), (2, "v_prediction"), (3, "epsilon"))],
        exact={**EDM, "solver_order": (1, 2, 3), "solver_type": ("midpoint", "heun"),
               "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "euler_at_final": (False, True)},
        kind=lambda kind: f"edm_{kind}",
    ),
    "DDIMInverseScheduler": Plan(
        grids=(
            Grid({**SPACED, "timestep_spacing": ("leading", "trailing"), "set_alpha_to_one": (False, True)}, COUNTS),
            Grid({**BETAS, "prediction_type": ("epsilon", "v_prediction")}),
            Grid({**ZERO_SNR, "prediction_type": ("v_prediction",)}),
            Grid({**SHORT, "set_alpha_to_one": (False, True)}), Grid(TRAINED),
            Grid({"clip_sample": (True, False), "set_alpha_to_one": (True, False), "prediction_type": PREDICTIONS}),
            Grid({"clip_sample_range": (0.5, 2.0), "prediction_type": PREDICTIONS}),
        ),
        differs=_inverse_differs,
        exact={**EXACT, "set_alpha_to_one": (False,), "rescale_betas_zero_snr": (False, True)},
        rising=True,
    ),
    "DDIMScheduler": Plan(
        grids=(
            Grid(SPACED, COUNTS), Grid(BETAS), Grid(ZERO_SNR), Grid(SHORT), Grid(TRAINED), Grid(THRESHOLD),
            Grid({"clip_sample": (True, False), "set_alpha_to_one": (True, False), "prediction_type": PREDICTIONS},
                 options=({}, {"eta": 1.0}, {"use_clipped_model_output": True},
                          {"eta": 0.5, "use_clipped_model_output": True})),
            Grid({"clip_sample_range": (0.5, 2.0), "prediction_type": PREDICTIONS}),
        ),
        differs=goes_elsewhere,
        orders=[Order({"prediction_type": p, "timestep_spacing": s, "clip_sample": False, "set_alpha_to_one": False}, 1)
                for p in PREDICTIONS for s in ("leading", "linspace")],
        stochastic=[({"clip_sample": False, "prediction_type": p}, {"eta": eta})
                    for p, eta in (("epsilon", 1.0), ("epsilon", 0.5), ("v_prediction", 1.0))],
        exact={**EXACT, "rescale_betas_zero_snr": (False, True), "set_alpha_to_one": (False, True)},
        exact_options=({}, {"eta": 0.5}, {"eta": 1.0}, {"eta": 1.0, "use_clipped_model_output": True}),
    ),
    "DDPMScheduler": Plan(
        grids=(
            Grid(SPACED, COUNTS), Grid({**BETAS, "beta_schedule": ("sigmoid", *BETAS["beta_schedule"])}),
            Grid(ZERO_SNR), Grid(SHORT), Grid(TRAINED), Grid(THRESHOLD),
            Grid({"variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"),
                  "prediction_type": PREDICTIONS}, counts=(3, 10)),
            Grid({"clip_sample_range": (0.5, 2.0), "prediction_type": PREDICTIONS}),
            Grid({"prediction_type": PREDICTIONS},
                 given=({"timesteps": [900, 700, 300, 100, 5]}, {"timesteps": [999, 500, 0]})),
        ),
        stochastic=[({"clip_sample": False, "prediction_type": p, "variance_type": v}, {})
                    for p, v in (("epsilon", "fixed_small"), ("sample", "fixed_small_log"), ("epsilon", "fixed_large"))],
        exact={**EXACT, "rescale_betas_zero_snr": (False, True), "variance_type": ("fixed_small", "fixed_small_log")},
    ),
    "EulerAncestralDiscreteScheduler": Plan(
        grids=(
            Grid({**SPACED, "prediction_type": NO_SAMPLE}, COUNTS), Grid(BETAS),
            Grid({**ZERO_SNR, "prediction_type": ("v_prediction",)}),
            Grid({**SHORT, "prediction_type": NO_SAMPLE}), Grid(TRAINED),
        ),
        stochastic=[({"prediction_type": p}, {}) for p in PREDICTIONS],
        exact={**EXACT, "rescale_betas_zero_snr": (False, True)},
    ),
    "EulerDiscreteScheduler": Plan(
        grids=(
            Grid(SPACED, COUNTS), Grid(BETAS), Grid(ZERO_SNR), Grid(SHORT), Grid(TRAINED),
            *(Grid({**({ramp: (True,)} if ramp else {}), "prediction_type": PREDICTIONS,
                    "timestep_spacing": ("leading", "linspace")}, options=CHURN) for ramp in (None, *RAMPS)),
            *(Grid({ramp: (True,), "sigma_min": (None, 0.1), "sigma_max": (None, 10.0)}) for ramp in RAMPS),
            *(Grid({key: (value,), "prediction_type": PREDICTIONS}, options=CHURN) for key, value in (
                ("interpolation_type", "log_linear"), ("final_sigmas_type", "sigma_min"), ("timestep_type", "continuous"))),
            Grid({"prediction_type": PREDICTIONS}, given=(
                {"timesteps": [900, 700, 300, 100, 5]}, {"sigmas": [14.0, 10.0, 5.0, 1.0, 0.2, 0.0]},
                {"sigmas": [14.0, 10.0, 5.0, 1.0, 0.2]})),
        ),
        orders=[Order({"prediction_type": p, "final_sigmas_type": "sigma_min", **extra}, 1) for p in PREDICTIONS
                for extra in ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True},
                              {"interpolation_type": "log_linear"}, {"timestep_spacing": "leading"})],
        stochastic=[({"prediction_type": p, "use_karras_sigmas": True}, {"s_churn": churn})
                    for p, churn in (("epsilon", 20.0), ("v_prediction", 20.0), ("sample", 60.0))],
        exact={**EXACT, "rescale_betas_zero_snr": (False, True), "final_sigmas_type": ("zero", "sigma_min"),
               "use_karras_sigmas": (False, True), "interpolation_type": ("linear", "log_linear")},
    ),
    "HeunDiscreteScheduler": Plan(
        grids=(
            Grid(SPACED, COUNTS), Grid(BETAS), Grid(SHORT), Grid(TRAINED),
            *(Grid({ramp: (True,), "prediction_type": PREDICTIONS, "timestep_spacing": SPACINGS}, (1, 5, 10)) for ramp in RAMPS),
            Grid({"clip_sample": (True,), "clip_sample_range": (0.5, 1.0, 2.0), "prediction_type": PREDICTIONS,
                  "use_karras_sigmas": (False, True)}),
            Grid({"prediction_type": PREDICTIONS}, given=({"timesteps": [900, 700, 300, 100, 5]}, {"timesteps": [999]})),
            Grid({"beta_schedule": ("exp",), "timestep_spacing": SPACINGS}),
        ),
        orders=_to_the_level_before_the_last(2),
        exact={**EXACT, "use_karras_sigmas": (False, True)},
    ),
    "KDPM2DiscreteScheduler": Plan(
        grids=FEWER_TWO_STAGES,
        orders=_to_the_level_before_the_last(2),
        exact={**EXACT, "use_karras_sigmas": (False, True)},
    ),
    "KDPM2AncestralDiscreteScheduler": Plan(
        grids=FEWER_TWO_STAGES,
        differs=_ancestral_cancels,
        stochastic=[({"prediction_type": p, "use_karras_sigmas": True}, {}) for p in PREDICTIONS],
        exact={**EXACT, "use_karras_sigmas": (False, True)},
    ),
    "LMSDiscreteScheduler": Plan(
        grids=(
            Grid(SPACED, COUNTS), Grid(BETAS), Grid(SHORT), Grid(TRAINED),
            *(Grid({**({ramp: (True,)} if ramp else {}), "prediction_type": PREDICTIONS}, (1, 10),
                   options=({}, {"order": 1}, {"order": 2}, {"order": 3})) for ramp in (None, *RAMPS)),
        ),
        orders=[claim for k in (1, 2, 3, 4) for claim in _to_the_level_before_the_last(k, {"order": k}, given=k - 1)],
        exact={**EXACT, "use_karras_sigmas": (False, True)},
        exact_options=({}, {"order": 1}, {"order": 2}, {"order": 5}),
    ),
    "LCMScheduler": Plan(
        grids=(
            Grid({"prediction_type": PREDICTIONS, "timestep_spacing": SPACINGS, "set_alpha_to_one": (False, True)}, (1, 2, 4, 8)),
            Grid(BETAS), Grid({**ZERO_SNR, "prediction_type": ("v_prediction", "sample")}),
            Grid(SHORT), Grid(TRAINED), Grid(THRESHOLD),
            Grid({"original_inference_steps": (20, 100), "timestep_scaling": (1.0, 10.0)}, (1, 7, 20)),
            Grid({"clip_sample": (True,), "clip_sample_range": (0.5, 2.0), "prediction_type": PREDICTIONS}),
            Grid({"prediction_type": PREDICTIONS}, given=DISTILLED),
        ),
        exact={**EXACT, "num_train_timesteps": (1000,), "timestep_scaling": (1e9,), "original_inference_steps": (60,),
               "rescale_betas_zero_snr": (False, True)},
    ),
    "PNDMScheduler": Plan(
        grids=(
            Grid({**SPACED, "prediction_type": ("epsilon", "v_prediction"), "skip_prk_steps": (False, True)}, COUNTS),
            Grid({**BETAS, "skip_prk_steps": (False, True)}), Grid(TRAINED),
            Grid({**SHORT, "prediction_type": ("epsilon", "v_prediction"), "skip_prk_steps": (False, True)}),
            Grid({"set_alpha_to_one": (True,), "skip_prk_steps": (False, True)}, counts=(5, 10)),
        ),
        differs=_pndm_differs,
        # `v` is mixed as it is and read at the start of a step, as the peer does: that costs an order
        orders=[Order({"prediction_type": p, "skip_prk_steps": skip}, is_, (64, 128, 256, 512))
                for p, is_ in (("epsilon", 2), ("sample", 2), ("v_prediction", 1)) for skip in (False, True)],
        exact={**EXACT, "prediction_type": ("epsilon", "sample"), "skip_prk_steps": (False, True),
               "set_alpha_to_one": (False, True)},
        lags_midway=True,
    ),
    "TCDScheduler": Plan(
        grids=(
            Grid({"prediction_type": PREDICTIONS, "timestep_spacing": SPACINGS, "set_alpha_to_one": (False, True)}, (1, 2, 4, 8)),
            Grid(BETAS), Grid({**ZERO_SNR, "prediction_type": ("v_prediction", "sample")}),
            Grid(SHORT), Grid(TRAINED),
            Grid({"original_inference_steps": (20, 100), "prediction_type": PREDICTIONS}, (1, 7, 20), options=ETAS),
            Grid({"prediction_type": PREDICTIONS}, given=DISTILLED, options=ETAS),
        ),
        exact={**EXACT, "num_train_timesteps": (1000,), "original_inference_steps": (60,),
               "rescale_betas_zero_snr": (False, True)},
        exact_options=({}, *ETAS),
    ),
    "UnCLIPScheduler": Plan(  # the peer steps to `t - 1`: see test_parallel.py for other numbers of steps
        grids=(
            *(Grid({"num_train_timesteps": (count,), "variance_type": ("fixed_small_log", "learned_range"),
                    "prediction_type": ("epsilon", "sample")}, (count,)) for count in (20, 50)),
            Grid({"num_train_timesteps": (20,), "clip_sample": (True, False), "clip_sample_range": (0.5, 2.0)}, (20,)),
        ),
        stochastic=[({"clip_sample": False, "prediction_type": p}, {}) for p in ("epsilon", "sample")],
        exact={key: EXACT[key] for key in ("beta_schedule", "prediction_type", "num_train_timesteps")},
    ),
}
PLANS["DDIMParallelScheduler"] = replace(PLANS["DDIMScheduler"], grids=PLANS["DDIMScheduler"].grids[1:])
PLANS["DDPMParallelScheduler"] = replace(PLANS["DDPMScheduler"], grids=PLANS["DDPMScheduler"].grids[1:])

ENDS = {"final_sigmas_type": ("zero", "sigma_min")}
RAMPED = {"solver_order": (1, 2, 3), "beta_schedule": ("linear", "scaled_linear"), **ENDS}
SMOOTH_END = {"final_sigmas_type": "sigma_min", "use_exponential_sigmas": True}
EXACT_LAMBDA = {**EXACT, "solver_order": (1, 2, 3), "use_karras_sigmas": (False, True), "lower_order_final": (False, True)}

PLANS |= {
    "DEISMultistepScheduler": Plan(
        grids=(
            Grid(SPACED, COUNTS), Grid(BETAS), Grid(SHORT), Grid(TRAINED), Grid(THRESHOLD),
            Grid({"solver_order": (1, 2, 3), "prediction_type": PREDICTIONS, "lower_order_final": (False, True)}, (5, 20)),
            *(Grid({"solver_order": (1, 2, 3), "beta_schedule": ("linear", "scaled_linear"), ramp: (True,)}, (7, 20))
              for ramp in RAMPS),
        ),
        differs=_deis_differs,
        orders=[Order({"solver_order": k, "use_exponential_sigmas": True, "prediction_type": p}, k)
                for k in (1, 2) for p in PREDICTIONS]
        + [Order({"solver_order": 3, "use_exponential_sigmas": True}, 3, (128, 256, 512), given=2)],
        exact=EXACT_LAMBDA,
    ),
    "DPMSolverMultistepScheduler": Plan(
        grids=(
            Grid(SPACED, COUNTS), Grid(BETAS), Grid(ZERO_SNR), Grid(SHORT), Grid(TRAINED), Grid(THRESHOLD),
            *(Grid({"algorithm_type": kinds, "solver_type": ("midpoint", "heun"), "solver_order": (1, 2, 3),
                    "prediction_type": PREDICTIONS, "final_sigmas_type": (end,)}, (3, 10))
              for kinds, end in ((("dpmsolver++", "sde-dpmsolver++"), "zero"), (("dpmsolver", "sde-dpmsolver"), "sigma_min"))),
            Grid({"solver_order": (2, 3), "lower_order_final": (False, True), "euler_at_final": (False, True), **ENDS}, (5, 16)),
            Grid({**THRESHOLD, "algorithm_type": ("dpmsolver", "sde-dpmsolver++"), "final_sigmas_type": ("sigma_min",)}),
            *(Grid({**RAMPED, ramp: (True,)}, (7, 20)) for ramp in (*RAMPS, "use_lu_lambdas")),
            Grid({"lambda_min_clipped": (-5.1, -3.0), "beta_schedule": ("squaredcos_cap_v2",), "timestep_spacing": SPACINGS}),
            Grid({"variance_type": ("learned", "learned_range"), "algorithm_type": ("dpmsolver++", "sde-dpmsolver++")}),
            Grid({"solver_order": (2, 3)}, given=({"timesteps": [900, 700, 300, 100, 5]},)),
        ),
        differs=_dpm_multistep_differs,
        orders=[Order({"solver_order": k, "algorithm_type": a, "solver_type": t, "prediction_type": p, **SMOOTH_END}, k)
                for k, a, t in ((1, "dpmsolver++", "midpoint"), (2, "dpmsolver++", "midpoint"), (2, "dpmsolver", "heun"),
                                (2, "dpmsolver", "midpoint"))
                for p in PREDICTIONS] + [Order({"solver_order": 3, "algorithm_type": "dpmsolver", **SMOOTH_END}, 2)],
        stochastic=[({"algorithm_type": "sde-dpmsolver++", "solver_order": k, "prediction_type": p, "use_karras_sigmas": True},
                     {})
                    for k, p in ((1, "epsilon"), (2, "epsilon"), (2, "v_prediction"), (3, "sample"))]
        + [({"algorithm_type": "sde-dpmsolver", "solver_order": k, "use_karras_sigmas": True,
             "final_sigmas_type": "sigma_min"}, {}) for k in (1, 2, 3)],
        exact={**EXACT_LAMBDA, "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "solver_type": ("midpoint", "heun"), **ENDS,
               "rescale_betas_zero_snr": (False, True), "use_lu_lambdas": (False, True), "euler_at_final": (False, True)},
    ),
    "DPMSolverSinglestepScheduler": Plan(
        grids=(
            Grid({"prediction_type": PREDICTIONS}, COUNTS), Grid(SHORT), Grid(TRAINED), Grid(THRESHOLD),
            *(Grid({"algorithm_type": kinds, "solver_type": ("midpoint", "heun"), "solver_order": (1, 2, 3),
                    "lower_order_final": (False, True), "final_sigmas_type": (end,)}, (1, 2, 3, 8, 9, 10))
              for kinds, end in ((("dpmsolver++", "sde-dpmsolver++"), "zero"), (("dpmsolver", "dpmsolver++"), "sigma_min"))),
            Grid({"algorithm_type": ("dpmsolver", "sde-dpmsolver++"), "final_sigmas_type": ("sigma_min",), "solver_order": (2, 3),
                  "prediction_type": PREDICTIONS, "use_karras_sigmas": (False, True)}),
            *(Grid({**RAMPED, ramp: (True,)}, (7, 20)) for ramp in RAMPS),
            Grid({"lambda_min_clipped": (-5.1, -3.0), "beta_schedule": ("squaredcos_cap_v2",)}),
            Grid({"solver_order": (2, 3)}, given=({"timesteps": [900, 700, 300, 100, 5]},)),
        ),
        differs=_dpm_singlestep_differs,
        orders=[Order({"solver_order": k, "algorithm_type": a, "solver_type": t, **SMOOTH_END}, k, (48, 96, 192, 384))
                for k in (1, 2, 3) for a in ("dpmsolver", "dpmsolver++") for t in ("midpoint", "heun")],
        stochastic=[({"algorithm_type": "sde-dpmsolver++", "solver_order": k, "use_karras_sigmas": True}, {}) for k in (1, 2)],
        exact={**{key: values for key, values in EXACT_LAMBDA.items() if key != "timestep_spacing"}, **ENDS,
               "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "solver_type": ("midpoint", "heun")},
    ),
    "UniPCMultistepScheduler": Plan(
        grids=(
            Grid(SPACED, COUNTS), Grid(BETAS), Grid(ZERO_SNR), Grid(SHORT), Grid(TRAINED), Grid(THRESHOLD),
            Grid({"predict_x0": (True, False), "solver_type": ("bh1", "bh2"), "solver_order": (1, 2, 3), **ENDS,
                  "lower_order_final": (False, True)}, (3, 10)),
            Grid({"predict_x0": (True, False), "solver_order": (2, 3), "final_sigmas_type": ("sigma_min",),
                  "prediction_type": PREDICTIONS, "use_karras_sigmas": (False, True)}),
            Grid({"disable_corrector": ([0, 1], [3, 4, 5], [0, 2, 9]), "solver_order": (1, 2, 3)}),
            *(Grid({**RAMPED, ramp: (True,)}, (7, 20)) for ramp in RAMPS),
        ),
        differs=_unipc_differs,
        orders=[Order({"solver_order": k, "predict_x0": x0, "solver_type": kind, "lower_order_final": False, **SMOOTH_END}, k + 1)
                for k, x0, kind in ((1, True, "bh1"), (1, True, "bh2"), (1, False, "bh2"), (2, True, "bh1"), (2, False, "bh1"),
                                    (2, False, "bh2"), (3, True, "bh2"))],
        exact={**EXACT_LAMBDA, "predict_x0": (False, True), "solver_type": ("bh1", "bh2"), **ENDS,
               "rescale_betas_zero_snr": (False, True), "disable_corrector": ([], [0, 3])},
    ),
}

FLOW = {"use_flow_sigmas": (True,), "prediction_type": ("flow_prediction",)}
GIVEN_FLOW = ({"sigmas": [0.95, 0.7, 0.3]}, {"num_inference_steps": 3, "sigmas": [1.0, 0.7, 0.3]},
              {"sigmas": [0.95, 0.7, 0.3], "timesteps": [951, 700, 300]})
WITH_MU = ({"num_inference_steps": 7, "mu": 1.3},)
OF_FLOW = (
    Grid({"shift": (1.0, 3.0), "num_train_timesteps": (100, 1000)}, COUNTS),
    Grid({"use_dynamic_shifting": (True,), "time_shift_type": ("exponential", "linear"), "shift_terminal": (None, 0.1)},
         given=WITH_MU),
    *(Grid({ramp: (True,), "shift": (3.0,), "shift_terminal": (None, 0.02)}, (7,)) for ramp in RAMPS),
    Grid({"shift": (1.0, 3.0)}, given=GIVEN_FLOW), Grid({}, given=({"timesteps": [950, 700, 300]},)),
)
PLANS |= {
    "FlowMatchEulerDiscreteScheduler": Plan(
        grids=(
            *OF_FLOW, Grid({"invert_sigmas": (True,), "shift": (1.0, 3.0), "use_karras_sigmas": (False, True)}, (1, 7)),
            Grid({"stochastic_sampling": (True,), "shift": (1.0, 3.0), "use_beta_sigmas": (False, True)}, (1, 7)),
        ),
        orders=[Order({"shift": shift}, 1) for shift in (1.0, 3.0)],
        exact={"shift": (1.0, 3.0), "stochastic_sampling": (False, True), "use_karras_sigmas": (False, True)},
        kind=lambda _: "flow_prediction",
    ),
    "FlowMatchHeunDiscreteScheduler": Plan(
        grids=(OF_FLOW[0], Grid({"shift": (1.0, 3.0)}, (2, 10), options=CHURN[:2]),
               Grid({"shift": (3.0,)}, options=({"s_churn": 5.0, "s_tmin": 0.2, "s_tmax": 0.9, "s_noise": 1.1},))),
        orders=[Order({"shift": 1.0}, 2, (8, 16, 32, 64))],
        exact={"shift": (1.0, 3.0)},
        kind=lambda _: "flow_prediction",
    ),
    "FlowMatchLCMScheduler": Plan(
        grids=OF_FLOW,
        exact={"shift": (1.0, 3.0), "use_karras_sigmas": (False, True)},
        kind=lambda _: "flow_prediction",
    ),
}
for _name, _ends in (("DPMSolverMultistepScheduler", ("zero", "sigma_min")), ("UniPCMultistepScheduler", ("zero",)),
                     ("DPMSolverSinglestepScheduler", ("zero", "sigma_min"))):
    PLANS[_name] = replace(PLANS[_name], grids=(
        *PLANS[_name].grids,
        Grid({**FLOW, "flow_shift": (1.0, 3.0), "solver_order": (1, 2, 3), "final_sigmas_type": _ends}, (1, 7, 20)),
        Grid({**FLOW, "use_dynamic_shifting": (True,)}, given=WITH_MU),
    ))
PLANS["UniPCMultistepScheduler"] = replace(PLANS["UniPCMultistepScheduler"], grids=(
    *PLANS["UniPCMultistepScheduler"].grids,
    Grid({**FLOW, "shift_terminal": (0.1, 0.02), "flow_shift": (1.0, 3.0)}, (4, 7)),
    Grid({**FLOW, "use_karras_sigmas": (True,), "sigma_max": (None, 80.0), "sigma_min": (None, 0.02)}, (7,)),
    Grid({**FLOW, "use_dynamic_shifting": (True,), "time_shift_type": ("linear",)}, given=WITH_MU),
    Grid({**FLOW, "flow_shift": (1.0, 3.0)}, given=({"sigmas": np.array([1.0, 0.75, 0.5, 0.25])},)),
    *(Grid({ramp: (True,), "sigma_max": (None, 10.0), "sigma_min": (0.1,), **ENDS}, (7,)) for ramp in RAMPS),
))


def _one_of_a_ramp(config: Entries, steps: int) -> bool:
    """Where the peer's one level of a ramp is also where the trajectory ends."""
    return steps == 1 and any(config.get(ramp) for ramp in RAMPS)


@dataclass(frozen=True)
class Always:
    """A `tau_func` with a name that is the same in every process."""

    value: float

    def __call__(self, timestep: float) -> float:
        return self.value


TAUS = (None, Always(0.0), Always(0.5))
DATA_OR_NOISE = {"algorithm_type": ("data_prediction", "noise_prediction")}
SEEDED = {"noise_sampler_seed": (7,)}
OF_TRIGONOMETRY = np.sin(np.linspace(0.9, 0, 13) * np.pi / 2) ** 2
PLANS |= {
    "DPMSolverMultistepInverseScheduler": Plan(
        grids=(
            Grid(SPACED, COUNTS), Grid(BETAS), Grid(SHORT), Grid(TRAINED), Grid(THRESHOLD),
            Grid({"algorithm_type": ("dpmsolver++", "dpmsolver"), "solver_type": ("midpoint", "heun"), "solver_order": (1, 2, 3),
                  "lower_order_final": (False, True), "euler_at_final": (False, True)}, (10,)),
            *(Grid({"solver_order": (1, 2, 3), ramp: (True,)}, (7, 20)) for ramp in RAMPS),
            Grid({"lambda_min_clipped": (-5.1, -3.0), "beta_schedule": ("squaredcos_cap_v2",), "timestep_spacing": SPACINGS}),
        ),
        differs=lambda config, steps: _repeats(config, steps) or _one_of_a_ramp(config, steps)
        or _goes_nowhere({**config, "final_sigmas_type": "sigma_min"}, steps),
        exact={key: values for key, values in EXACT_LAMBDA.items() if key != "lower_order_final"},
        rising=True,
    ),
    "DPMSolverSDEScheduler": Plan(
        grids=(
            Grid({**SPACED, **SEEDED, "prediction_type": NO_SAMPLE}, (1, 2, 10, 50)), Grid({**BETAS, **SEEDED}),
            Grid({**SHORT, **SEEDED, "prediction_type": NO_SAMPLE}), Grid({**TRAINED, **SEEDED}),
            *(Grid({ramp: (True,), **SEEDED, "timestep_spacing": SPACINGS}, (1, 5, 10)) for ramp in RAMPS),
            Grid({"noise_sampler_seed": (0, 2**40)}, options=({"s_noise": 1.1}, {"s_noise": 0.0})),
            Grid(SEEDED, given=({"num_inference_steps": 4, "num_train_timesteps": 500},)),
        ),
        stochastic=[({"prediction_type": p, "use_karras_sigmas": True}, {}) for p in PREDICTIONS],
        exact={**EXACT, "use_karras_sigmas": (False, True)},
    ),
    "IPNDMScheduler": Plan(
        grids=(Grid({"num_train_timesteps": (1000, 100)}, (*COUNTS, 100)),
               Grid({"trained_betas": (OF_TRIGONOMETRY.tolist(),)}, (12,))),
        differs=lambda config, steps: steps == 1,
        orders=[Order({}, 2, (16, 32, 64, 128), given=3)],  # its weights are those of even steps, and its steps are not even
        exact={"trained_betas": (OF_TRIGONOMETRY.tolist(),)},  # from some signal: without any, the clean sample counts as 0
        kind=lambda _: "v_prediction",
    ),
    "SASolverScheduler": Plan(
        grids=(
            Grid(SPACED, COUNTS), Grid(BETAS), Grid(SHORT), Grid(TRAINED), Grid(THRESHOLD),
            Grid({"predictor_order": (1, 2, 3), "corrector_order": (1, 2, 3), "tau_func": TAUS[:2],
                  **DATA_OR_NOISE}, (8,)),
            Grid({"predictor_order": (2, 4), "corrector_order": (2, 3), "tau_func": TAUS[2:], "lower_order_final": (False, True),
                  "prediction_type": NO_SAMPLE, **DATA_OR_NOISE}, (8,)),
            *(Grid({ramp: (True,), **DATA_OR_NOISE}, (7, 20)) for ramp in RAMPS),
            Grid({"lambda_min_clipped": (-5.1, -3.0), "beta_schedule": ("squaredcos_cap_v2",), "timestep_spacing": SPACINGS}),
        ),
        differs=lambda config, steps: _repeats(config, steps) or _one_of_a_ramp(config, steps),
        orders=[Order({"predictor_order": k, "corrector_order": k, "tau_func": TAUS[1], "algorithm_type": a,
                       "use_exponential_sigmas": True}, k, (64, 128, 256, 512))
                for k, a in ((1, "data_prediction"), (2, "data_prediction"), (2, "noise_prediction"))],
        stochastic=[({"tau_func": Always(1.0), "algorithm_type": a, "use_karras_sigmas": True, "prediction_type": p}, {})
                    for a in DATA_OR_NOISE["algorithm_type"] for p in NO_SAMPLE],
        exact={**{key: values for key, values in EXACT_LAMBDA.items() if key != "solver_order"}, "tau_func": TAUS,
               "predictor_order": (1, 2, 3), "corrector_order": (1, 2, 3)},
    ),
}
for _name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"):
    PLANS[_name] = replace(PLANS[_name], grids=(
        *PLANS[_name].grids, Grid({}, given=({"num_inference_steps": 4, "num_train_timesteps": 500},))))


def cases() -> list[Case]:
    """The trajectories in which the oracle is followed: a third of all combinations, always the same, so that each option is met
    with many others; every one with `CALOTYPE_EVERY_CASE=1`."""
    every_case = combinations()
    if os.environ.get("CALOTYPE_EVERY_CASE"):
        return every_case
    return [case for case in every_case if zlib.crc32(repr(case).encode()) % 3 == 0]


def combinations() -> list[Case]:
    """Every trajectory that the plans list."""
    listed = [Case(name, config, steps, options, given)
              for name, plan in PLANS.items() for grid in plan.grids
              for config, steps, options, given in itertools.product(grid.configs(), grid.counts, grid.options, grid.given)
              if not plan.differs(config, steps)]
    return list({repr(case): case for case in listed}.values())


every_class = every("name", sorted(PLANS))
with_betas = every("name", [name for name in sorted(PLANS) if "beta_end" in make(name).config])
