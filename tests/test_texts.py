"""Text files, as editors of many systems write them."""

from __future__ import annotations

import pytest

from calotype.texts import prompts_in, read_text, text_lines


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_ends_a_line_and_what_does_not(tmp_path, end, mark):
    inside = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    (tmp_path / "a.txt").write_bytes(mark + f"{inside}{end}{end}  two {end}".encode())
    assert read_text(tmp_path / "a.txt") == f"{inside}\n\n  two \n"
    assert text_lines(tmp_path / "a.txt") == [(1, inside), (3, "two")]


@pytest.mark.parametrize(("content", "said"), [
    ("ein Käuzchen\r\nzwei\r\nKäuzchen".encode("latin-1"), "it is not UTF-8 (.*), as line 1 shows; save it as UTF-8"),
    (b"one\rtwo\r\n\n\xe4", "it is not UTF-8 (.*), as line 4 shows"),
    (b"\xef\xbb\xbfone\ntwo \xff", "it is not UTF-8 (.*), as line 2 shows"),
    ("one\ntwo".encode("utf-16"), "it is UTF-16, as line 1 shows"),
    ("one\ntwo".encode("utf-16-be"), "line 1 holds a character of number 0"),
])
def test_other_encodings_are_errors_that_name_the_line(tmp_path, content, said):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.txt' is damaged: {said}"):
        read_text(tmp_path / "a.txt")


def test_prompts(tmp_path):
    (tmp_path / "p.txt").write_bytes("\ufeff# no\r\n\r\na cat\x85 on a mat\r  # nor this\ra dog".encode())
    assert prompts_in(tmp_path / "p.txt") == ["a cat\x85 on a mat", "a dog"]
    (tmp_path / "p.txt").write_text("# no\n")
    with pytest.raises(ValueError, match=r"p\.txt' has no prompts"):
        prompts_in(tmp_path / "p.txt")
