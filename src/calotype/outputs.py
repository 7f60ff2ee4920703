"""What models, schedulers and pipelines return: named fields that also unpack as a tuple."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any


class Output:
    """Base of the output dataclasses. Fields that are `None` do not appear in the tuple."""

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value for _, value in self.items())

    def items(self) -> list[tuple[str, Any]]:
        """The fields that are set, as (name, value)."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]
        return [(name, value) for name, value in values if value is not None]

    def keys(self) -> list[str]:
        return [name for name, _ in self.items()]

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(f"{type(self).__name__} has no field {key!r}; it has {', '.join(self.keys())}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.to_tuple())
