"""From a picture of any size and mode to the tensor that is trained on: turned, resized, flipped and cropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..images.conversion import pil_to_tensor
from ..images.reading import plain
from ..images.vae_processor import RESAMPLES
from ..words import check_choice

if TYPE_CHECKING:
    from PIL.Image import Image


class Chance(NamedTuple):
    """What is drawn for a picture: each from 0 to below 1."""

    flip: float
    across: float
    down: float

    @classmethod
    def drawn(cls, generator: torch.Generator) -> Chance:
        """Always three numbers, used or not, so that what is drawn next does not depend on the settings."""
        return cls(*torch.rand(3, generator=generator, dtype=torch.float64).tolist())


@dataclass
class Framed:
    """A picture as a tensor [3, H, W] of float32 in [-1, 1], and where it comes from: the original's (height, width), and (top,
    left) of the crop in the resized picture, both in pixels (Podell et al. 2023, arXiv:2307.01952, section 2.2)."""

    pixel_values: Tensor
    original_size: tuple[int, int]
    crop_top_left: tuple[int, int]


@dataclass(frozen=True)
class Framing:
    """How a picture is framed.

    Args:
        resolution: height and width of the result in pixels, where no other size is asked for.
        center_crop: keep the middle; otherwise any part, drawn anew each time.
        random_flip: mirror every other picture, drawn too.
        interpolation: `"lanczos"`, `"bicubic"`, `"bilinear"` (or `"linear"`) or `"nearest"`.
        background: what is transparent is laid on this colour, by a name or as `"#rrggbb"`.

    Raises:
        ValueError: a resolution below 1, or a name that is not known.
    """

    resolution: int = 512
    center_crop: bool = False
    random_flip: bool = False
    interpolation: str = "lanczos"
    background: str = "white"

    def __post_init__(self) -> None:
        from PIL import ImageColor

        if self.resolution < 1:
            raise ValueError(f"resolution is {self.resolution}, but must be at least 1 pixel")
        check_choice("interpolation", self.interpolation, RESAMPLES)
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise ValueError(f"background is {self.background!r}, but must be a colour's name or '#rrggbb'") from None

    def flips(self, chance: Chance | None) -> bool:
        """Whether a picture is mirrored; never where nothing is drawn."""
        return self.random_flip and chance is not None and chance.flip < 0.5

    def __call__(
        self, picture: Image, size: tuple[int, int] | None = None, chance: Chance | None = None, flipped: bool | None = None
    ) -> Framed:
        """Frame a picture.

        It is turned as its EXIF says, made RGB, resized to the least size of its own proportions that covers `size`, mirrored
        and cropped.

        Args:
            picture: of any mode.
            size: (width, height) of the result; by default `resolution` both.
            chance: what was drawn; `None` is the plain reading, the middle and not mirrored.
            flipped: mirror or do not, whatever was drawn.
        """
        from PIL import Image as pil
        from PIL import ImageOps

        width, height = size or (self.resolution, self.resolution)
        picture = plain(ImageOps.exif_transpose(picture), self.background).convert("RGB")
        original = picture.height, picture.width
        picture = picture.resize(covering(picture.size, (width, height)), pil.Resampling[RESAMPLES[self.interpolation]])
        if self.flips(chance) if flipped is None else flipped:
            picture = picture.transpose(pil.Transpose.FLIP_LEFT_RIGHT)
        spare_across, spare_down = picture.width - width, picture.height - height
        left, top = round(spare_across / 2), round(spare_down / 2)
        if chance is not None and not self.center_crop:
            left, top = int(chance.across * (spare_across + 1)), int(chance.down * (spare_down + 1))
        picture = picture.crop((left, top, left + width, top + height))
        return Framed(pil_to_tensor(picture)[0], original, (top, left))


def covering(own: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The least (width, height) in the proportions of `own` that covers `size`; the side that is too long rounded down."""
    if own[0] * size[1] >= own[1] * size[0]:  # wider than asked for
        return max(own[0] * size[1] // own[1], size[0]), size[1]
    return size[0], max(own[1] * size[0] // own[0], size[1])
