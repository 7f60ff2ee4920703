"""What pictures are compared by: vectors of a network that was trained to see."""

from __future__ import annotations

import importlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..files import local_path
from ..models.latent_space import scaled
from ..models.layers import normed
from ..weights import read_tensors
from ..words import check_choice

FEATURES = ("encoder", "clip", "inception")


class Seen(NamedTuple):
    """What is seen in B pictures.

    Attributes:
        all: [B, D] for the distance of sets: `fid` and `kid`.
        shape: [B, L] for the likeness of two pictures, whatever their style. style: [B, S] of how they are drawn.
    """

    all: Tensor
    shape: Tensor
    style: Tensor


class Features(ABC):
    """Vectors of pictures. A subclass says by `look` how they come about.

    Attributes:
        name: what a report calls them. size: height and width of the pictures, in pixels; others are resized.
    """

    name: str
    size: int
    device: torch.device

    @abstractmethod
    def look(self, pictures: Tensor) -> Seen:
        """What is seen in pictures [B, 3, size, size] in [-1, 1], on the features' device."""

    @torch.no_grad()
    def __call__(self, batches: Iterable[Tensor], on_done: Callable[[int], object] = lambda done: None) -> Seen:
        """What is seen in batches of pictures [B, 3, H, W] in [-1, 1]: float32 on the CPU. `on_done` is told how many were.

        Raises:
            ValueError: there are none.
        """
        parts: list[Seen] = []
        done = 0
        for batch in batches:
            batch = batch.to(self.device, torch.float32)
            if tuple(batch.shape[2:]) != (self.size, self.size):
                batch = F.interpolate(batch, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
            seen = self.look(batch)
            parts.append(Seen(*(each.float().cpu() for each in seen)))
            done += len(batch)
            on_done(done)
        if not parts:
            raise ValueError("there are no pictures to look at")
        return Seen(*(torch.cat(each) for each in zip(*parts, strict=True)))


class EncoderFeatures(Features):
    """The library's own: of the encoder of the bundled autoencoder, which was trained on drawings, and of edges.

    - `all`: at each of the encoder's four depths, activations are scaled to length 1 at each place (as in LPIPS, Zhang et al.
      2018), so that neither a depth nor a channel nor a large white ground outweighs the rest; then the mean and the
      deviation of each channel over all places.
    - `shape`: the latents of the picture at 64 x 64 pixels, and the square root of a histogram of gradients of eight
      directions in 8 x 8 cells (Dalal & Triggs 2005), each of about unit length.
    - `style`: the deviations at the first depth, which sees outlines and gradients.

    Args:
        vae: an `AutoencoderKL` in place of the bundled one; numbers by another are others.
    """

    name, size = "encoder", 128

    def __init__(self, vae: Any = None, device: torch.device | str = "cpu") -> None:
        if vae is None:
            from ..models.autoencoder_kl import AutoencoderKL

            vae = AutoencoderKL.from_pretrained("calotype/emoji", subfolder="vae")
        self.device = torch.device(device)
        self.vae = vae.to(self.device, torch.float32).eval()

    def look(self, pictures: Tensor) -> Seen:
        depths, latents = self._encode(F.avg_pool2d(pictures, 2))
        means, deviations = [], []
        for each in depths:
            each = F.normalize(each, dim=1, eps=1e-4)
            means.append(each.mean((2, 3)))
            deviations.append(each.std((2, 3)))
        latents = scaled(self.vae, latents).flatten(1)
        edges = F.normalize(edge_histogram(pictures).sqrt().flatten(1), dim=1)
        shape = torch.cat([latents / math.sqrt(latents.shape[1]), edges], 1)
        return Seen(torch.cat([*means, *deviations], 1), shape, deviations[0])

    def _encode(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The activations of each level, and the latents' means."""
        encoder, run = self.vae.encoder, self.vae.run
        depths = []
        x = encoder.conv_in(x)
        for block in encoder.down_blocks:
            x, passed = block(x, None, None, run)
            depths.append(passed[len(block.resnets) - 1])
        x = encoder.mid_block(x, None, None, run)
        moments = encoder.conv_out(normed(encoder.conv_norm_out, encoder.conv_act, x))
        moments = moments if self.vae.quant_conv is None else self.vae.quant_conv(moments)
        return depths, moments.chunk(2, dim=1)[0]


def edge_histogram(pictures: Tensor, cells: int = 8, directions: int = 8) -> Tensor:
    """[B, directions, cells, cells] the mean size of the gradients in each direction, in each cell of pictures [B, 3, H, W].

    A gradient counts for the two nearest directions, by how near they are; which way it goes does not count.
    """
    grey = F.pad(pictures.mean(1), (1, 1, 1, 1), mode="replicate")
    across, down = grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2], grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]
    size, place = torch.hypot(across, down), torch.atan2(down, across) * (directions / math.pi)
    half = directions / 2
    apart = [((place - direction + half).remainder(directions) - half).abs() for direction in range(directions)]
    shares = torch.stack([(1 - each).clamp(min=0) * size for each in apart], 1)
    return F.adaptive_avg_pool2d(shares, cells)


