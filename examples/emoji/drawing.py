"""SVGs to pictures, on all cores, and a sheet of them to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from PIL import Image

from calotype.files import staged_file
from calotype.picture_files import read_picture


def check_renderer() -> None:
    """Say what to install where nothing can draw, before anything is fetched."""
    if find_spec("resvg_py") is None:
        raise RuntimeError("drawing SVGs needs resvg-py, which is not installed: pip install resvg-py")


def draw(svg: str, path: Path) -> None:
    """Draw an SVG on white. The PNG appears whole or not at all.

    Raises:
        ValueError: the SVG cannot be drawn; names the picture.
    """
    import resvg_py

    try:  # no fonts: no icon has text, and what a machine has installed must not change a picture
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, background="white", skip_system_fonts=True))
    except ValueError as error:
        raise ValueError(f"cannot draw {path.parent.name}/{path.name}: {error}") from None
    with staged_file(path) as scratch:
        read_picture(png).convert("RGB").save(scratch)


def draw_all(svgs: Sequence[str], paths: Sequence[Path], workers: int | None = None) -> None:
    """Draw those that are not there yet, in so many processes (one a core); with one worker, in this process.

    Processes and not threads, since resvg-py keeps Python's lock while it draws.
    """
    for folder in {path.parent for path in paths}:
        for scratch in folder.glob(".*.png"):  # left by a run that was killed in the middle of a picture
            scratch.unlink()
    missing = [(svg, path) for svg, path in zip(svgs, paths, strict=True) if not path.exists()]
    if workers == 1 or len(missing) < 2:
        for svg, path in missing:
            draw(svg, path)
        return
    with ProcessPoolExecutor(workers, initializer=_end_with_parent) as pool:
        for _ in pool.map(draw, *zip(*missing, strict=True), chunksize=16):
            pass


def _end_with_parent() -> None:
    """Let a worker end when what started it is killed; else it would wait for work for ever."""
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


def draw_sheet(rows: Sequence[dict[str, Any]], folder: Path, path: Path, *, size: int = 32, columns: int = 12) -> None:
    """One picture with all of them, `columns` emoji side by side, each in its styles."""
    styles = list(dict.fromkeys(row["style"] for row in rows))
    labels = {label: place for place, label in enumerate(dict.fromkeys(row["label"] for row in rows))}
    width = size * len(styles) + 4
    sheet = Image.new("RGB", (min(columns, len(labels)) * width, -(-len(labels) // columns) * (size + 4)), "gray")
    for row in rows:
        place = labels[row["label"]]
        picture = read_picture(folder / row["file_name"])
        sheet.paste(picture.resize((size, size), Image.Resampling.BOX),
                    (place % columns * width + styles.index(row["style"]) * size, place // columns * (size + 4)))
    with staged_file(path) as scratch:
        sheet.save(scratch)
