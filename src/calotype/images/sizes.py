"""PIL images brought to a size without losing their proportions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


def covered(picture: Image, width: int, height: int, resample: Any) -> Image:
    """The middle of a picture, as much as fits the proportions of `width` x `height`; "crop" of `VaeImageProcessor`."""
    scaled, left, top = _scaled(picture, width, height, resample, inside=False)
    return scaled.crop((-left, -top, width - left, height - top))


def filled(picture: Image, width: int, height: int, resample: Any) -> Image:
    """The whole picture, and on two sides of it its edge, drawn out; "fill" of `VaeImageProcessor`."""
    from PIL import Image as pil

    scaled, left, top = _scaled(picture, width, height, resample, inside=True)
    right, bottom = left + scaled.width, top + scaled.height
    result = pil.new(picture.mode, (width, height))
    edges = {  # where an edge goes: where it comes from, which is a box without area, so the edge alone
        (0, 0, left, height): (0, 0, 0, scaled.height),
        (right, 0, width, height): (scaled.width, 0, scaled.width, scaled.height),
        (0, 0, width, top): (0, 0, scaled.width, 0),
        (0, bottom, width, height): (0, scaled.height, scaled.width, scaled.height),
    }
    for to, edge in edges.items():
        if to[0] < to[2] and to[1] < to[3]:
            drawn_out = scaled.resize((to[2] - to[0], to[3] - to[1]), pil.Resampling.BICUBIC, box=edge)
            result.paste(drawn_out, to)
    result.paste(scaled, (left, top))
    return result


def _scaled(picture: Image, width: int, height: int, resample: Any, inside: bool) -> tuple[Image, int, int]:
    """A picture that fits inside `width` x `height` or covers it, and where its left upper corner comes to lie."""
    by_width = (width / height < picture.width / picture.height) == inside
    size = (width, picture.height * width // picture.width) if by_width else (picture.width * height // picture.height, height)
    scaled = picture.resize((max(size[0], 1), max(size[1], 1)), resample)
    return scaled, width // 2 - scaled.width // 2, height // 2 - scaled.height // 2
