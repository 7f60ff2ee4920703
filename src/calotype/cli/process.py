"""The process of a command: its console, what Ctrl-C does in it, and the status it ends with."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

INTERRUPTED, BROKEN_PIPE = 130, 141  # 128 and the signal's number, as shells have it
STOPPED = "stopped; nothing is half-written"


def prepare() -> None:
    """Make ready for a command: a console that takes any text, and an early Ctrl-C that ends the process at once."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as in the background of a script
        signal.signal(signal.SIGINT, _end_at_once)
    gc.set_threshold(200_000)  # imports make a million objects, and no garbage
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream: Any = getattr(sys, name)
        if stream is None:  # closed by whoever started this process; in this order, each gets its own number back
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w":  # a character that the terminal lacks, or a file's name that is no text, is no reason to fail
            unicode = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")


def _end_at_once(number: int, frame: Any) -> NoReturn:
    """What Ctrl-C does before there is anything to save. No exception: libraries that are being imported swallow some."""
    with suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(INTERRUPTED)


def work_begins() -> None:
    """From here on, Ctrl-C is a `KeyboardInterrupt`: what is finished is saved, and the terminal is left as it was."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def run(command: Callable[..., Any]) -> NoReturn:
    """Run a command, and leave at once: to take a process with torch apart needs up to a second, or waits for a thread."""
    try:
        command(prog_name="calotype")
        status = 0
    except KeyboardInterrupt:  # a second one, while the first was being answered
        status = INTERRUPTED
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.__context__, BrokenPipeError):  # nobody reads on: `calotype schedulers | head -1`
            status = BROKEN_PIPE
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os._exit(_flushed(status))


def _flushed(status: int) -> int:
    """The status, unless what is still to be written cannot be."""
    from ..files import remove_unfinished

    remove_unfinished()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
    except OSError as error:  # no space left
        status = status or 1
        with suppress(OSError):
            sys.stderr.write(f"error: what was said could not be written ({error.strerror})\n")
    with suppress(OSError):
        sys.stderr.flush()
    return status
