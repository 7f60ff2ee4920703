"""How far two sets of pictures, or two pictures, are from each other: FID and KID of features; PSNR and SSIM of pixels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def fid(features: Tensor, reference: Tensor) -> float:
    """The Fréchet distance between two samples taken for normal distributions (Heusel et al. 2017, eq. 6).

    `|m₁ - m₂|² + tr(C₁ + C₂ - 2 (C₁ C₂)^½)`. With `Cᵢ = Aᵢᵀ Aᵢ`, the eigenvalues of `C₁ C₂` are the squared singular values
    of `A₁ A₂ᵀ`, so the trace of the root is their sum: no root of a matrix, and nothing that could become complex.

    It falls with the number of pictures for the same distribution: compare only values of equally many. With fewer
    pictures than channels the covariances are singular, and the value says little.

    Args:
        features: [N, D] of the pictures judged. reference: [M, D] of what they should be like.

    Returns:
        0 or more, in squared units of the features.

    Raises:
        ValueError: fewer than two pictures, other channels, or values that are not finite.
    """
    one, other = _checked(features, reference)
    between = (one.mean(0) - other.mean(0)).square().sum()
    factors = [_factor(each) for each in (one, other)]
    shared = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    return max(0.0, float(between + sum(each.square().sum() for each in factors) - 2 * shared))


def _factor(features: Tensor) -> Tensor:
    """[min(N, D), D] a matrix A with `Aᵀ A` the unbiased covariance of features [N, D]."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(centred, mode="r").R if len(centred) > centred.shape[1] else centred


def kid(
    features: Tensor, reference: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The squared maximum mean discrepancy under the kernel `(x·y / D + 1)³` (Bińkowski et al. 2018): unbiased.

    Args:
        features: [N, D]. reference: [M, D].
        subsets, subset_size: the mean over so many random subsets of so many of each; of all that there are, if both sets
            have no more, which is then one estimate.
        seed: of the subsets.

    Returns:
        The mean, which is about 0 (and may be below it) for samples of one distribution, and its standard deviation over
        the subsets (NaN if there is one).

    Raises:
        ValueError: fewer than two pictures, other channels, values that are not finite, or no subsets.
    """
    one, other = _checked(features, reference)
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"subsets is {subsets} and subset_size is {subset_size}, but must be at least 1 and 2")
    sizes = [min(subset_size, len(each)) for each in (one, other)]
    if sizes == [len(one), len(other)]:
        return _mmd(one, other), float("nan")
    random = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        chosen = [each[random.choice(len(each), size, replace=False)] for each, size in zip((one, other), sizes, strict=True)]
        values.append(_mmd(*chosen))
    return float(np.mean(values)), float(np.std(values))


def _mmd(one: Tensor, other: Tensor) -> float:
    """Gretton et al. 2012, eq. 3, which leaves out what each is with itself."""
    def within(each: Tensor) -> Tensor:
        kernel = _kernel(each, each)
        return (kernel.sum() - kernel.diagonal().sum()) / (len(each) * (len(each) - 1))

    return float(within(one) + within(other) - 2 * _kernel(one, other).mean())


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    return (one @ other.T / one.shape[1] + 1) ** 3


def _checked(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    for name, each in (("features", features), ("reference", reference)):
        if each.ndim != 2 or len(each) < 2:
            raise ValueError(f"{name} are {list(each.shape)}, but must be [N, D] of at least 2 pictures")
        if not torch.isfinite(each).all():
            raise ValueError(f"{name} have values that are not finite")
    if features.shape[1] != reference.shape[1]:
        raise ValueError(f"features have {features.shape[1]} channels, and reference has {reference.shape[1]}")
    return features.double(), reference.double()


def psnr(pictures: Tensor, reference: Tensor) -> Tensor:
    """[B] the peak signal-to-noise ratio in dB of pictures [B, C, H, W] in [-1, 1]; infinite where they are the same."""
    _check_alike(pictures, reference)
    error = (pictures.double() - reference.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error)


def ssim(pictures: Tensor, reference: Tensor) -> Tensor:
    """[B] the structural similarity of pictures [B, C, H, W] in [-1, 1] (Wang et al. 2004): 1 where they are the same.

    Of every channel by itself, with a Gaussian window of 11 pixels (sigma 1.5), where the window lies within the picture.

    Raises:
        ValueError: pictures of several sizes, or smaller than the window.
    """
    _check_alike(pictures, reference)
    if min(pictures.shape[2:]) < 11:
        raise ValueError(f"pictures have {pictures.shape[2]} x {pictures.shape[3]} pixels, and the window of SSIM has 11 x 11")
    x, y = ((each.double() + 1) / 2 for each in (pictures, reference))
    line = torch.exp(-(torch.arange(-5.0, 6.0, dtype=torch.float64, device=x.device) / 1.5) ** 2 / 2)
    window = torch.outer(line, line) / line.sum() ** 2

    def blurred(each: Tensor) -> Tensor:
        return F.conv2d(each.flatten(0, 1)[:, None], window[None, None])[:, 0].unflatten(0, each.shape[:2])

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y, shared = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2, blurred(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + 0.01**2) * (2 * shared + 0.03**2)
    return (likeness / ((mean_x**2 + mean_y**2 + 0.01**2) * (var_x + var_y + 0.03**2))).flatten(1).mean(1)


def _check_alike(pictures: Tensor, reference: Tensor) -> None:
    if pictures.shape != reference.shape or pictures.ndim != 4:
        raise ValueError(f"pictures are {list(pictures.shape)} and {list(reference.shape)}, but must both be [B, C, H, W]")
