"""A scheduler's config as the file `scheduler_config.json`: what every scheduler has, also those that are no tables."""

from __future__ import annotations

import os
from typing import Any, ClassVar, TypeVar

from ..config import Configured
from ..words import check_keywords

_Self = TypeVar("_Self", bound="SchedulerMixin")


class SchedulerMixin(Configured):
    """Base of everything called a scheduler: its config, and loading and saving of that."""

    config_name = "scheduler_config.json"
    order: ClassVar[int] = 1
    """Model calls a step, where all steps have as many."""

    @classmethod
    def from_pretrained(
        cls: type[_Self], pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> _Self:
        """Make a scheduler from the `scheduler_config.json` of a folder, a Hub repository or a bundled checkpoint.

        `subfolder` says where in it; other keyword arguments replace config entries.
        """
        config, entries = cls.load_config(pretrained_model_name_or_path, return_unused_kwargs=True, **kwargs)
        check_keywords(f"{cls.__name__}.from_pretrained", entries, cls._arguments())
        made: _Self = cls.from_config(config, **entries)
        return made

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `scheduler_config.json` into a folder."""
        self.save_config(save_directory)

    @property
    def compatibles(self) -> list[type[Any]]:
        """The scheduler classes that can stand in this one's place, and that its config can be given to."""
        return []

    @classmethod
    def _known_elsewhere(cls) -> set[str]:
        from . import ALL

        return {name for other in ALL for name in other._arguments()}
