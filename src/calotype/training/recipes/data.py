"""The pictures that a recipe's settings name."""

from __future__ import annotations

from typing import Any

from ..captions import Captions
from ..pictures import Pictures


def framing_of(settings: Any, resolution: int) -> dict[str, Any]:
    """How a recipe's settings frame pictures, as `Pictures.open` takes it; by default at `resolution`."""
    return {"resolution": settings.resolution or resolution, "center_crop": settings.center_crop, "seed": settings.seed,
            "random_flip": settings.random_flip, "interpolation": settings.image_interpolation_mode}


def open_pictures(settings: Any, resolution: int, captions: Captions | None = None, bucket_step: int = 64) -> Pictures:
    """The pictures of a recipe: those of the split that is wanted, framed as the settings say, and no more than are wanted.

    Args:
        captions: how captions are drawn; `None` for a recipe that needs none.

    Raises:
        ValueError: there are none in that split; names those that there are.
    """
    of_hub = {"split": settings.split} if settings.split and settings.dataset_name else {}
    pictures = Pictures.open(
        settings.train_data_dir, settings.dataset_name, dataset_config_name=settings.dataset_config_name,
        cache_dir=settings.cache_dir, image_column=settings.image_column,
        caption_column=settings.caption_column if captions is not None else None, captions=captions,
        not_in=[settings.output_dir], buckets=settings.aspect_buckets, bucket_step=bucket_step,
        **framing_of(settings, resolution), **of_hub)
    if settings.split and settings.train_data_dir:
        pictures = pictures.where(split=settings.split)
    return pictures.sample(settings.max_train_samples) if settings.max_train_samples else pictures


def check_resolution(settings: Any, step: int, why: str) -> None:
    """Raise a `ValueError` if pictures of the wanted size are none that the networks can take: both sides must be multiples."""
    if settings.resolution and settings.resolution % step:
        below = settings.resolution // step * step
        near = f"{below} or {below + step}" if below else str(step)
        raise ValueError(f"resolution is {settings.resolution}, but must be a multiple of {step}, {why}: {near}, say")
