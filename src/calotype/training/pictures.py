"""Pictures to train on, as a data set of PyTorch: framed, with a caption, and random only by the ticket of a draw."""

from __future__ import annotations

import inspect
import operator
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from ..words import check_keywords, some
from .batches import Draw
from .buckets import Size, assign, bucket_sizes
from .captions import Captions
from .entries import Entry, check_column, dataset_entries, memory_entries
from .folders import METADATA, any_caption, folder_entries
from .framing import Chance, Framed, Framing
from .seeds import generator_for

if TYPE_CHECKING:
    from PIL.Image import Image

_FEWER = 0x66657765  # the first number of a place, so that no ticket has the same one


class Pictures(Dataset[dict[str, Any]]):
    """Pictures and their captions.

    `pictures[Draw(index, ticket)]` is a picture as it is drawn: cropped, mirrored and captioned by what
    `seeds.generator_for(seed, ticket)` gives and nothing else, so that the number of workers changes nothing.
    `pictures[index]` is its plain reading: the middle, not mirrored, under its first caption. Both are a dict of

    - `pixel_values` [3, H, W], float32 in [-1, 1];
    - `caption`, text, and `index`, a number;
    - `original_size` [2], height and width in pixels before, and `crop_top_left` [2], where the crop begins in the
      resized picture: what SDXL is told.

    Make it with `open`, `of` or `from_dataset`.

    Args:
        entries: the pictures.
        framing: how they are resized, cropped and mirrored.
        captions: how captions are drawn; by default one of a picture's own.
        buckets: frame each picture in that of `buckets.bucket_sizes` which is nearest to its proportions, and not in a
            square. Of each file the head is read for this.
        bucket_step, max_ratio: of the buckets.
        seed: not negative.
    """

    takes_draws = True

    def __init__(
        self, entries: Sequence[Entry], framing: Framing | None = None, captions: Captions | None = None, *,
        buckets: bool = False, bucket_step: int = 64, max_ratio: float = 2.0, seed: int = 0,
    ) -> None:
        if not entries:
            raise ValueError("there are no pictures")
        self.entries, self.seed = list(entries), seed
        self.framing, self.drawn_captions = framing or Framing(), captions or Captions()
        self.sizes: list[Size] = [(self.framing.resolution,) * 2] * len(self.entries)
        if buckets:
            allowed = bucket_sizes(self.framing.resolution, bucket_step, max_ratio)
            self.sizes = [allowed[i] for i in assign([entry.size() for entry in self.entries], allowed)]

    @classmethod
    def open(
        cls, train_data_dir: str | os.PathLike[str] | None = None, dataset_name: str | None = None, *,
        dataset_config_name: str | None = None, split: str = "train", cache_dir: str | os.PathLike[str] | None = None,
        image_column: str = "image", caption_column: str | None = "text", captions: Captions | None = None,
        not_in: Sequence[str | os.PathLike[str]] = (), **how: Any,
    ) -> Pictures:
        """The pictures in a folder, or in a data set of the Hugging Face Hub.

        Args:
            train_data_dir: a folder; see `folders.folder_entries`.
            dataset_name, dataset_config_name, split, cache_dir: what `datasets.load_dataset` is told.
            image_column: of a data set. caption_column: of a data set or of metadata; `None` for pictures without captions.
            captions: how they are drawn.
            not_in: folders in `train_data_dir` that are no data, such as a run's own; see `folders.folder_entries`.
            **how: `resolution`, `center_crop`, `random_flip`, `interpolation` and `background` of `Framing`; `buckets`,
                `bucket_step`, `max_ratio` and `seed` of `Pictures`.

        Raises:
            ValueError: both or neither are given, there are no captions, or metadata cannot be read.
            FileNotFoundError: there are no pictures.
            ModuleNotFoundError: `datasets` is needed and not installed.
        """
        if (train_data_dir is None) == (dataset_name is None):
            raise ValueError("give either train_data_dir, a folder of pictures, or dataset_name, a data set of the Hub")
        if captions is not None and captions.constant is not None:
            caption_column = None
        if dataset_name is not None:
            dataset = _load_dataset(dataset_name, dataset_config_name, split=split, cache_dir=cache_dir)
            return cls.from_dataset(dataset, image_column, caption_column, captions=captions, **how)
        assert train_data_dir is not None
        entries = folder_entries(train_data_dir, caption_column, not_in)
        if caption_column is not None and not any_caption(entries):
            raise ValueError(f"the pictures in {str(train_data_dir)!r} have no captions: neither in a column {caption_column!r} "
                             f"of {' or '.join(METADATA)}, nor in NAME.txt beside NAME.png. caption_column=None does without, "
                             "and Captions(constant=...) gives all the same one")
        return cls.from_entries(entries, captions, **how)

    @classmethod
    def of(
        cls, images: Sequence[Image], texts: Sequence[str | Sequence[str]] | None = None,
        rows: Sequence[dict[str, Any]] | None = None, *, captions: Captions | None = None, **how: Any,
    ) -> Pictures:
        """PIL images in memory, each with a caption or several and its metadata. `captions` and `how` are as `open` has them."""
        return cls.from_entries(memory_entries(images, texts, rows), captions, **how)

    @classmethod
    def from_dataset(
        cls, dataset: Any, image_column: str = "image", caption_column: str | None = "text", *, captions: Captions | None = None,
        **how: Any,
    ) -> Pictures:
        """The pictures of a `datasets.Dataset`, one split. `captions` and `how` are as `open` has them."""
        return cls.from_entries(dataset_entries(dataset, image_column, caption_column), captions, **how)

    @classmethod
    def from_entries(cls, entries: Sequence[Entry], captions: Captions | None = None, **how: Any) -> Pictures:
        """The pictures that entries name. `captions` and `how` are as `open` has them."""
        of_framing = set(Framing.__dataclass_fields__)
        check_keywords("Pictures", how, [*sorted(of_framing), "buckets", "bucket_step", "max_ratio", "seed"])
        framing = Framing(**{name: value for name, value in how.items() if name in of_framing})
        return cls(entries, framing, captions, **{name: value for name, value in how.items() if name not in of_framing})

    # -- reading ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        index, chance, caption = self.drawn(draw)
        framed = self.framed(index, chance)
        return {
            "pixel_values": framed.pixel_values, "caption": caption, "index": index,
            "original_size": torch.tensor(framed.original_size), "crop_top_left": torch.tensor(framed.crop_top_left)}

    def drawn(self, draw: Draw | int) -> tuple[int, Chance | None, str]:
        """What a draw comes to before the picture is read: its index, how it is framed, and its caption.

        Raises:
            IndexError: there is no such picture.
        """
        index = draw[0] if isinstance(draw, tuple) else operator.index(draw)
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} is not there: there are {len(self)}")
        index %= len(self)
        own = self.entries[index].captions
        if not isinstance(draw, tuple):
            return index, None, self.drawn_captions.first(own)
        generator = generator_for(self.seed, draw[1])
        return index, Chance.drawn(generator), self.drawn_captions(own, generator)

    def framed(self, index: int, chance: Chance | None = None, flipped: bool | None = None) -> Framed:
        """A picture framed as `Framing` says.

        Raises:
            ValueError: it cannot be read; names it.
        """
        entry = self.entries[index]
        picture = entry.read()
        try:
            return self.framing(picture, self.sizes[index], chance, flipped)
        except (OSError, SyntaxError, ValueError) as error:  # pixels out of range, or a PIL image whose file was not read yet
            raise ValueError(f"{entry.name} cannot be read as a picture ({error})") from error

    # -- what is known ------------------------------------------------------------------------------------------------

    def captions(self, index: int) -> list[str]:
        """The captions that a draw of this picture may have, before any is dropped or shuffled."""
        return self.drawn_captions.of(self.entries[index].captions)

    def distinct_captions(self) -> list[str]:
        """All that draws may be captioned, in order, with "" where captions are dropped or missing: what to encode beforehand.

        Raises:
            ValueError: tags are shuffled, so there is no end of captions.
        """
        if self.drawn_captions.shuffle_tags:
            raise ValueError("with shuffle_tags captions are made anew at each draw, and cannot be listed beforehand")
        lists = [self.captions(index) for index in range(len(self))]
        empty = [""] if self.drawn_captions.dropout or not all(lists) else []
        return sorted({caption for captions in lists for caption in captions}.union(empty))

    def entry(self, index: int) -> dict[str, Any]:
        """The metadata of a picture, by column."""
        return self.entries[index].row

    @property
    def groups(self) -> list[list[int]]:
        """The pictures of each size, for `Batches`: one list, or one for each bucket that is in use."""
        by_size: dict[Size, list[int]] = {}
        for index, size in enumerate(self.sizes):
            by_size.setdefault(size, []).append(index)
        return [by_size[size] for size in sorted(by_size)]

    # -- fewer --------------------------------------------------------------------------------------------------------

    def select(self, predicate: Callable[[dict[str, Any]], bool]) -> Pictures:
        """The pictures whose metadata (`entry`) fits, counted anew from 0.

        Raises:
            ValueError: none do.
        """
        kept = [index for index in range(len(self)) if predicate(self.entry(index))]
        if not kept:
            raise ValueError(f"of {len(self)} pictures none fits")
        return self._kept(kept)

    def sample(self, count: int) -> Pictures:
        """So many of the pictures, which ones says the seed, in their order and counted anew; all if there are no more."""
        order = torch.randperm(len(self), generator=generator_for(self.seed, _FEWER))
        return self._kept(sorted(order[:count].tolist()))

    def _kept(self, kept: Sequence[int]) -> Pictures:
        fewer = Pictures([self.entries[index] for index in kept], self.framing, self.drawn_captions, seed=self.seed)
        fewer.sizes = [self.sizes[index] for index in kept]
        return fewer

    def where(self, **columns: Any) -> Pictures:
        """The pictures whose metadata has these values: `where(split="train", style=["flat", "3d"])`, any one of a list.

        Raises:
            ValueError: there is no such column, or no picture with such values; lists those there are.
        """
        fewer = self
        for column, value in columns.items():
            check_column(column, list(dict.fromkeys(name for entry in self.entries for name in entry.row)), "the metadata")
            allowed = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
            there = {str(entry.row.get(column)) for entry in fewer.entries}
            if not any(entry.row.get(column) in allowed for entry in fewer.entries):
                raise ValueError(f"no picture has {column} = {value!r}; there are {some(sorted(there))}")
            fewer = fewer.select(lambda row, column=column, allowed=allowed: row.get(column) in allowed)  # type: ignore[misc]
        return fewer


def _load_dataset(name: str, config: str | None, **how: Any) -> Any:
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ModuleNotFoundError:
        raise ModuleNotFoundError(f"the data set {name!r} is read with the library `datasets`, which is not installed: "
                                  "pip install datasets") from None
    if "trust_remote_code" in inspect.signature(load_dataset).parameters:  # releases that could run a data set's own script
        how["trust_remote_code"] = False
    return load_dataset(name, config, **how)
