"""Predictor-corrector sampling of the variance-exploding SDE (Song et al. 2021)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..outputs import Output
from ..randomness import Generators, randn
from .base import SchedulerOutput, checked_steps
from .entries import SchedulerMixin, takes
from .noise import Array, exponential_ramp, ve_levels
from .prediction import Prediction
from .table import Row, State, Table


@dataclass
class SdeVeOutput(Output):
    """The next sample [B, …], and the same before fresh noise is added: what the last step ends with."""

    prev_sample: Tensor
    prev_sample_mean: Tensor


@takes(num_train_timesteps=2000, snr=0.15, sigma_min=0.01, sigma_max=1348.0, sampling_eps=1e-5, correct_steps=1)
class ScoreSdeVeScheduler(SchedulerMixin):
    """The variance-exploding SDE `dx = sqrt(d sigma²/dt) dw`, reversed (Song et al. 2021, algorithm 2).

    At each level, `step_correct` is called `correct_steps` times, each with a new output of the model, and then
    `step_pred` once. The model says the score, `-noise / sigma`, and is told `sigmas` at `timesteps`, which fall from 1.
    Levels are geometric. No step by a table: how far the corrector goes depends on the size of the score.
    """

    timesteps: Tensor  # [n] falling from 1 to `sampling_eps`
    sigmas: Tensor  # [n] the levels at `timesteps`: what the model is told
    discrete_sigmas: Tensor  # [n] rising: the levels between which `step_pred` goes

    def _prepare(self) -> None:
        low, high = self.config.sigma_min, self.config.sigma_max
        if not 0 < low < high:
            raise ValueError(f"sigma_min is {low} and sigma_max is {high}, but must be 0 < sigma_min < sigma_max")
        self.init_noise_sigma = high
        self.set_timesteps(len(self))

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def table(self, num_inference_steps: int) -> PredictorCorrector:
        """The table of one generation. Pure: nothing on the scheduler changes."""
        own = copy.copy(self)
        own.set_timesteps(num_inference_steps)
        sigmas, variances = own.sigmas.double().numpy(), own._variances.double().numpy()[::-1]
        return PredictorCorrector(sigmas, variances, self.config.correct_steps, self.config.snr, self.config.sigma_max)

    def set_timesteps(self, num_inference_steps: int, sampling_eps: float | None = None,
                      device: torch.device | str | None = None) -> None:
        """Choose the times, and the levels at them; `set_sigmas` after it is only needed for other levels."""
        steps = checked_steps(num_inference_steps)
        end = self.config.sampling_eps if sampling_eps is None else sampling_eps
        self.timesteps = torch.linspace(1, end, steps, dtype=torch.float32, device=device)
        self.set_sigmas(steps)

    def set_sigmas(self, num_inference_steps: int, sigma_min: float | None = None, sigma_max: float | None = None,
                   sampling_eps: float | None = None) -> None:
        """Place the levels between other ends than the config's. Times that are as many, and end there, are kept."""
        if sampling_eps is not None or num_inference_steps != len(self.timesteps):
            self.set_timesteps(num_inference_steps, sampling_eps, self.timesteps.device)
        low = self.config.sigma_min if sigma_min is None else sigma_min
        high = self.config.sigma_max if sigma_max is None else sigma_max
        times, levels = self.timesteps.cpu().double().numpy(), exponential_ramp(low, high, num_inference_steps)
        down = np.diff(levels**2, prepend=0.0)  # the variance from each level to the one below
        self.sigmas, self.discrete_sigmas, self._variances = (
            torch.from_numpy(each).float().to(self.timesteps.device) for each in (low * (high / low) ** times, levels, down))

    def step_pred(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, generator: Generators = None,
                  return_dict: bool = True) -> Any:
        """One level down along the reverse SDE, by the score at `sample` [B, …]; `timestep` is one, or [B] (equation 46)."""
        time = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).reshape(-1)
        at = (time * (len(self._variances) - 1) + 1e-3).long()  # a time that is rounded down is still that time
        variance = self._variances.to(sample)[at].reshape(-1, *[1] * (sample.ndim - 1))
        mean = sample + variance * model_output
        following = mean + variance.sqrt() * randn(sample.shape, generator, sample.device, sample.dtype)
        return SdeVeOutput(following, mean) if return_dict else (following, mean)

    def step_correct(self, model_output: Tensor, sample: Tensor, generator: Generators = None, return_dict: bool = True) -> Any:
        """A Langevin step at the same level (algorithm 4).

        Its norms are means over the batch, so that a sample depends on its batch; with a list of generators, each sample's own.
        """
        noise = randn(sample.shape, generator, sample.device, sample.dtype)
        norms = _norms(noise, apart=isinstance(generator, (list, tuple)))
        following = _corrected(sample, model_output, noise, norms, self.config.snr)
        return SchedulerOutput(following) if return_dict else (following,)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample, as it is."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x0 + sigma · noise` at levels `timesteps`, [B] whole numbers that count `discrete_sigmas` up from 0."""
        sigma = self.discrete_sigmas.to(original_samples)[timesteps.to(original_samples.device)]
        return original_samples + sigma.reshape(-1, *[1] * (original_samples.ndim - 1)) * noise


