"""Recipes: each a task with typed settings, and the command `calotype train NAME`."""

from __future__ import annotations

import importlib
from typing import Any

from ...words import check_choice

RECIPES = {
    "unconditional": ("unconditional", "Unconditional"),
    "text-to-image": ("text_to_image", "TextToImage"),
    "lora": ("lora", "Lora"),
    "dreambooth": ("dreambooth", "DreamBooth"),
    "textual-inversion": ("textual_inversion", "TextualInversion"),
    "autoencoder": ("autoencoder", "AutoencoderTraining"),
}
"""The module and class of each."""


def recipe(name: str) -> Any:
    """The class of a recipe: a `Task` whose `Settings` say what it is told.

    Raises:
        ValueError: there is none of that name.
    """
    check_choice("recipe", name, RECIPES)
    module, task = RECIPES[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), task)
