"""The command line: `calotype generate | edit | inpaint | depth | sample | train | evaluate | reproduce | info | schedulers`.

Nothing heavy is imported before a command needs it: help, and errors in what was typed, come at once. The commands are in
`commands.py`; here is only what must stand before they are imported.
"""

from __future__ import annotations


def main() -> None:
    """What the command `calotype` runs."""
    from . import process

    process.prepare()  # first: from here on, Ctrl-C ends even imports without a traceback
    from .commands import app

    process.run(app)


def __getattr__(name: str) -> object:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .commands import app

    return app
