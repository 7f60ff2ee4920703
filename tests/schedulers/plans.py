"""How each scheduler class is tested: one entry a class, and every test of this folder takes it up.

To add a scheduler, add its `Plan` to `PLANS`.
"""

from __future__ import annotations

import itertools

import numpy as np

from .cases import Case, Entries, Grid, Order, Plan, every

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


COUNTS = (1, 2, 4, 7, 10, 50)
SPACED = {"timestep_spacing": SPACINGS, "prediction_type": PREDICTIONS, "steps_offset": (0, 1)}
BETAS = {"beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"), "timestep_spacing": ("leading", "trailing")}
SHORT = {"num_train_timesteps": (100,), "beta_start": (0.001,), "beta_end": (0.1,), "prediction_type": PREDICTIONS}
TRAINED = {"trained_betas": (np.linspace(1e-4, 0.03, 1000).tolist(),)}
THRESHOLD = {"thresholding": (True,), "sample_max_value": (1.0, 1.5), "dynamic_thresholding_ratio": (0.9, 0.995),
             "prediction_type": PREDICTIONS}
ZERO_SNR = {"rescale_betas_zero_snr": (True,), "prediction_type": ("sample", "v_prediction"), **BETAS}
EXACT = {"timestep_spacing": SPACINGS, "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
         "prediction_type": PREDICTIONS, "num_train_timesteps": (100, 1000)}
CHURN = ({}, {"s_churn": 5.0}, {"s_churn": 50.0, "s_tmin": 0.5, "s_tmax": 20.0, "s_noise": 1.1})
RAMPS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")

PLANS: dict[str, Plan] = {
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
    ),
}


def cases() -> list[Case]:
    """Every trajectory in which the oracle is followed."""
    listed = [Case(name, config, steps, options, given)
              for name, plan in PLANS.items() for grid in plan.grids
              for config, steps, options, given in itertools.product(grid.configs(), grid.counts, grid.options, grid.given)
              if not plan.differs(config, steps)]
    return list({repr(case): case for case in listed}.values())


every_class = every("name", sorted(PLANS))
