"""Predictor-corrector sampling of the variance-exploding SDE (Song et al. 2021)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import register_to_config
from ..outputs import Output
from ..randomness import Generators, randn
from .base import SchedulerOutput, checked_steps
from .files import SchedulerMixin
from .noise import Array, exponential_ramp
from .prediction import Prediction
from .table import Row, State, Table
from .ve import ve_levels


@dataclass
class SdeVeOutput(Output):
    """What `ScoreSdeVeScheduler.step_pred` returns.

    Attributes:
        prev_sample: [B, …] the next, less noisy sample.
        prev_sample_mean: [B, …] the same before fresh noise is added: what the last step ends with.
    """

    prev_sample: Tensor
    prev_sample_mean: Tensor


class ScoreSdeVeScheduler(SchedulerMixin):
    """The variance-exploding SDE `dx = sqrt(d sigma²/dt) dw`, reversed (Song et al. 2021, algorithm 2).

    At each level, `step_correct` is called `correct_steps` times, each with a new output of the model, and then
    `step_pred` once. The model says the score, `-noise / sigma`, and is told `sigmas` at `timesteps`, which fall from 1.
    No table: how far the corrector goes depends on the size of the score.

    Args:
        num_train_timesteps: the number of levels before `set_timesteps`.
        snr: the signal-to-noise ratio of the corrector, `r` in the paper.
        sigma_min, sigma_max: the levels at times 0 and 1; between them they are geometric.
        sampling_eps: the last time.
        correct_steps: Langevin steps at each level.
    """

    timesteps: Tensor
    """[n] falling from 1 to `sampling_eps`."""
    sigmas: Tensor
    """[n] the levels at `timesteps`: what the model is told."""
    discrete_sigmas: Tensor
    """[n] rising: the levels between which `step_pred` goes."""

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 2000, snr: float = 0.15, sigma_min: float = 0.01, sigma_max: float = 1348.0,
        sampling_eps: float = 1e-5, correct_steps: int = 1,
    ):
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min is {sigma_min} and sigma_max is {sigma_max}, but must be 0 < sigma_min < sigma_max")
        self.init_noise_sigma = sigma_max
        self.set_timesteps(num_train_timesteps)

    def table(self, num_inference_steps: int) -> PredictorCorrector:
        """The table of one generation. Pure: nothing on the scheduler changes."""
        own = copy.copy(self)
        own.set_timesteps(num_inference_steps)
        sigmas, variances = own.sigmas.double().numpy(), own._variances.double().numpy()[::-1]
        return PredictorCorrector(sigmas, variances, self.config.correct_steps, self.config.snr, self.config.sigma_max)

    def set_timesteps(
        self, num_inference_steps: int, sampling_eps: float | None = None, device: torch.device | str | None = None
    ) -> None:
        """Choose the times, and the levels at them; `set_sigmas` after it is only needed for other levels."""
        steps = checked_steps(num_inference_steps)
        end = self.config.sampling_eps if sampling_eps is None else sampling_eps
        self.timesteps = torch.linspace(1, end, steps, dtype=torch.float32, device=device)
        self.set_sigmas(steps)

    def set_sigmas(
        self, num_inference_steps: int, sigma_min: float | None = None, sigma_max: float | None = None,
        sampling_eps: float | None = None,
    ) -> None:
        """Place the levels between other ends than the config's. Times that are as many, and end there, are kept."""
        if sampling_eps is not None or num_inference_steps != len(self.timesteps):
            self.set_timesteps(num_inference_steps, sampling_eps, self.timesteps.device)
        low = self.config.sigma_min if sigma_min is None else sigma_min
        high = self.config.sigma_max if sigma_max is None else sigma_max
        device, times = self.timesteps.device, self.timesteps.cpu().double().numpy()
        self.sigmas = torch.from_numpy(low * (high / low) ** times).float().to(device)
        levels = exponential_ramp(low, high, num_inference_steps)
        self.discrete_sigmas = torch.from_numpy(levels).float().to(device)
        self._variances = torch.from_numpy(np.diff(levels**2, prepend=0.0)).float().to(device)  # from each to the one below

    def step_pred(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """One level down along the reverse SDE, by the score at `sample` [B, …]; `timestep` is one, or [B] (equation 46).

        Returns:
            `SdeVeOutput`, or a tuple of both samples without `return_dict`.
        """
        time = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).reshape(-1)
        at = (time * (len(self._variances) - 1) + 1e-3).long()  # a time that is rounded down is still that time
        variance = self._variances.to(sample.device)[at].reshape(-1, *[1] * (sample.ndim - 1)).to(sample.dtype)
        mean = sample + variance * model_output
        following = mean + variance.sqrt() * randn(sample.shape, generator, sample.device, sample.dtype)
        return SdeVeOutput(following, mean) if return_dict else (following, mean)

    def step_correct(
        self, model_output: Tensor, sample: Tensor, generator: Generators = None, return_dict: bool = True
    ) -> Any:
        """A Langevin step at the same level, as long as `snr` says by the norms of noise and score (algorithm 4).

        The norms are means over the batch, so that a sample depends on its batch; with a list of generators, each sample's own.
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

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


class PredictorCorrector(Table):
    """The rows of `ScoreSdeVeScheduler`: at each level the corrector's, which are not linear, and then the predictor's.

    The last row ends with the mean: its noise is drawn, and nobody looks at it.

    Args:
        sigmas: [n] falling, what the model is told. variances: [n] of the step from each level to the next.
        correct_steps, snr: of the corrector. sigma_max: of the noise to begin with.
    """

    def __init__(self, sigmas: Array, variances: Array, correct_steps: int, snr: float, sigma_max: float):
        calls = correct_steps + 1
        told = np.repeat(sigmas, calls)
        rows = []
        for i, variance in enumerate(np.repeat(variances, calls)):
            predicts, last = i % calls == correct_steps, i == len(told) - 1
            rows.append(Row(x={i: 1.0}, m={i: float(variance)} if predicts else {},
                            noise=math.sqrt(variance) if predicts and not last else 0.0))
        levels = ve_levels(told, told)
        one = np.ones_like(told)
        reading = Prediction(one, told**2, np.zeros_like(told), -told)  # the score is -noise / sigma
        super().__init__(levels, rows, reading, "output", None, torch.from_numpy(told).float(), one.tolist(), sigma_max)
        self.ends_step = [i % calls == correct_steps for i in range(len(told))]
        self._snr = snr

    def new_state(self) -> State:
        return [None]  # the norms of the noise that was drawn last

    def draw(self, i: int, x: Tensor, generator: Generators, dtype: torch.dtype, state: State) -> Tensor | None:
        noise = randn(x.shape, generator, x.device, dtype)
        state[0] = _norms(noise, apart=isinstance(generator, (list, tuple)))
        return noise

    def step(
        self, i: int | Tensor, output: Tensor, x: Tensor, state: State, noise: Tensor | None = None, x0: Tensor | None = None
    ) -> Tensor:
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
