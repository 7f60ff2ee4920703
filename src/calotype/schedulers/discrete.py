"""Samplers of pictures that are tokens: a model says how likely each token is, and steps draw from that. They are no tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import register_to_config
from ..words import check_choice
from .base import SchedulerOutput, checked_steps
from .entries import SchedulerMixin

_NEVER = 1e-30  # stands for a probability of 0 where logarithms are taken


class VQDiffusionScheduler(SchedulerMixin):
    """Vector-quantized diffusion (Gu et al. 2022): tokens are replaced by others, or masked, until all are masked.

    After t steps a token is the original with probability `a`, each of all tokens with `b` (the original once more) and
    masked with `c`, where `a` and `c` go linearly from the first to the last timestep, and `a + K b + c = 1`. A step goes back by
    Bayes' rule (equations 5 and 11).

    Args:
        num_vec_classes: how many tokens there are, K and the mask, which is the last.
        alpha_cum_start, alpha_cum_end: `a` at the first and the last timestep of training.
        gamma_cum_start, gamma_cum_end: `c` at these.
    """

    @register_to_config
    def __init__(self, num_vec_classes: int, num_train_timesteps: int = 100, alpha_cum_start: float = 0.99999,
                 alpha_cum_end: float = 0.000009, gamma_cum_start: float = 0.000009, gamma_cum_end: float = 0.99999):
        if num_vec_classes < 2:
            raise ValueError(f"num_vec_classes is {num_vec_classes}, but must be at least 2: one token, and the mask")
        self.num_embed, self.mask_class = num_vec_classes, num_vec_classes - 1
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps).flip(0)
        kept = np.insert(np.linspace(alpha_cum_start, alpha_cum_end, num_train_timesteps), 0, 1.0)
        masked = np.insert(np.linspace(gamma_cum_start, gamma_cum_end, num_train_timesteps), 0, 0.0)
        pairs = ((kept[1:] / kept[:-1], 1 - (1 - masked[1:]) / (1 - masked[:-1])),  # of one step
                 (kept[1:], masked[1:]), (kept[:-1], masked[:-1]))  # of all steps, and of all before
        chances = [each for a, c in pairs for each in (a, (1 - a - c) / self.mask_class, c)]
        self._logs = torch.from_numpy(np.log(np.maximum(chances, _NEVER))).float()

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Take the lowest `num_inference_steps` timesteps; where all tokens are masked, every timestep says the same of them."""
        self.num_inference_steps = checked_steps(num_inference_steps, self.config.num_train_timesteps)
        self.timesteps = torch.arange(self.num_inference_steps, device=device).flip(0)

    def q_posterior(self, log_p_x_0: Tensor, x_t: Tensor, t: int | Tensor) -> Tensor:
        """How likely each token is one step before `t` (one, or [B]): `Σ_x0 q(x_before | x_t, x_0) p(x_0 | x_t)`.

        Args:
            log_p_x_0: [B, K, N] what the model says of the clean tokens, which are never masked.
            x_t: [B, N] the tokens.

        Returns:
            [B, K + 1, N] logarithms of probabilities; the last is that of the mask.
        """
        at = torch.as_tensor(t, device=log_p_x_0.device).reshape(-1)
        columns = self._logs.to(log_p_x_0.device)[:, at]
        keep, replace, mask, kept, replaced, masked, kept_before, replaced_before, masked_before = columns[..., None, None]
        is_masked, tokens = x_t[:, None] == self.mask_class, torch.arange(self.mask_class, device=x_t.device)
        here = x_t[:, None] == tokens[:, None]
        reached = torch.where(is_masked, masked, torch.where(here, torch.logaddexp(kept, replaced), replaced))  # q(x_t | x_0)
        clean = log_p_x_0 - reached
        total = clean.logsumexp(1, keepdim=True)
        last = torch.where(is_masked, mask, torch.where(here, torch.logaddexp(keep, replace), replace))  # q(x_t | x_before)
        unmasked = torch.logaddexp(clean + kept_before, total + replaced_before) + last
        return torch.cat([unmasked, (total + masked_before).masked_fill(~is_masked, -math.inf)], dim=1)

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, generator: torch.Generator | None = None,
             return_dict: bool = True) -> Any:
        """The tokens one step before `sample` [B, N], drawn from `q_posterior`; at timestep 0 that is the model's output.

        `model_output` [B, K, N] are logarithms of the probabilities of the clean tokens; the pipeline truncates them.
        """
        _row(self.timesteps, timestep)
        logs = model_output if int(timestep) == 0 else self.q_posterior(model_output, sample, timestep)
        drawn = (logs + _gumbel(logs, generator, _NEVER)).argmax(1)
        return SchedulerOutput(drawn) if return_dict else (drawn,)


