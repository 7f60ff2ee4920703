"""Pictures in files, in bytes and at addresses. This is the one place where Pillow opens anything.

Pillow tells a format by its content, and some of its formats start other programs or read other files (EPS starts Ghostscript,
whatever the file is called). So only the formats in `FORMATS` are tried, and how large a picture is, is checked from its header,
before a pixel is decoded. Of files with several frames the first is read.
"""

from __future__ import annotations

import codecs
import functools
import io
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

from .files import local_path
from .words import listing, some

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = {"PNG": "PngImagePlugin", "JPEG": "JpegImagePlugin", "WEBP": "WebPImagePlugin", "BMP": "BmpImagePlugin",
           "GIF": "GifImagePlugin", "TIFF": "TiffImagePlugin", "AVIF": "AvifImagePlugin"}
"""The formats that are read, by Pillow's names, and Pillow's module for each; AVIF where Pillow has it."""

MAX_PIXELS = 2**27
"""Width times height of the largest picture that is read, unless `max_pixels` says otherwise: 134 million, as of the largest
cameras. Pillow has a limit of its own above that, `PIL.Image.MAX_IMAGE_PIXELS`, which is not touched."""

MAX_BYTES, MAX_SECONDS = 2**27, 60.0
"""The longest file that is fetched from an address, and how long that may take."""

Source = str | os.PathLike[str] | bytes | IO[bytes]

ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # of EXIF: width and height are each other's
_SIGNATURES = (
    (b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"),
    (b"%!PS", "PostScript (EPS)"), (b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"), (b"%PDF", "PDF"), (b"8BPS", "PSD (Photoshop)"),
    (b"\xd7\xcd\xc6\x9a", "WMF"), (b"<svg", "SVG"), (b"<?xml", "XML, such as SVG"), (b"<!doctype html", "HTML"),
    (b"<html", "HTML"), (b"PK\x03\x04", "ZIP"), (b"\0\0\1\0", "ICO"), (b"\0\0\0\x0cjP", "JPEG 2000"), (b"\xff\x0a", "JPEG XL"))
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC or AVIF"}


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow can read."""
    found = []
    for name, module in FORMATS.items():
        try:
            plugin = import_module(f"PIL.{module}")
        except ModuleNotFoundError:  # an older Pillow
            continue
        if getattr(plugin, "SUPPORTED", True):
            found.append(name)
    return tuple(found)


@contextmanager
def opened_picture(
    source: Source, *, formats: Sequence[str] | None = None, max_pixels: int | None = None
) -> Iterator[ImageFile]:
    """A picture of which the header is read, and nothing decoded: its size, its mode, its metadata.

    Args:
        source: a file's path, its bytes, or an open binary file.
        formats: some of `FORMATS`, of which by default all are read.
        max_pixels: width times height of the largest that is read; by default `MAX_PIXELS`.

    Raises:
        ValueError: it is no picture of these formats, damaged or too large; names the file, what it is, and what is read.
        OSError: there is no such file, or it cannot be read.
    """
    from PIL import Image

    formats = tuple(name for name in readable_formats() if formats is None or name in formats)
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    name = named(source)
    with _binary(source, name) as file:
        with _explained(name, formats, limit, file):
            image = Image.open(file, formats=formats)
        with image:
            if image.width * image.height > limit:
                raise ValueError(f"{name} has {image.width} x {image.height} pixels, and at most {limit} are read; max_pixels, "
                                 "or calotype.picture_files.MAX_PIXELS, allows more")
            yield image


def read_picture(
    source: Source, *, upright: bool = False, formats: Sequence[str] | None = None, max_pixels: int | None = None
) -> Image:
    """A picture, decoded, in the mode that it is stored in; of an animation the first frame.

    Args:
        upright: turn it as its EXIF data says.
        source, formats, max_pixels: as in `opened_picture`, which says what is raised.
    """
    from PIL import ImageOps

    opened = opened_picture(source, formats=formats, max_pixels=max_pixels)
    with opened as image, _explained(named(source), (image.format or "",)):
        image.load()
        return ImageOps.exif_transpose(image) if upright else image


def shown_size(source: Source) -> tuple[int, int]:
    """(width, height) of a picture as it is shown, turned as its EXIF data says; only the header is read."""
    with opened_picture(source) as image, _explained(named(source), (image.format or "",)):
        return turned_size(image)


def turned_size(image: Image) -> tuple[int, int]:
    """(width, height) of a PIL image turned as its EXIF data says."""
    width, height = image.size
    return (height, width) if image.getexif().get(ORIENTATION) in _ON_ITS_SIDE else (width, height)


def load_image(
    image: Source | Image, convert_method: Callable[[Image], Image] | None = None, *, max_pixels: int | None = None,
    max_bytes: int | None = None, timeout: float | None = None,
) -> Image:
    """A picture from a file, from an address or from memory as a PIL image, upright, ready for a pipeline.

    Args:
        image: a file's path, an address that begins with `http://` or `https://`, a file's bytes, an open binary file, or a PIL
            image.
        convert_method: is given the upright PIL image, and its result is returned. By default pictures become RGB, and what
            is transparent is laid on white.
        max_pixels: width times height of the largest picture that is read; by default `MAX_PIXELS`.
        max_bytes, timeout: how much is fetched from an address, and for how many seconds; by default `MAX_BYTES`,
            `MAX_SECONDS`.

    Raises:
        ValueError: no picture, of no format that is read, damaged or too large; names it.
        OSError: there is no such file, or it cannot be read or fetched.
    """
    from PIL import Image as pil
    from PIL import ImageOps

    if isinstance(image, pil.Image):
        picture = ImageOps.exif_transpose(image)
    elif isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        content = io.BytesIO(fetched(image, max_bytes, timeout))
        content.name = image  # what errors call it
        picture = read_picture(content, upright=True, max_pixels=max_pixels)
    else:
        picture = read_picture(image, upright=True, max_pixels=max_pixels)
    if convert_method is not None:
        return convert_method(picture)
    from .images.reading import plain

    converted: Image = plain(picture).convert("RGB")
    return converted


def named(source: Source) -> str:
    """What errors call a source of a picture."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"a picture of {len(source)} bytes"
    name = getattr(source, "name", None) if hasattr(source, "read") else source
    return repr(os.fspath(name))[:300] if isinstance(name, (str, os.PathLike)) else "a picture in an open file"


@contextmanager
def _binary(source: Source, name: str) -> Iterator[IO[bytes]]:
    """The source as a file that can be read from its beginning."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        path = local_path(source)
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{name} is a folder, and a picture is needed: a file of {some(readable_formats())}")
        if not stat.S_ISREG(mode):  # a pipe would be waited for
            raise ValueError(f"{name} is no regular file, and a picture is needed: a file of {some(readable_formats())}")
        with path.open("rb") as file:
            yield file
    elif not hasattr(source, "read"):
        raise ValueError(f"a picture is a {type(source).__name__}, but must be a file's path, its bytes or an open binary file")
    elif hasattr(source, "seekable") and source.seekable():
        yield source
    else:
        content = source.read(MAX_BYTES + 1)
        if not isinstance(content, bytes):
            raise ValueError(f"{name} is no binary file")
        if len(content) > MAX_BYTES:
            raise ValueError(f"{name} has more than {MAX_BYTES} bytes")
        yield io.BytesIO(content)


@contextmanager
def _explained(name: str, formats: Sequence[str], limit: int | None = None, file: IO[bytes] | None = None) -> Iterator[None]:
    """What Pillow raises, of whatever type, as one error; faults of the disk and of memory go through."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} has too many pixels ({error}); at most {limit or MAX_PIXELS} are read") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        kind = formats[0] if file is None else _kind(file)
        if kind not in formats:
            raise ValueError(f"{name} is {kind}, and no picture that is read here; those are {listing(formats)}") from None
        said = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise ValueError(f"{name} is a damaged {kind} ({said})") from None


def _kind(file: IO[bytes]) -> str:
    """What a file is by its first bytes."""
    file.seek(0)
    head = file.read(64)
    if not isinstance(head, bytes):
        return "a text file"
    if not head:
        return "empty"
    for start, kind in _SIGNATURES:
        if head.lower().startswith(start.lower()):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "a video")
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # its last letter may be cut
    except UnicodeDecodeError:
        return "of no known format"
    return "text" if all(letter.isprintable() or letter.isspace() for letter in text) else "of no known format"