class ClipFeatures(Features):
    """The embeddings of a CLIP picture encoder (Radford et al. 2021); KID of them is akin to CMMD (Jayasumana et al. 2024).

    Args:
        folder: of a `CLIPVisionModelWithProjection` or a `CLIPVisionModel`, a checkpoint's or a Hub repository's.
    """

    name = "clip"
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> None:
        from ..models.clip_vision import CLIPVisionModel, CLIPVisionModelWithProjection

        try:
            model: Any = CLIPVisionModelWithProjection.from_pretrained(folder)
        except ValueError:  # it has no projection, or is damaged
            model = CLIPVisionModel.from_pretrained(folder)
        self.device = torch.device(device)
        self.model = model.to(self.device, torch.float32).eval()
        self.size = int(self.model.config.image_size)

    def look(self, pictures: Tensor) -> Seen:
        x = pictures / 2 + 0.5
        x = (x - x.new_tensor(self.mean)[:, None, None]) / x.new_tensor(self.deviation)[:, None, None]
        output = self.model(x)
        said = output.image_embeds if output.image_embeds is not None else output.pooler_output
        return Seen(said, F.normalize(said, dim=1), F.normalize(said, dim=1))


class InceptionFeatures(Features):
    """The 2048 channels of the Inception network of the FID paper (Heusel et al. 2017), as torch-fidelity has it.

    Nothing is downloaded: the weights must lie in torch.hub's folder, where torch-fidelity keeps them, or in `weights`.
    """

    name, size = "inception", 299
    file = "weights-inception-2015-12-05-6726825d.pth"

    def __init__(self, weights: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu") -> None:
        path = local_path(weights) if weights is not None else Path(torch.hub.get_dir()) / "checkpoints" / self.file
        if not path.is_file():
            raise FileNotFoundError(f"the features 'inception' need the weights {str(path)!r}, which are not there and are not "
                                    "downloaded here; the features 'encoder' need nothing")
        try:
            module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        except ImportError as error:
            raise ImportError("the features 'inception' need torch-fidelity: pip install torch-fidelity") from error
        read_tensors([path])  # so that what torch-fidelity unpickles is known to be tensors and nothing else
        self.device = torch.device(device)
        extractor = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
        self.model: Any = extractor.to(self.device).eval()

    def look(self, pictures: Tensor) -> Seen:
        (said,) = self.model(((pictures / 2 + 0.5) * 255).round().clamp(0, 255).to(torch.uint8))
        return Seen(said, F.normalize(said, dim=1), F.normalize(said, dim=1))


def make_features(
    name: str | None = None, clip: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu"
) -> Features:
    """Features by name; by default those of `clip`, a folder with a CLIP picture encoder, if it is given, else `"encoder"`.

    Raises:
        ValueError: there is none of that name, or `clip` is missing for, or given beside, another.
    """
    name = name or ("clip" if clip is not None else "encoder")
    check_choice("features", name, FEATURES)
    if (name == "clip") != (clip is not None):
        raise ValueError("the features 'clip' need the folder of a CLIP picture encoder, and no others take one"
                         f" (features is {name!r}, and clip is {clip and str(clip)!r})")
    if clip is not None:
        return ClipFeatures(clip, device)
    return EncoderFeatures(device=device) if name == "encoder" else InceptionFeatures(device=device)
