"""Pictures for an autoencoder, and from it: resized to what it can read, and scaled to [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from ..config import Configured, register_to_config
from ..words import check_choice, some
from . import conversion, masks
from .reading import are_latents, described, joined, laid, latents_of, pictures_of, plain, plain_mask
from .sizes import covered, filled

if TYPE_CHECKING:
    from PIL.Image import Image

RESAMPLES = {"linear": "BILINEAR", "bilinear": "BILINEAR", "bicubic": "BICUBIC", "lanczos": "LANCZOS", "nearest": "NEAREST"}
RESIZE_MODES = ("default", "fill", "crop")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow makes grey


class VaeImageProcessor(Configured):
    """Prepares pictures for an autoencoder, and makes pictures of what it gives.

    Args:
        do_resize: resize pictures, by default to the next lower multiple of `vae_scale_factor`.
        vae_scale_factor: height and width must be multiples of it.
        vae_latent_channels: tensors of so many channels are latents already and come back as they are; see `reading.are_latents`,
            which tells them from pictures.
        resample: how PIL images are resized: `"lanczos"`, `"bicubic"`, `"bilinear"` (or `"linear"`) or `"nearest"`; arrays and
            tensors of floats always by their nearest pixel.
        reducing_gap: Pillow's, for resizing in two steps.
        do_normalize: scale [0, 1] to [-1, 1]; a picture that has negative values already stays.
        do_binarize: then make what is below 0.5 zero and the rest one.
        do_convert_rgb, do_convert_grayscale: make all pictures RGB, or grey.

    What is transparent is laid on white; but in masks, which are grey and in [0, 1] (`do_convert_grayscale` without
    `do_normalize`), on black: nothing is painted there. Masks of the whole numbers 0 and 1 are black and white.
    """

    @register_to_config
    def __init__(
        self, do_resize: bool = True, vae_scale_factor: int = 8, vae_latent_channels: int = 4, resample: str = "lanczos",
        reducing_gap: int | None = None, do_normalize: bool = True, do_binarize: bool = False, do_convert_rgb: bool = False,
        do_convert_grayscale: bool = False,
    ):
        check_choice("resample", resample, RESAMPLES)
        if do_convert_rgb and do_convert_grayscale:
            raise ValueError("do_convert_rgb and do_convert_grayscale exclude each other; at most one may be True")
        if vae_scale_factor < 1:
            raise ValueError(f"vae_scale_factor is {vae_scale_factor!r}, but must be at least 1")

    # -- pictures in --------------------------------------------------------------------------------------------------

    def preprocess(
        self, image: Any, height: int | None = None, width: int | None = None, resize_mode: str = "default",
        crops_coords: tuple[int, int, int, int] | None = None,
    ) -> Tensor:
        """Pictures as one tensor.

        Args:
            image: a PIL image of any mode, an array [H, W], [H, W, C] or [B, H, W, C], a tensor [H, W], [C, H, W] or
                [B, C, H, W], or a list of these, each read as it is alone. Floats are in [0, 1] or [-1, 1], those with
                transparency (C = 4) in [0, 1]; whole numbers are read as a PIL image is: 0 … 255, or 16 bits (uint16) with any
                above 255. With `do_convert_grayscale` a tensor of three axes is [B, H, W].
            height, width: of the result, rounded down to multiples of `vae_scale_factor`; by default the pictures' own.
            resize_mode: of PIL images: `"default"` stretches, `"fill"` keeps the proportions and draws out the edges to fill
                the rest, `"crop"` keeps them and cuts off what is too much.
            crops_coords: first cut this box (left, top, right, bottom) out of PIL images.

        Returns:
            [B, C, H, W] in [-1, 1], or in [0, 1] without `do_normalize`. Latents come back as they are.

        Raises:
            ValueError: what is no picture, has values that are out of range or not finite, or becomes no one tensor.
        """
        check_choice("resize_mode", resize_mode, RESIZE_MODES)
        if are_latents(image, self.config.vae_latent_channels, self.config.do_convert_grayscale):
            return latents_of(image)
        pictures = pictures_of(image, self.config.do_convert_grayscale)
        if (crops_coords or resize_mode != "default") and any(isinstance(one, Tensor) for one in pictures):
            raise ValueError("crops_coords and a resize_mode other than 'default' are for PIL images or bytes, not for floats; "
                             "VaeImageProcessor.numpy_to_pil makes PIL images of them")
        pictures = [self._plain(one) for one in pictures]
        if crops_coords:
            pictures = [one.crop(crops_coords) for one in pictures]
        if self.config.do_resize:
            sizes = {self.get_default_height_width(one, height, width) for one in pictures}
            if len(sizes) > 1:
                raise ValueError("pictures of several sizes need height and width to become one tensor; they would be "
                                 + some(sorted(f"{wide} x {high}" for high, wide in sizes)) + " (width x height)")
            size, = sizes
            pictures = [self.resize(one, *size, resize_mode) for one in pictures]
        batch = joined([self._scaled(self._coloured(one)) for one in pictures])
        return self.binarize(batch) if self.config.do_binarize else batch

    def _plain(self, picture: Any) -> Any:
        """A picture without transparency, and a mask as one."""
        is_mask = self.config.do_convert_grayscale and not self.config.do_normalize
        if isinstance(picture, Tensor):
            return laid(picture, "black" if is_mask else "white") if picture.shape[1] == 4 else picture
        return plain_mask(picture) if is_mask else plain(picture)

    def _scaled(self, picture: Tensor) -> Tensor:
        return conversion.normalized(picture) if self.config.do_normalize and picture.min() >= 0 else picture

    def _coloured(self, picture: Any) -> Tensor:
        """[B, C, H, W] of a picture, grey or RGB as the config has it."""
        if not isinstance(picture, Tensor):
            picture = self.convert_to_grayscale(picture) if self.config.do_convert_grayscale else picture
            picture = self.convert_to_rgb(picture) if self.config.do_convert_rgb else picture
            return conversion.numpy_to_pt(conversion.pil_to_numpy(picture))
        if self.config.do_convert_grayscale and picture.shape[1] == 3:
            return (picture * picture.new_tensor(_LUMA).reshape(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        return picture.expand(-1, 3, -1, -1) if self.config.do_convert_rgb and picture.shape[1] == 1 else picture

    def get_default_height_width(self, image: Any, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width, by default a picture's own, rounded down to multiples of `vae_scale_factor`.

        Args:
            image: a PIL image, an array [H, W], [H, W, C] or [B, H, W, C], or a tensor [..., H, W].

        Raises:
            ValueError: nothing is left.
        """
        factor = self.config.vae_scale_factor
        if hasattr(image, "shape"):
            own = image.shape[-2:] if isinstance(image, Tensor) or image.ndim == 2 else image.shape[-3:-1]
        else:
            own = image.height, image.width
        high, wide = own[0] if height is None else height, own[1] if width is None else width
        if min(high, wide) < factor:
            raise ValueError(f"height is {high} and width {wide}, but both must be at least {factor} (vae_scale_factor)")
        return high - high % factor, wide - wide % factor

    def resize(self, image: Any, height: int, width: int, resize_mode: str = "default") -> Any:
        """The same picture, `height` x `width`; see `preprocess` for `resize_mode`.

        Args:
            image: a PIL image, or floats as an array [B, H, W, C] or a tensor [B, C, H, W] (by their nearest pixel).
        """
        check_choice("resize_mode", resize_mode, RESIZE_MODES)
        if isinstance(image, Tensor) and image.ndim == 4:
            return image if image.shape[2:] == (height, width) else F.interpolate(image, size=(height, width))
        if hasattr(image, "ndim") and not isinstance(image, Tensor) and image.ndim == 4:
            return conversion.pt_to_numpy(self.resize(conversion.numpy_to_pt(image), height, width))
        if not hasattr(image, "resize") or hasattr(image, "ndim"):
            raise ValueError(f"a {described(image)} cannot be resized, but a PIL image, an array [B, H, W, C] or a tensor "
                             "[B, C, H, W]")
        if resize_mode == "default":
            return image.resize((width, height), self._resample, reducing_gap=self.config.reducing_gap)
        return (filled if resize_mode == "fill" else covered)(self.convert_to_rgb(image), width, height, self._resample)

    @property
    def _resample(self) -> Any:
        from PIL import Image

        return Image.Resampling[RESAMPLES[self.config.resample]]

    # -- pictures out -------------------------------------------------------------------------------------------------

    def postprocess(self, image: Tensor, output_type: str = "pil", do_denormalize: Sequence[bool] | None = None) -> Any:
        """What `conversion.postprocess` makes of [B, C, H, W]; `do_denormalize`, one a picture, is by default `do_normalize`."""
        return conversion.postprocess(image, output_type, self.config.do_normalize if do_denormalize is None else do_denormalize)

    def apply_overlay(
        self, mask: Image, init_image: Image, image: Image, crop_coords: tuple[int, int, int, int] | None = None
    ) -> Image:
        """`init_image` where `mask` is black, `image` where it is white; the three are of one size.

        Args:
            crop_coords: `image` belongs into this box (left, top, right, bottom) of `init_image`, of whatever size it is.
        """
        from PIL import Image as pil

        init_image = plain(init_image)
        if crop_coords is not None:
            left, top, right, bottom = crop_coords
            patch = self.resize(image, bottom - top, right - left, "crop")
            image = pil.new("RGB", init_image.size)
            image.paste(patch, (left, top))
        return masks.composite(init_image, image, mask)

    # -- small steps, also used by themselves -----------------------------------------------------------------------------

    get_crop_region = staticmethod(masks.crop_region)
    pil_to_numpy, numpy_to_pil = staticmethod(conversion.pil_to_numpy), staticmethod(conversion.numpy_to_pil)
    numpy_to_pt, pt_to_numpy = staticmethod(conversion.numpy_to_pt), staticmethod(conversion.pt_to_numpy)
    normalize, denormalize = staticmethod(conversion.normalized), staticmethod(conversion.denormalized)
    blur = staticmethod(masks.blur)

    @staticmethod
    def binarize(image: Any) -> Any:
        """Below 0.5 zero, else one: a new array or tensor of the same type."""
        return (image >= 0.5).to(image.dtype) if isinstance(image, Tensor) else (image >= 0.5).astype(image.dtype)

    @staticmethod
    def convert_to_rgb(image: Image) -> Image:
        """RGB of a picture of any mode; see `reading.plain`."""
        return plain(image).convert("RGB")

    @staticmethod
    def convert_to_grayscale(image: Image) -> Image:
        """Grey of a picture of any mode."""
        return plain(image).convert("L")