def fetched(address: str, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
    """What stands at an address of HTTP or HTTPS: so many bytes at most, and in so many seconds, redirections and all.

    Raises:
        ValueError: there are more bytes. OSError: it cannot be fetched, or not in time.
    """
    most = MAX_BYTES if max_bytes is None else max_bytes
    seconds = MAX_SECONDS if timeout is None else timeout
    result: list[Any] = []

    def fetch() -> None:
        try:
            result.append(_fetched(address, most, seconds))
        except Exception as error:
            result.append(error)

    worker = Thread(target=fetch, daemon=True)  # a socket's own limit is for each read, not for a server that sends drop by drop
    worker.start()
    worker.join(seconds)
    if not result:
        raise TimeoutError(f"{address!r:.300} cannot be fetched in {seconds:g} seconds")
    if isinstance(result[0], ValueError):
        raise result[0]
    if isinstance(result[0], Exception):
        raise OSError(f"{address!r:.300} cannot be fetched ({result[0]})") from result[0]
    content: bytes = result[0]
    return content


def _fetched(address: str, most: int, seconds: float) -> bytes:
    from urllib import request

    opener = request.OpenerDirector()  # without the handlers of file:, ftp: and data:, where a server could send us
    for handler in (request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.HTTPRedirectHandler,
                    request.HTTPErrorProcessor, request.HTTPDefaultErrorHandler, request.UnknownHandler):
        opener.add_handler(handler())
    end = time.monotonic() + seconds
    content = bytearray()
    with opener.open(request.Request(address, headers={"User-Agent": "calotype"}), timeout=seconds) as response:
        while part := response.read1(2**16):
            content += part
            if len(content) > most:
                raise ValueError(f"{address!r:.300} has more than {most} bytes; max_bytes allows more")
            if time.monotonic() > end:
                raise TimeoutError(f"not done in {seconds:g} seconds")
    return bytes(content)
