"""Schedulers' configs: their file, and what the entries are called, their types and what they mean, said once for all classes.

A class names its own, with defaults and in order, by `@takes(…)`: they are the arguments of its `__init__`, and its config.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypedDict, TypeVar, get_args, get_origin, get_type_hints

from ..config import Configured, frozen, register_to_config
from ..words import check_choice, check_keywords

if TYPE_CHECKING:
    from typing_extensions import Unpack

_Class = TypeVar("_Class", bound=type)
_Self = TypeVar("_Self", bound="SchedulerMixin")
End = Literal["zero", "sigma_min"]
Floats = Sequence[float]


class Entries(TypedDict, total=False):
    """All that `takes` can name."""

    num_train_timesteps: Annotated[int, "the length of the training process, or the number of levels before `set_timesteps`"]
    beta_start: Annotated[float, "the variance of the noise that the first step of training adds"]
    beta_end: Annotated[float, "… and the last"]
    beta_schedule: Annotated[str, "how it grows between these: one of `noise.BETA_SCHEDULES`, see `noise.make_betas`"]
    trained_betas: Annotated[Floats | None, "that of every step instead; IPNDM: [n + 1] the levels, with the end"]
    rescale_betas_zero_snr: Annotated[bool, "make the last training timestep (almost) pure noise: `noise.zero_terminal_snr`"]
    prediction_type: Annotated[str, "what the model predicts: see `prediction.read_prediction`"]
    clip_sample: Annotated[bool, "clip the predicted clean sample; for models of pixels"]
    clip_sample_range: Annotated[float, "… to ± this"]
    clip_denoised: Annotated[bool, "clip the predicted clean sample to [-1, 1]"]
    thresholding: Annotated[bool, "clip each sample at a quantile of its own: `prediction.dynamic_threshold`"]
    dynamic_thresholding_ratio: Annotated[float, "the quantile of `thresholding`"]
    sample_max_value: Annotated[float, "the highest value at which `thresholding` clips"]
    # -- where the levels are
    timestep_spacing: Annotated[Literal["linspace", "leading", "trailing"], "how timesteps are placed: `NoiseSchedule.spaced`"]
    steps_offset: Annotated[int, "added to the timesteps of `leading` spacing"]
    set_alpha_to_one: Annotated[bool, "end (or, for inversion, begin) at a clean sample; otherwise at training timestep 0"]
    final_sigmas_type: Annotated[End, "end at a clean sample, or at the smallest level of training or the ramp"]
    use_karras_sigmas: Annotated[bool | None, "place the levels by the ramp of Karras et al. 2022; of all ramps at most one"]
    use_exponential_sigmas: Annotated[bool | None, "… evenly in log(sigma)"]
    use_beta_sigmas: Annotated[bool | None, "… by quantiles of a beta distribution"]
    use_lu_lambdas: Annotated[bool, "… evenly in lambda (Lu et al. 2022)"]
    sigma_min: Annotated[float | None, "the lowest level of the ramp; `None`: what the timesteps give"]
    sigma_max: Annotated[float | None, "the highest level of the ramp; `None`: what the timesteps give"]
    sigma_schedule: Annotated[Literal["karras", "exponential"], "the ramp"]
    rho: Annotated[float, "the exponent of the ramp of Karras"]
    interpolation_type: Annotated[Literal["linear", "log_linear"], "levels between training's, or even in log(sigma)"]
    timestep_type: Annotated[Literal["discrete", "continuous"], "the model is told a timestep, or `log(sigma) / 4`"]
    lambda_min_clipped: Annotated[float, "no level whose log-SNR is below this, for `squaredcos_cap_v2`"]
    sigma_data: Annotated[float, "the deviation of clean samples"]
    original_inference_steps: Annotated[int, "steps of the solver that was distilled; `timesteps` are some of its"]
    # -- of flow models
    use_flow_sigmas: Annotated[bool, "the model is one of flow matching: levels are shares of noise"]
    flow_shift: Annotated[float, "how much the levels are shifted towards noise: `flow.shifted`"]
    shift: Annotated[float, "as `flow_shift`"]
    use_dynamic_shifting: Annotated[bool, "shift by `mu`, a number that `set_timesteps` and `table` are given, instead"]
    time_shift_type: Annotated[Literal["exponential", "linear"], "by `e^mu`, or by `mu` itself"]
    shift_terminal: Annotated[float | None, "stretch the levels so that the last is this"]
    base_shift: Annotated[float | None, "for pipelines, which choose `mu`: that of pictures of `base_image_seq_len` tokens"]
    base_image_seq_len: Annotated[int, "see `base_shift`"]
    max_shift: Annotated[float | None, "the `mu` of pictures of `max_image_seq_len` tokens"]
    max_image_seq_len: Annotated[int, "see `max_shift`"]
    invert_sigmas: Annotated[bool, "`sigmas`, and what the model is told, are shares of picture, and it says `x0 - noise`"]
    stochastic_sampling: Annotated[bool, "go to the clean sample and noise it anew, in every step"]
    scale_factors: Annotated[Floats | None, "how much larger than at first a sample is after each step but the last"]
    upscale_mode: Annotated[str, "the mode of `torch.nn.functional.interpolate` that resizes it"]
    # -- of solvers
    solver_order: Annotated[Literal[1, 2, 3], "how many outputs a step mixes; 2 is good for guided generation"]
    algorithm_type: Annotated[str, "what is integrated: the clean sample (`++`, `data`) or the noise; `sde-` draws fresh noise"]
    solver_type: Annotated[str, "how moments are taken: see the class"]
    lower_order_final: Annotated[bool, "end with lower orders (multistep DPM-Solvers and DEIS: if there are fewer than 15 steps)"]
    euler_at_final: Annotated[bool, "end with a step of first order"]
    predict_x0: Annotated[bool, "integrate the clean sample; otherwise the noise"]
    predictor_order: Annotated[int, "how many outputs the predictor mixes, 1 or more"]
    corrector_order: Annotated[int, "… and the corrector, whose first is the new one"]
    disable_corrector: Annotated[Sequence[int], "rows whose result is left uncorrected"]
    solver_p: Annotated[Any, "another scheduler as the predictor: see the class"]
    skip_prk_steps: Annotated[bool, "begin without Runge-Kutta steps"]
    # -- of fresh noise
    variance_type: Annotated[str | None, "of the fresh noise, or whether the model learned it: one of `ddpm.VARIANCE_TYPES`"]
    tau_func: Annotated[Callable[[float], float] | None, "the share of fresh noise at a timestep, from 0 (the ODE) to 1 (DDPM's)"]
    eta: Annotated[float, "0 is deterministic, 1 has the noise of DDPM"]
    s_noise: Annotated[float, "scales the fresh noise"]
    noise_sampler_seed: Annotated[int | Sequence[int] | None, "of the noise's path, or each sample's; `None`: from the generator"]
    timestep_scaling: Annotated[float, "how quickly the share of the sample in the consistency function vanishes"]
    snr: Annotated[float, "the signal-to-noise ratio of the corrector, `r` in the paper"]
    sampling_eps: Annotated[float, "the last time"]
    correct_steps: Annotated[int, "Langevin steps at each level"]


BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "trained_betas": None}
LATENT_BETAS = BETAS | {"beta_start": 0.00085, "beta_end": 0.012}
RAMPS: dict[str, Any] = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False)
THRESHOLD: dict[str, Any] = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_TOLD = get_type_hints(Entries, include_extras=True)


def takes(**entries: Unpack[Entries]) -> Callable[[_Class], _Class]:
    """Give a scheduler an `__init__` of these arguments, which checks them and prepares the scheduler."""
    types = {name: get_args(_TOLD[name])[0] for name in entries}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, default=frozen(value), annotation=types[name]) for name, value in entries.items()]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for name, allowed in types.items():
            if get_origin(allowed) is Literal:
                check_choice(name, self.config[name], get_args(allowed))
        self._prepare()

    __init__.__signature__ = inspect.Signature([inspect.Parameter("self", kind), *parameters])  # type: ignore[attr-defined]
    __init__.__doc__ = "\n".join(["Args:", *(f"    {name}: {get_args(_TOLD[name])[1]}" for name in entries)])

    def decorate(cls: _Class) -> _Class:
        cls.__init__ = register_to_config(__init__)  # type: ignore[misc]
        return cls

    return decorate


class SchedulerMixin(Configured):
    """Base of everything called a scheduler, also of those that are no tables: its config, and loading and saving of that."""

    config_name = "scheduler_config.json"
    order: ClassVar[int] = 1
    """Model calls a step, where all steps have as many."""

    if TYPE_CHECKING:  # each class has its own: see `entries.takes`
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    @classmethod
    def from_pretrained(cls: type[_Self], pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> _Self:
        """Make a scheduler from the `scheduler_config.json` of a folder, a Hub repository or a bundled checkpoint.

        `subfolder` says where in it; other keyword arguments replace config entries.
        """
        config, entries = cls.load_config(pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs)
        check_keywords(f"{cls.__name__}.from_pretrained", entries, cls._arguments())
        made: _Self = cls.from_config(config, **entries)
        return made

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `scheduler_config.json` into a folder."""
        self.save_config(save_directory)

    @property
    def compatibles(self) -> list[type[Any]]:
        """The scheduler classes that can stand in this one's place, and that its config can be given to."""
        return []

    @classmethod
    def _known_elsewhere(cls) -> set[str]:
        from . import ALL

        return {name for other in ALL for name in other._arguments()}
