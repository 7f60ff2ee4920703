"""The adversary of an autoencoder: a network that tells its reconstructions from pictures, and the losses of the two."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEAST, _MOST = 1e-6, 1e4  # of the gradient that is divided by, and of the quotient


class Discriminator(nn.Module):
    """Judges every patch of a picture by itself (PatchGAN, Isola et al. 2017, section 3.2.2).

    Norms are over groups of channels of one picture, and not over the batch: pictures made and original can be judged together
    or apart, in as many processes as there are.

    Args:
        channels: of the first layer; the next ones have twice as many each, at most 8 times. A multiple of 8.
        layers: convolutions of stride 2.
        in_channels: of the pictures.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, channels: int = 32, layers: int = 3, in_channels: int = 3):
        super().__init__()
        if channels < 8 or channels % 8:
            raise ValueError(f"channels is {channels}, but must be a multiple of 8")
        if layers < 1:
            raise ValueError(f"layers is {layers}, but must be at least 1")
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        steps: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (before, width) in enumerate(pairwise(widths)):
            last = i + 1 == layers  # which keeps the size
            steps += [nn.Conv2d(before, width, 3 if last else 4, stride=1 if last else 2, padding=1),
                      nn.GroupNorm(8, width), nn.LeakyReLU(0.2)]
        self.judge = nn.Sequential(*steps, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 1, h, w] how original each patch of pictures [B, C, H, W] looks: the more, the larger."""
        return self.judge(pictures)


def hinge_loss(of_originals: Tensor, of_made: Tensor) -> Tensor:
    """The discriminator's loss (Lim & Ye 2017): originals should be above 1, and what was made below -1. A scalar."""
    return F.relu(1 - of_originals).mean() + F.relu(1 + of_made).mean()


def fooling_loss(of_made: Tensor) -> Tensor:
    """The generator's loss: what it makes should look original. A scalar."""
    return -of_made.mean()


def balanced(made: Tensor, error: Tensor, fooling: Tensor, last: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """error + weight * balance * fooling, where balance makes the two pull on the last layer equally (Esser et al. 2021,
    equation 7): the length of the error's gradient by that of the other's, at most 10,000.

    Both gradients are taken as far as the pictures, once, and the loss passes on their sum: neither the discriminator nor
    whatever else the errors were computed by gets any gradients of it, or is gone through twice.

    Args:
        made: [B, C, H, W] pictures with a graph.
        error, fooling: scalars that follow from `made`. Their graphs are used up.
        last: the parameter that is nearest to `made`.

    Returns:
        The loss, and the balance.
    """
    count = made.numel()  # gradients of so many times the losses are about 1, which half precision can hold
    (to_truth,) = torch.autograd.grad(error * count, made)
    (to_fooling,) = torch.autograd.grad(fooling * count, made)

    def pull(gradient: Tensor) -> Tensor:
        (at_last,) = torch.autograd.grad(made, last, gradient / count**0.5, retain_graph=True)
        return at_last.float().norm() / count**0.5

    balance = (pull(to_truth) / (pull(to_fooling) + _LEAST)).clamp(max=_MOST)
    value = (error + weight * balance * fooling).detach()
    passed_on = (made * (to_truth + weight * balance * to_fooling)).mean()
    return value + passed_on - passed_on.detach(), balance