class PredictorCorrector(Table):
    """The rows of `ScoreSdeVeScheduler`: at each of `sigmas` the corrector's, which are not linear, and then the predictor's.

    `variances` are of the steps from each level to the next. The last row ends with the mean: its noise is drawn and ignored.
    """

    def __init__(self, sigmas: Array, variances: Array, correct_steps: int, snr: float, sigma_max: float):
        calls = correct_steps + 1
        told, down, zero = np.repeat(sigmas, calls), np.repeat(variances, calls).tolist(), np.zeros(len(sigmas) * calls)
        predicts = [i % calls == correct_steps for i in range(len(told))]
        rows = [Row(x={i: 1.0}, m={i: down[i] * predicts[i]}, noise=math.sqrt(down[i]) * (predicts[i] and i < len(told) - 1))
                for i in range(len(told))]
        reading = Prediction(zero + 1, told**2, zero, -told)  # the score is -noise / sigma
        timesteps, scales = torch.from_numpy(told).float(), [1.0] * len(told)
        super().__init__(ve_levels(told, told), rows, reading, "output", None, timesteps, scales, sigma_max)
        self.ends_step, self._snr = predicts, snr

    def new_state(self) -> State:
        return [None]  # the norms of the noise that was drawn last

    def draw(self, i: int, x: Tensor, generator: Generators, dtype: torch.dtype, state: State) -> Tensor | None:
        noise = randn(x.shape, generator, x.device, dtype)
        state[0] = _norms(noise, apart=isinstance(generator, (list, tuple)))
        return noise

    def step(self, i: int | Tensor, output: Tensor, x: Tensor, state: State, noise: Tensor | None = None,
             x0: Tensor | None = None) -> Tensor:
        if isinstance(i, Tensor):
            raise ValueError("samples of a predictor-corrector go through the rows together: give one row")
        if self.ends_step[i]:
            return super().step(i, output, x, [], noise, x0)
        assert noise is not None and state[0] is not None
        return _corrected(x, output, noise, state[0], self._snr)


def _norms(tensor: Tensor, apart: bool) -> Tensor:
    """The norms of samples [B, …]: [B] each its own, or their mean [1], in single precision at least."""
    norms = tensor.flatten(1).to(torch.promote_types(tensor.dtype, torch.float32)).norm(dim=1)
    return norms if apart else norms.mean()[None]


def _corrected(sample: Tensor, score: Tensor, noise: Tensor, noise_norms: Tensor, snr: float) -> Tensor:
    """A Langevin step as long as `snr` says by the norms of noise and score (Song et al. 2021, algorithm 4)."""
    size = 2 * (snr * noise_norms / _norms(score, apart=len(noise_norms) > 1)) ** 2
    size = size.reshape(-1, *[1] * (sample.ndim - 1))
    return (sample + size * score + (2 * size).sqrt() * noise).to(sample.dtype)
