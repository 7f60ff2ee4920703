"""What is shown on a console, where there is one: progress is no reason for work to end.

A program with a window, or a service, may have no `sys.stderr` at all, and one whose other end was closed cannot be written to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any


def is_terminal() -> bool:
    """Whether there is a terminal to show something on."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except (OSError, ValueError):  # it is closed
        return False


def say(text: str) -> None:
    """Write a line on `sys.stderr`, if that can be."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """A bar by tqdm, whose `options` it takes; one that cannot be drawn is none, and ends nothing."""
    from tqdm.auto import tqdm

    file = options.pop("file", None) or sys.stderr
    if file is None:
        options["disable"] = True
    return tqdm(iterable, file=None if file is None else _Unfailing(file), **options)


class _Unfailing:
    """A stream on which writing may fail without an error. It is equal to the stream itself, by which tqdm knows a terminal."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> Any:
        with suppress(OSError, ValueError):  # a pipe without a reader, a closed file, letters that it has no bytes for
            return self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError, AttributeError):
            return bool(self._stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        return other is self._stream or (isinstance(other, _Unfailing) and other._stream is self._stream)

    def __hash__(self) -> int:
        return hash(id(self._stream))
