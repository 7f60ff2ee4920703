"""Text files as people write them: captions, prompts, tables. One way to read them, whatever made them."""

from __future__ import annotations

import codecs
import os
import re

from .files import local_path

_ENDS = re.compile(r"\r\n|\r|\n")  # and no others: `str.splitlines` also cuts at U+2028 and U+0085, which stand in texts
_ELSEWHERE = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}  # what other byte order marks say


def read_text(path: str | os.PathLike[str]) -> str:
    """All of a text file in UTF-8, with or without a byte order mark. Every line ends with a "\\n", however it did in the file.

    Raises:
        ValueError: it is not UTF-8; names the file and the line.
    """
    content = local_path(path).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(_ENDS.findall(error.object[: error.start].decode("utf-8"))) + 1
        other = next((kind for mark, kind in _ELSEWHERE.items() if content.startswith(mark)), None)
        what = f"it is {other}" if other else f"it is not UTF-8 ({error})"
        raise ValueError(f"{str(path)!r} is damaged: {what}, as line {line} shows; save it as UTF-8") from None
    if "\0" in text:  # as UTF-16 without a mark has after every letter of English
        line = len(_ENDS.findall(text[: text.index("\0")])) + 1
        raise ValueError(f"{str(path)!r} is damaged: line {line} holds a character of number 0, which no text in UTF-8 has; "
                         "save it as UTF-8")
    return _ENDS.sub("\n", text)


def text_lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, without the space around them, and their numbers, from 1.

    Raises:
        ValueError: as `read_text` does.
    """
    return [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]


def prompts_in(path: str | os.PathLike[str]) -> list[str]:
    """The prompts in a text file, one a line; empty lines and those that begin with # are none.

    Raises:
        ValueError: there are none; or as `read_text` does.
    """
    prompts = [line for _, line in text_lines(path) if not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{str(path)!r} has no prompts: one a line is needed")
    return prompts
