"""How far reconstructed pictures are from their originals: in their values, in their outlines, and as a network sees them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..words import check_choice

RECONSTRUCTIONS = ("l1", "l2", "huber")
_BEND = 0.1  # of values in [-1, 1]: where "huber" turns from a square into a line


def pixel_distance(made: Tensor, originals: Tensor, kind: str = "l1") -> Tensor:
    """The mean distance of values: a scalar.

    Args:
        made, originals: [B, C, H, W] in [-1, 1].
        kind: `"l1"`, the absolute difference; `"l2"`, its square; `"huber"`, the absolute difference less 0.05, but a square
            below 0.1 (Huber 1964), so that it is smooth.

    Raises:
        ValueError: there is no such kind.
    """
    check_choice("reconstruction", kind, RECONSTRUCTIONS)
    if kind == "huber":
        return F.smooth_l1_loss(made, originals, beta=_BEND)
    return F.l1_loss(made, originals) if kind == "l1" else F.mse_loss(made, originals)


def edge_distance(made: Tensor, originals: Tensor) -> Tensor:
    """The mean absolute difference of the pictures' gradients: a scalar.

    Gradients are differences of neighbours, across and down, as in Mathieu et al. 2016, equation 6 (alpha = 1); but they keep
    their signs, since an edge from dark to light is not one from light to dark.

    Args:
        made, originals: [B, C, H, W], at least 2 pixels each way.
    """
    difference = made - originals
    across, down = difference.diff(dim=-1), difference.diff(dim=-2)
    return 0.5 * (across.abs().mean() + down.abs().mean())


def signal_to_noise(made: Tensor, originals: Tensor) -> Tensor:
    """[B] the peak signal-to-noise ratio (PSNR) of pictures [B, C, H, W] in [-1, 1] (the made ones are clamped to it), in dB."""
    error = (made.clamp(-1, 1) - originals).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


class PerceptualDistance(nn.Module):
    """How differently the encoder of an autoencoder sees two pictures.

    It is the distance of Zhang et al. 2018 (LPIPS), equation 1, without the learned weights: features at several depths, of
    unit length in each place over the channels, their squared difference, averaged over places and then over depths. The
    features are those of each level of the encoder, which was trained on the pictures in question: no other network is needed.

    Args:
        encoder: the encoder of an `AutoencoderKL`. It is copied and never trained.
    """

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder: Any = copy.deepcopy(encoder).requires_grad_(False).eval()

    def features(self, pictures: Tensor) -> list[Tensor]:
        """What it sees in pictures [B, 3, H, W]: [B, C, h, w] of each level, of unit length over C, the largest first."""
        x, seen = self.encoder.conv_in(pictures), []
        for block in self.encoder.down_blocks:
            x, passed = block(x, None, None, _run)
            seen.append(F.normalize(passed[0].float(), dim=1))
        return seen

    def forward(self, made: Tensor, originals: Tensor) -> Tensor:
        """The distance of `made` from `originals`, [B, 3, H, W] in [-1, 1]: a scalar. Gradients are of `made` alone."""
        with torch.no_grad():
            wanted = self.features(originals)
        differences = [(one - other).square().sum(dim=1).mean()
                       for one, other in zip(self.features(made), wanted, strict=True)]
        return torch.stack(differences).mean()


def _run(block: Any, *args: Any) -> Any:
    return block(*args)
