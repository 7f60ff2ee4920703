"""How much the loss at each level counts, by name.

What a paper says by the signal-to-noise ratio is written as a weight of the clean sample's squared error, and is divided by how
much larger that error is in what the network says. So a weighting means the same whatever the network predicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SNR_WEIGHTINGS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "min_snr": lambda snr, gamma: snr.clamp(max=gamma),
    "soft_min_snr": lambda snr, gamma: 1 / (1 / snr + 1 / gamma),
    "truncated_snr": lambda snr, _: snr.clamp(min=1),
    "p2": lambda snr, _: 1 / (1 + 1 / snr),
    "debias": lambda snr, _: torch.sqrt(snr),
}
"""Weights [B] of the clean sample's squared error, of the SNR `alpha² / sigma²` [B] and a `snr_gamma`.

`min_snr`: Hang et al. 2023 ("Efficient Diffusion Training via Min-SNR Weighting Strategy"), gamma 5; so
`min(SNR, gamma) / SNR` for epsilon and `min(SNR, gamma) / (SNR + 1)` for v. `soft_min_snr`: Crowson et al. 2024 ("Scalable
High-Resolution Pixel-Space Image Synthesis with Hourglass Diffusion Transformers"), gamma 4. `truncated_snr`: Salimans & Ho 2022,
section 4. `p2`: Choi et al. 2022 ("Perception Prioritized Training of Diffusion Models") with k = gamma = 1, so `1 / (1 + SNR)`
for epsilon. `debias`: Yu et al. 2023 ("Debias the Training of Diffusion Models"), `1 / sqrt(SNR)` for epsilon.
"""

GAMMAS = {"min_snr": 5.0, "soft_min_snr": 4.0}
"""The weightings that have a `snr_gamma`, and what it is if it is not given."""

FLOW_WEIGHTINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigma_sqrt": lambda sigma: sigma.clamp(min=1e-3) ** -2,
    "cosmap": lambda sigma: 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2)),
}
"""Weights [B] of the loss of flow models, of their share of noise [B].

`sigma_sqrt`: `1 / sigma²`, as of 0.001 below that, where sampling never asks. `cosmap`: as if the levels were those of the cosine
schedule (Esser et al. 2024, equation 21).
"""
