"""The pictures that a recipe's settings name."""

from __future__ import annotations

from typing import Any

from ..captions import Captions
from ..pictures import Pictures


def open_pictures(settings: Any, resolution: int, captions: Captions | None = None, bucket_step: int = 64) -> Pictures:
    """The pictures of a recipe: those of the split that is wanted, framed as the settings say.

    Args:
        captions: how captions are drawn; `None` for a recipe that needs none.

    Raises:
        ValueError: there are none in that split; names those that there are.
    """
    pictures = Pictures.open(
        settings.train_data_dir, settings.dataset_name, image_column=settings.image_column,
        caption_column=settings.caption_column if captions is not None else None, captions=captions,
        resolution=settings.resolution or resolution, center_crop=settings.center_crop, random_flip=settings.random_flip,
        buckets=settings.aspect_buckets, bucket_step=bucket_step, seed=settings.seed,
        **({"split": settings.split} if settings.split and settings.dataset_name else {}))
    if settings.split and settings.train_data_dir:
        splits = {str(pictures.entry(i).get("split")) for i in range(len(pictures))}
        if settings.split not in splits:
            raise ValueError(f"split is {settings.split!r}, but the pictures' metadata say {', '.join(sorted(splits))}")
        pictures = pictures.where(split=settings.split)
    return pictures
