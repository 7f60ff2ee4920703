"""Pictures before they are read: where they are, and what is known of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..picture_files import ORIENTATION, read_picture, shown_size, turned_size
from ..words import nearest, some

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Row:
    """A picture in a data set of the `datasets` library, decoded when it is asked for."""

    dataset: Any
    number: int
    column: str

    def read(self) -> Any:
        value = self.dataset[self.number][self.column]
        if isinstance(value, dict):  # not decoded: its bytes, or where they are
            return read_picture(value.get("bytes") or value["path"], upright=True)
        return value


@dataclass(frozen=True)
class Entry:
    """One picture and what is known of it.

    Attributes:
        image: the file's path, a PIL image, or a row of a data set.
        captions: none, one or several.
        row: the metadata, by column.
        name: what errors call it.
    """

    image: Any
    captions: tuple[str, ...]
    row: dict[str, Any]
    name: str

    def read(self) -> Image:
        """The picture, whatever its size and mode; of a file upright.

        Raises:
            ValueError: it is damaged, missing, or no picture; names it.
        """
        from PIL import Image

        try:
            image = read_picture(self.image, upright=True) if isinstance(self.image, Path) else self.image
            image = image.read() if isinstance(image, Row) else image
        except (OSError, SyntaxError, ValueError) as error:  # the last two are Pillow's, of a data set that decodes
            raise ValueError(f"{self.name} cannot be read as a picture ({error})") from error
        if not isinstance(image, Image.Image):
            raise ValueError(f"{self.name} is a {type(image).__name__}, and a PIL image is needed")
        return image

    def size(self) -> tuple[int, int]:
        """(width, height) of the picture as it is shown, turned as its EXIF says. Of a file only the head is read."""
        if not isinstance(self.image, Path):
            return turned_size(self.read())
        try:
            return shown_size(self.image)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.name} cannot be read as a picture ({error})") from error

    def stamp(self) -> list[Any]:
        """What changes when the picture does: a file's length and time, a data set's fingerprint, or a hash of the pixels."""
        if isinstance(self.image, Path):
            status = self.image.stat()
            return [str(self.image.resolve()), status.st_size, status.st_mtime_ns]
        if isinstance(self.image, Row) and (fingerprint := getattr(self.image.dataset, "_fingerprint", None)):
            return [fingerprint, self.image.number, self.image.column]
        image = self.read()
        return [image.mode, image.size, image.getexif().get(ORIENTATION, 1), hashlib.sha256(image.tobytes()).hexdigest()]


def memory_entries(images: Any, texts: Any = None, rows: Any = None) -> list[Entry]:
    """Entries of PIL images, with a caption, or a list of captions, for each.

    Raises:
        ValueError: texts or rows for another number of pictures.
    """
    images = list(images)
    for what, given in (("texts", texts), ("rows", rows)):
        if given is not None and len(given) != len(images):
            raise ValueError(f"there are {len(images)} pictures and {len(given)} {what}; give one for each")
    return [Entry(image, as_captions(texts[i], f"texts[{i}]") if texts is not None else (),
                  dict(rows[i]) if rows is not None else {}, f"images[{i}]") for i, image in enumerate(images)]


def dataset_entries(dataset: Any, image_column: str = "image", caption_column: str | None = "text") -> list[Entry]:
    """Entries of a data set of the `datasets` library: what has `column_names`, rows by number and columns by name.

    Where the library would decode the pictures, it is told not to: it opens whatever Pillow does.

    Raises:
        ValueError: it has no such column; lists those it has.
    """
    names = list(dataset.column_names)
    for column in (image_column, caption_column):
        if column is not None:
            check_column(column, names, "the data set")
    kinds = getattr(dataset, "features", None) or {}
    kind: Any = kinds.get(image_column)
    if type(kind).__name__ == "Image":
        dataset = dataset.cast_column(image_column, type(kind)(decode=False))
    plain = [name for name in names if name != image_column and type(kinds.get(name)).__name__ not in ("Image", "Audio", "Video")]
    columns = {name: list(dataset[name]) for name in plain}
    entries = []
    for i in range(len(dataset)):
        row = {name: values[i] for name, values in columns.items()}
        captions = as_captions(row[caption_column], f"row {i} of the data set") if caption_column is not None else ()
        entries.append(Entry(Row(dataset, i, image_column), captions, row, f"row {i} of the data set"))
    return entries


def check_column(column: str, columns: list[str], where: str) -> None:
    """Raise a `ValueError` that lists `columns`, unless `column` is one."""
    if column not in columns:
        raise ValueError(f"{where} has no column {column!r}; its columns are {some(columns)}{nearest(column, columns)}")


def as_captions(value: Any, where: str) -> tuple[str, ...]:
    """The captions that a column holds: text, several texts, or nothing."""
    captions = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(captions, (list, tuple)) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"the caption of {where} is {value!r:.80}, but must be text or a list of texts")
    return tuple(captions)
