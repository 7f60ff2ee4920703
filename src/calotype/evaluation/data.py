"""What is evaluated on: the pictures of a data set, and prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..files import local_path
from ..images.conversion import pil_to_tensor
from ..inputs import read_input
from ..texts import prompts_in
from ..training.entries import as_captions
from ..training.folders import folder_entries
from ..training.tables import table_rows

TRAINED = (None, "train")
"""What `split` is of pictures and prompts that a model was trained on; of others it is `held_out`, or whatever it is called."""


@dataclass(frozen=True)
class Row:
    """A picture of a data set: its file, its texts, and what is said of it."""

    path: str | os.PathLike[str]
    texts: tuple[str, ...] = ()
    label: str | None = None
    style: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A picture to be made: what of, the seed of its generator, and what should be seen in it: a label, or any of several."""

    prompt: str
    seed: int
    label: str | tuple[str, ...] | None = None
    style: str | None = None
    split: str | None = None


def read_rows(folder: str | os.PathLike[str]) -> list[Row]:
    """The pictures of a folder as training reads them (`training.folders`), with `text`, `label`, `style` and `split` from their
    metadata where there are such columns. They are not opened.

    Raises:
        ValueError: a row that is none, or fewer than two pictures; names the file and the line. FileNotFoundError: none there.
    """
    entries = folder_entries(folder, None)
    rows = [Row(entry.image, as_captions(entry.row.get("text"), entry.name), **_facts(entry.row, entry.name))
            for entry in entries]
    if len(rows) < 2:
        raise ValueError(f"{str(folder)!r} has {len(rows)} picture, and an evaluation needs at least 2")
    return rows


def read_prompts(path: str | os.PathLike[str], seed: int = 0, count: int | None = None) -> list[Prompt]:
    """The prompts in a file: rows of JSON with `prompt`, `label`, `style`, `seed`, `split` (`.jsonl`), or a text a line.

    `label` may be a list, of which any is right. Where a row has no seed, it is `seed` plus the row's number, from 0. `count`
    takes so many at even distances, so that every part of the file is asked for; if it has fewer, it begins again at the first,
    with other seeds.

    Raises:
        ValueError: a row that is none, or no rows; names the file and the line.
    """
    path = local_path(path)
    if path.suffix.lower() == ".jsonl":
        prompts = [_prompt(entry, seed + i, f"{str(path)!r}, line {number}")
                   for i, (number, entry) in enumerate(table_rows(path))]
    else:
        prompts = [Prompt(text, seed + i) for i, text in enumerate(prompts_in(path))]
    if not prompts:
        raise ValueError(f"{str(path)!r} has no prompts")
    return prompts if count is None else evenly(prompts, count) if 0 < count <= len(prompts) else repeated(prompts, count)


def _prompt(entry: Mapping[str, Any], seed: int, where: str) -> Prompt:
    text, own = entry.get("prompt"), entry.get("seed", seed)
    if not isinstance(text, str):
        raise ValueError(f"{where} has no prompt: it is {text!r:.80}")
    if isinstance(own, bool) or not isinstance(own, int) or not 0 <= own < 2**63:
        raise ValueError(f"{where}: seed is {own!r:.80}, but must be a whole number of at least 0")
    label = entry.get("label")
    if not isinstance(label, list):
        return Prompt(text, own, **_facts(entry, where))
    if not label or not all(isinstance(one, str) for one in label):
        raise ValueError(f"{where}: label is {label!r:.80}, but must be a text, or several of which any is right")
    return Prompt(text, own, tuple(label), **_facts(entry, where, ("style", "split")))


def _facts(
    entry: Mapping[str, Any], where: str, names: Sequence[str] = ("label", "style", "split")
) -> dict[str, str | None]:
    facts = {name: entry.get(name) for name in names}
    for name, value in facts.items():
        if not isinstance(value, (str, type(None))):
            raise ValueError(f"{where}: {name} is {value!r:.80}, but must be a text")
    return facts


def prompts_of(rows: Sequence[Row], count: int, seed: int = 0) -> list[Prompt]:
    """Prompts from a data set: the first text of `count` pictures, as many of each split; picture i has seed + i."""
    if not (texts := [row for row in rows if row.texts]):
        raise ValueError("the data set has no texts, and so gives no prompts: give a file of prompts")
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    splits = sorted({row.split or "" for row in texts})
    shares = [count // len(splits) + (i < count % len(splits)) for i in range(len(splits))]
    chosen = []
    for split, share in zip(splits, shares, strict=True):
        few = evenly([row for row in texts if (row.split or "") == split], share)
        chosen += [few[i % len(few)] for i in range(share)]
    return [Prompt(row.texts[0], seed + i, row.label, row.style, row.split) for i, row in enumerate(chosen)]


def repeated(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first `count`, begun again with other seeds as often as need be."""
    if count < 1:
        raise ValueError(f"count is {count}, but must be at least 1")
    last = max(prompt.seed for prompt in prompts) + 1
    return [Prompt(one.prompt, one.seed + last * (i // len(prompts)), one.label, one.style, one.split)
            for i in range(count) for one in [prompts[i % len(prompts)]]]


def evenly(rows: Sequence[Any], count: int) -> list[Any]:
    """`count` of the rows, or all if there are no more, at even distances: always the same, whatever the seed."""
    count = min(count, len(rows))
    return [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]


def read_pictures(rows: Sequence[Row], height: int, width: int) -> Tensor:
    """[N, 3, height, width] in [-1, 1]: see `fitted`."""
    return torch.cat([fitted(read_input(row.path), height, width) for row in rows])


def fitted(picture: Any, height: int, width: int) -> Tensor:
    """[1, 3, height, width] in [-1, 1]: the middle of a PIL image in these proportions, resized (bicubic, without aliasing)."""
    from PIL import ImageOps

    return pil_to_tensor(ImageOps.fit(picture.convert("RGB"), (width, height)))