class AmusedScheduler(SchedulerMixin):
    """MaskGIT (Chang et al. 2022, section 3.2): draw all tokens at once, keep the surest, mask the rest and ask again.

    `mask_token_id` is the token that is a mask; the share of masked tokens falls like a `"cosine"` or `"linear"`.
    """

    timesteps: Tensor
    temperatures: Tensor
    """[n] of the noise on how sure a token is, step by step."""

    @register_to_config
    def __init__(self, mask_token_id: int, masking_schedule: str = "cosine"):
        check_choice("masking_schedule", masking_schedule, ("cosine", "linear"))

    def set_timesteps(self, num_inference_steps: int, temperature: float | Sequence[float] = (2, 0),
                      device: torch.device | str | None = None) -> None:
        """Choose the number of steps, and `temperature` at the first and the last; one number falls to 0.01."""
        steps = checked_steps(num_inference_steps)
        ends = tuple(temperature) if isinstance(temperature, Sequence) else (temperature, 0.01)
        if len(ends) != 2 or not all(isinstance(end, (int, float)) for end in ends):
            raise ValueError(f"temperature is {temperature!r}, but must be a number, or two: of the first and of the last step")
        self.timesteps = torch.arange(steps, device=device).flip(0)
        self.temperatures = torch.linspace(ends[0], ends[1], steps, dtype=torch.float32, device=device)

    def _share(self, row: int) -> Tensor:
        """The share of tokens that are masked after step `row`; in single precision, by which it is rounded to a number."""
        done = torch.tensor(row + 1, dtype=torch.float32) / len(self.timesteps)
        return 1 - done if self.config.masking_schedule == "linear" else torch.cos(done * math.pi / 2)

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, starting_mask_ratio: float = 1.0,
             generator: torch.Generator | None = None, return_dict: bool = True) -> Any:
        """The tokens after the next draw, and, as `pred_original_sample`, the draw with nothing masked again.

        Args:
            model_output: [B, K, H, W] the logits of each token, or [B, N, K].
            sample: [B, H, W] or [B, N] the tokens, some of them masked.
            starting_mask_ratio: the share of tokens that was masked at the first step.
        """
        row, mask, tokens = self._row(timestep), self.config.mask_token_id, sample.flatten(1)
        logits = model_output.flatten(2).transpose(1, 2) if sample.ndim == 3 else model_output
        chances, unknown = logits.softmax(-1), tokens == mask
        on = generator.device if generator is not None else chances.device
        drawn = torch.multinomial(chances.flatten(0, 1).to(on), 1, generator=generator).to(tokens.device).view_as(tokens)
        following = drawn = torch.where(unknown, drawn, tokens)
        if row < len(self.timesteps) - 1:
            count = (tokens.shape[1] * self._share(row) * starting_mask_ratio).floor().long().to(tokens.device)
            count = torch.minimum(count, unknown.sum(1, keepdim=True) - 1).clamp(min=1)
            chance = chances.gather(2, drawn[..., None])[..., 0].clamp(min=1e-20)
            sure = chance.where(unknown, torch.finfo(chance.dtype).max).log()
            sure = sure + self.temperatures[row] * _gumbel(sure, generator, 1e-20)
            following = torch.where(sure < sure.sort(1).values.gather(1, count), mask, drawn)
        following, drawn = following.view_as(sample), drawn.view_as(sample)
        return SchedulerOutput(following, drawn) if return_dict else (following, drawn)

    def _row(self, timestep: int | Tensor) -> int:
        if not hasattr(self, "timesteps"):
            raise ValueError("call AmusedScheduler.set_timesteps(num_inference_steps) before its step")
        return _row(self.timesteps, timestep)

    def add_noise(self, sample: Tensor, timesteps: int | Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Mask as large a share of the tokens [B, …], drawn at random, as is masked after the step at `timesteps`."""
        share = self._share(self._row(timesteps)).to(sample.device)
        return torch.where(_uniform(sample, generator) < share, self.config.mask_token_id, sample)


def _row(timesteps: Tensor, timestep: int | Tensor) -> int:
    listed = timesteps.tolist()
    if int(timestep) not in listed:
        raise ValueError(f"timestep {int(timestep)} is not one of the scheduler's: {', '.join(map(str, listed[:8]))}, …")
    return listed.index(int(timestep))


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform draws in [0, 1) of the shape of `like`, drawn where the generator lives."""
    on = generator.device if generator is not None else like.device
    return torch.rand(like.shape, generator=generator, device=on, dtype=torch.float32).to(like.device)


def _gumbel(like: Tensor, generator: torch.Generator | None, least: float) -> Tensor:
    """Gumbel noise: the largest of logarithms of probabilities, each with such noise, is a draw."""
    return -(-_uniform(like, generator).clamp(min=least).log()).clamp(min=least).log()
