"""The one reader of picture files: what it reads, and what it refuses whatever it is called."""

from __future__ import annotations

import http.server
import io
import os
import re
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import calotype
from calotype import picture_files
from calotype.evaluation.data import Row, read_pictures
from calotype.inputs import read_input
from calotype.picture_files import load_image, opened_picture, read_picture, readable_formats, shown_size
from calotype.recipe import Recipe
from calotype.training.entries import dataset_entries
from calotype.training.pictures import Pictures

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n0 0 32 32 rectfill\nshowpage\n%%EOF\n"


def photo(width=24, height=16):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *chunks, pixels=b""):
    """A PNG of grey whose header may say anything."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


# -- what is read ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_formats(kind, tmp_path):
    if kind not in readable_formats():
        pytest.skip(f"this Pillow reads no {kind}")
    path = tmp_path / "named.like.nothing"
    path.write_bytes(saved(photo(), kind))
    expected = Image.open(path).convert("RGB").tobytes()
    with path.open("rb") as file:
        for source in (path, str(path), path.read_bytes(), file, Unseekable(path.read_bytes())):
            assert load_image(source).tobytes() == expected
    with opened_picture(path) as image:
        assert image.size == (24, 16)


class Unseekable:
    """What comes down a line."""

    def __init__(self, content):
        self.read = io.BytesIO(content).read


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        exact = {"lossless": True} if kind == "WEBP" else {}
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **exact)
        assert load_image(content).getpixel((3, 3)) == (255, 0, 0), kind


def test_orientation():
    turned = photo()
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(turned, "PNG", exif=exif)
    upright = turned.transpose(Image.Transpose.ROTATE_270)
    assert load_image(content).tobytes() == upright.tobytes() and read_picture(content).size == turned.size
    turned.getexif()[0x0112] = 6
    assert load_image(turned).size == upright.size


def test_a_mask_of_zeros_and_ones_in_a_file(tmp_path):
    ones = np.zeros((8, 8), np.uint8)
    ones[2:4, 2:4] = 1
    for kind in (np.uint8, np.uint16):
        Image.fromarray(ones.astype(kind)).save(tmp_path / "mask.png")
        assert np.array_equal(np.asarray(read_input(tmp_path / "mask.png", "mask")), 255 * ones)
        assert read_input(tmp_path / "mask.png").getextrema() == ((0, 1),) * 3
        assert read_input(tmp_path / "mask.png", "depth_map").getextrema() == (0, 1)


@pytest.mark.parametrize("exif", [b"MM\0*\0", b"neither way round"])
def test_damaged_exif_is_named(exif, tmp_path):
    photo().save(tmp_path / "x.png", exif=b"Exif\0\0" + exif)
    for read in (load_image, shown_size, read_input):
        with pytest.raises(ValueError, match=r"x\.png' is a damaged PNG"):
            read(tmp_path / "x.png")
    for buckets in (False, True):
        with pytest.raises(ValueError, match=r"x\.png' is a damaged PNG"):
            Pictures.open(tmp_path, caption_column=None, buckets=buckets)[0]


def test_as_the_oracle_loads(diffusers, tmp_path):
    photo().save(tmp_path / "x.png")
    for mode in ("RGB", "L", "P", "1", "CMYK"):
        photo().convert(mode).save(tmp_path / "x.tiff")
        expected = diffusers.utils.load_image(str(tmp_path / "x.tiff"))
        assert load_image(str(tmp_path / "x.tiff")).tobytes() == expected.tobytes() and expected.mode == "RGB"
    assert load_image(tmp_path / "x.png", lambda image: image.convert("L")).mode == "L"


def test_what_loading_does_to_modes():
    """What is transparent is laid on white, and 16 bits are scaled; the oracle shows what is hidden, and cuts off."""
    assert load_image(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    deep = saved(Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)), "PNG")
    assert load_image(deep).getpixel((0, 0)) == (128, 128, 128)


# -- what is not -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A `gs` on the path that leaves a mark when it is started."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # it is looked for once a process
    return tmp_path / "started"


class Undecoded:
    """As much of `datasets.Dataset` as is used: it decodes with Pillow unless it is told not to."""

    column_names = ("image",)

    def __init__(self, content, decode=True):
        self.content, self.decode = content, decode
        kind = type("Image", (), {"__init__": lambda kind, decode=True: setattr(kind, "decode", decode)})
        self.features = {"image": kind(decode)}

    def __len__(self):
        return 1

    def cast_column(self, column, kind):
        return Undecoded(self.content, kind.decode)

    def __getitem__(self, key):
        if not self.decode:
            return {"image": {"bytes": self.content, "path": None}}
        image = Image.open(io.BytesIO(self.content))
        image.load()
        return {"image": image}


def ways_in(path):
    """All ways by which a picture file comes into the library."""
    return {
        "load_image": lambda: load_image(path), "an open file": lambda: load_image(path.open("rb")),
        "bytes": lambda: load_image(path.read_bytes()), "image": lambda: read_input(path),
        "mask": lambda: read_input(path, "mask"), "depth": lambda: read_input(path, "depth_map"),
        "recipe": lambda: Recipe.from_png(path),
        "training": lambda: Pictures.open(path.parent, caption_column=None)[0],
        "buckets": lambda: Pictures.open(path.parent, caption_column=None, buckets=True),
        "a data set": lambda: dataset_entries(Undecoded(path.read_bytes()), caption_column=None)[0].read(),
        "evaluation": lambda: read_pictures([Row(path)], 16, 16)}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_no_picture_starts_a_program(ghostscript, tmp_path):
    path = tmp_path / "pictures" / "cat.png"
    path.parent.mkdir()
    path.write_bytes(EPS)
    with pytest.raises(OSError), Image.open(path) as image:
        image.load()
    assert ghostscript.exists(), "the attack itself works"
    ghostscript.unlink()
    for way, read in ways_in(path).items():
        with pytest.raises(ValueError, match="PostScript.*'PNG'") as caught:
            read()
        assert not ghostscript.exists(), way
        assert "cat.png" in str(caught.value) or way in ("bytes", "a data set")


def test_nothing_else_opens_pictures():
    """Whoever opens a picture does it by this reader."""
    sources = [*Path(calotype.__file__).parent.rglob("*.py"), *(Path(__file__).parent.parent / "examples").rglob("*.py")]
    others = [path.name for path in sources if re.search(r"\b(Image|pil)\.open\(", path.read_text())]
    assert others == ["picture_files.py"]


@pytest.mark.parametrize(("content", "kind"), [
    (b"", "is empty"), (b"a cat", "is text"), (b"%PDF-1.7", "is PDF"), (b"8BPS\0\1", "is PSD"), (b"<svg xmlns='x'/>", "is SVG"),
    (b"\xd7\xcd\xc6\x9a" + bytes(40), "is WMF"), (b"P6 2 2 255\n" + bytes(12), "no picture that is read"),
    (b"\0\0\0\x18ftypheic" + bytes(40), "is HEIC"), (bytes(range(128, 200)), "is of no known format"),
    (b"<!DOCTYPE html><html>", "is HTML")])
def test_what_a_file_is(content, kind, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.png' {kind}.*'PNG'|x\.png' .*{kind}.*'PNG'"):
        read_picture(tmp_path / "x.png")
    with pytest.raises(ValueError, match=rf"{len(content)} bytes"):
        read_picture(content)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(IsADirectoryError, match="is a folder, and a picture is needed"):
        read_picture(tmp_path)
    with pytest.raises(ValueError, match="a picture is a int"):
        load_image(3)
    with pytest.raises(ValueError, match="no binary file|text file"):
        read_picture(io.StringIO("words"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ValueError, match="no regular file"):
            read_picture(tmp_path / "pipe.png")


# -- too large -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_told_by_the_header(tmp_path, monkeypatch):
    """Of the second Pillow itself would only warn."""
    decoded = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: decoded.append(image.size))
    path = tmp_path / "huge.png"
    for width, height in ((60_000, 60_000), (15_000, 10_000)):
        path.write_bytes(png(width, height))
        assert path.stat().st_size < 100
        for way, read in ways_in(path).items():
            with pytest.raises(ValueError, match="pixels") as caught:
                read()
            assert "at most 134217728 are read" in str(caught.value), way
    assert decoded == []


def test_another_limit(monkeypatch):
    content = saved(photo(24, 16), "PNG")
    with pytest.raises(ValueError, match=r"24 x 16 pixels, and at most 383 are read; max_pixels.*MAX_PIXELS"):
        load_image(content, max_pixels=383)
    assert load_image(content, max_pixels=384).size == (24, 16)
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 383)
    with pytest.raises(ValueError, match="at most 383"):
        read_picture(content)


def test_frames_beyond_the_first_are_not_decoded():
    """The second frame of this GIF is 60,000 pixels wide and high."""
    one = saved(Image.new("P", (8, 8)), "GIF")
    assert one.endswith(b";")
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x08\x01\x00\x00"
    assert read_picture(one[:-1] + frame + b";").size == (8, 8)
    first = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + frame + b";"
    with pytest.raises(ValueError, match="pixels"):
        read_picture(first)


def test_text_that_unpacks_to_more_than_a_picture():
    bomb = zlib.compress(bytes(2**23), 9)
    for kind in (b"zTXt", b"iTXt"):
        content = b"calotype\0" + (b"\0" if kind == b"zTXt" else b"\1\0\0\0") + bomb
        with pytest.raises(ValueError, match="damaged PNG"):
            read_picture(png(8, 8, chunk(kind, content), pixels=bytes(9 * 8)))


# -- damaged ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_truncated(kind, tmp_path):
    whole = saved(photo(64, 48), kind)
    path = tmp_path / "cut.png"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"cut\.png' is a damaged {kind} \(.+\)"):
        read_picture(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of TIFFs
@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"]), at=st.integers(0, 400), byte=st.integers(0, 255),
       end=st.integers(8, 2000))
def test_a_changed_byte_never_leads_to_another_error(kind, at, byte, end):
    content = bytearray(saved(photo(), kind))[:end]
    content[min(at, len(content) - 1)] = byte
    try:
        read_picture(bytes(content), upright=True)
        shown_size(bytes(content))
    except ValueError as error:
        assert "bytes" in str(error)


def test_a_full_disk_is_no_damaged_picture(monkeypatch):
    def fail(image):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(OSError, match="Input/output"):
        read_picture(saved(photo(), "PNG"))


# -- addresses -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """Serves a picture, and things that are none."""
    content = saved(photo(), "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/none.png":
                return self.send_error(404)
            if self.path.startswith("/to"):
                self.send_response(302)
                self.send_header("Location", {"/to/cat": "/cat.png", "/to/file": "file:///etc/passwd",
                                              "/to/ftp": "ftp://127.0.0.1:9/x"}[self.path])
                return self.end_headers()
            self.send_response(200)
            self.end_headers()
            try:
                if self.path == "/slow.png":
                    for byte in content:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(0.05)
                elif self.path == "/endless.png":
                    while True:
                        self.wfile.write(bytes(2**16))
                else:
                    self.wfile.write({"/cat.png": content, "/eps.png": EPS}[self.path])
            except OSError:  # the other side has had enough
                pass

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_addresses(server):
    assert load_image(f"{server}/cat.png").tobytes() == photo().tobytes()
    assert load_image(f"{server}/to/cat").tobytes() == photo().tobytes()
    with pytest.raises(OSError, match=r"none\.png' cannot be fetched \(.*404"):
        load_image(f"{server}/none.png")
    with pytest.raises(ValueError, match=r"eps\.png' is PostScript"):
        load_image(f"{server}/eps.png")
    for away in ("file", "ftp"):
        with pytest.raises(OSError, match="cannot be fetched"):
            load_image(f"{server}/to/{away}")


def test_no_more_is_fetched_than_asked_for(server):
    with pytest.raises(ValueError, match="more than 300000 bytes"):
        load_image(f"{server}/endless.png", max_bytes=300_000)
    start = time.monotonic()
    with pytest.raises(OSError, match="seconds"):
        load_image(f"{server}/slow.png", timeout=0.3)
    assert time.monotonic() - start < 5
