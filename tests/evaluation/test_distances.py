"""FID and KID against closed forms and plain loops; PSNR and SSIM against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calotype.evaluation import fid, kid, psnr, ssim


def exactly(mean, covariance, count=64, seed=0):
    """[count, D] numbers whose mean and covariance are exactly these."""
    raw = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    raw -= raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.T @ raw / (count - 1))).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def covariances(seed):
    raw = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return raw @ raw.T + 0.1 * torch.eye(5, dtype=torch.float64)


def test_fid_of_known_moments():
    """Of covariances that commute it is |m₁ - m₂|² + Σ (√λ₁ - √λ₂)²."""
    ones, twos = torch.tensor([1.0, 4, 9, 16, 25]).double(), torch.tensor([4.0, 4, 1, 1, 36]).double()
    means = torch.arange(5.0).double(), torch.ones(5).double()
    turn = torch.linalg.qr(covariances(3))[0]
    one, two = (exactly(mean, turn @ torch.diag(each) @ turn.T, 64, i)
                for i, (mean, each) in enumerate(zip(means, (ones, twos), strict=True)))
    right = (means[0] - means[1]).square().sum() + (ones.sqrt() - twos.sqrt()).square().sum()
    assert fid(one, two) == pytest.approx(float(right), rel=1e-9)
    assert fid(one, one) == pytest.approx(0, abs=1e-9)
    assert fid(one, two) == pytest.approx(fid(two, one), rel=1e-9)


@pytest.mark.parametrize("count", [40, 4])
def test_fid_by_the_root_of_a_matrix(count):
    """Also where there are fewer pictures than channels."""
    linalg = pytest.importorskip("scipy.linalg")
    one = exactly(torch.zeros(5).double(), covariances(1), 40)[:count]
    two = exactly(torch.ones(5).double(), covariances(2), 50, 1)
    c1, c2 = (np.cov(each.numpy(), rowvar=False) for each in (one, two))
    offset = 1e-10 * np.eye(5)
    root = linalg.sqrtm((c1 + offset) @ (c2 + offset)).real
    right = float((one.mean(0) - two.mean(0)).square().sum()) + np.trace(c1 + c2 - 2 * root)
    assert fid(one.float(), two.float()) == pytest.approx(right, rel=1e-4)


def plain_mmd(one, two):
    def kernel(x, y):
        return (float(np.dot(x, y)) / len(x) + 1) ** 3

    n, m = len(one), len(two)
    within = [sum(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / len(x) / (len(x) - 1)
              for x in (one, two)]
    return sum(within) - 2 * sum(kernel(x, y) for x in one for y in two) / n / m


def test_kid_by_a_double_loop():
    random = np.random.default_rng(0)
    one, two = random.normal(size=(7, 3)), random.normal(size=(9, 3)) + 0.5
    value, deviation = kid(torch.from_numpy(one), torch.from_numpy(two))
    assert value == pytest.approx(plain_mmd(one, two), rel=1e-9)
    assert math.isnan(deviation)
    mean, deviation = kid(torch.from_numpy(one), torch.from_numpy(two), subsets=400, subset_size=5)
    assert mean == pytest.approx(value, abs=4 * deviation / 20)
    assert (mean, deviation) == kid(torch.from_numpy(one), torch.from_numpy(two), subsets=400, subset_size=5)
    assert mean != kid(torch.from_numpy(one), torch.from_numpy(two), subsets=400, subset_size=5, seed=1)[0]


def test_kid_is_unbiased():
    """Over many small samples of one distribution it is 0 on average, and below it about as often as above."""
    random = np.random.default_rng(1)
    values = np.array([kid(*torch.from_numpy(random.normal(size=(2, 6, 4))))[0] for _ in range(1500)])
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    assert 0.3 < (values < 0).mean() < 0.8


def test_as_torch_fidelity_has_them():
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    one, two = exactly(torch.zeros(5).double(), covariances(1), 80), exactly(torch.ones(5).double(), covariances(2), 90, 1)
    right = metric_fid.fid_statistics_to_metric(*(metric_fid.fid_features_to_statistics(each) for each in (one, two)), False)
    assert fid(one, two) == pytest.approx(next(iter(right.values())), rel=1e-6)
    right = metric_kid.kid_features_to_metric(one, two[:80], kid_subsets=1, kid_subset_size=80, verbose=False)
    assert kid(one, two[:80])[0] == pytest.approx(right["kernel_inception_distance_mean"], rel=1e-6)


def test_psnr():
    reference = torch.zeros(2, 3, 4, 4)
    pictures = reference + torch.tensor([0.2, 0.02])[:, None, None, None]
    assert psnr(pictures, reference).tolist() == pytest.approx([20, 40], rel=1e-6)
    assert psnr(reference, reference).tolist() == [math.inf] * 2


def test_ssim_by_its_definition():
    random = np.random.default_rng(2)
    x = random.uniform(size=(13, 12))
    y = np.clip(x + random.normal(scale=0.2, size=x.shape), 0, 1)
    window = np.exp(-(np.arange(-5, 6)[:, None] ** 2 + np.arange(-5, 6) ** 2) / 2 / 1.5**2)
    window /= window.sum()
    values = []
    for i in range(3):
        for j in range(2):
            a, b = x[i:i + 11, j:j + 11], y[i:i + 11, j:j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb, ab = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum(), (window * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + 1e-4) * (2 * ab + 9e-4) / (ma**2 + mb**2 + 1e-4) / (va + vb + 9e-4))
    given = [torch.from_numpy(each)[None, None] * 2 - 1 for each in (x, y)]
    assert float(ssim(*given)) == pytest.approx(np.mean(values), rel=1e-9)
    assert float(ssim(given[0], given[0])) == pytest.approx(1)


@pytest.mark.parametrize(("call", "said"), [
    (lambda: fid(torch.zeros(1, 3), torch.zeros(4, 3)), "features are [1, 3], but must be [N, D] of at least 2"),
    (lambda: kid(torch.zeros(4, 3), torch.zeros(4)), "reference are [4]"),
    (lambda: fid(torch.zeros(4, 3), torch.zeros(4, 2)), "3 channels, and reference has 2"),
    (lambda: kid(torch.full((4, 3), torch.nan), torch.zeros(4, 3)), "not finite"),
    (lambda: kid(torch.zeros(4, 3), torch.zeros(4, 3), subset_size=1), "at least 1 and 2"),
    (lambda: psnr(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5)), "must both be"),
    (lambda: ssim(torch.zeros(1, 3, 4, 14), torch.zeros(1, 3, 4, 14)), "4 x 14 pixels"),
])
def test_what_is_wrong(call, said):
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value)
