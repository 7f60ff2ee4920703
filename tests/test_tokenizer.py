"""`CLIPTokenizer` against transformers' class of the same name, on the bundled vocabulary."""

import functools
import json
import pickle
import random
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calotype.hub import BUNDLED
from calotype.tokenizer import NO_LIMIT, CLIPTokenizer

FOLDER = BUNDLED["calotype/emoji"] / "tokenizer"
START, END = "<|startoftext|>", "<|endoftext|>"
PAIRS = ("vocab.json", "merges.txt")


def marked(content, normalized=True):
    return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": normalized, "rstrip": False,
            "single_word": False}


OLD = {"bos_token": marked(START), "eos_token": marked(END), "unk_token": marked(END), "pad_token": END,
       "model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace"}
STABLE_DIFFUSION_2 = {"bos_token": marked(START), "eos_token": marked(END), "unk_token": marked(END), "pad_token": "!"}
DECODER = {str(id): {**marked(text), "special": False} for id, text in ((8192, "<Cat-Toy>"), (8193, "<new>"))}

LAYOUTS = {  # what is in a folder: files taken over, tokenizer_config, special_tokens_map, added_tokens
    "all": (("tokenizer.json", *PAIRS), OLD, None, None),
    "vocabulary and merges": (PAIRS, OLD, None, None),
    "tokenizer.json": (("tokenizer.json",), OLD, None, None),
    "nothing else": (PAIRS, None, None, None),
    "Stable Diffusion 2": (PAIRS, OLD, STABLE_DIFFUSION_2, None),
    "Stable Diffusion 2 with tokenizer.json": (("tokenizer.json", *PAIRS), OLD, STABLE_DIFFUSION_2, None),
    "pads with ! by its config": (PAIRS, {**OLD, "pad_token": "!"}, None, None),
    "the last mark counts": (PAIRS, {**OLD, "unk_token": marked(END, False), "pad_token": "!"}, None, None),
    "added tokens": (PAIRS, OLD, None, {"<Cat-Toy>": 8192, "<new>": 8193}),
    "added tokens beside tokenizer.json": (("tokenizer.json",), OLD, None, {"<Cat-Toy>": 8192}),
    "decoder of added tokens": (PAIRS, {**OLD, "added_tokens_decoder": DECODER}, STABLE_DIFFUSION_2, None),
}

TEXTS = [
    "", " ", "   \t\n ", "a", "A photo of a CAT", " leading and trailing ",
    "''s 's'S ' '' 's", "'sa 'tree o'clock rock'n'roll",
    "it's don't we're I've I'm you'll he'd IT'S", "a,b;c!?...", "!!! hello!", "!", "1 22 333 4,444 5.5 ½ ² Ⅷ ٣",
    "tab\tnewline\nreturn\r\nvertical\x0bform\x0c", "\U0001d400\U0010ffff\ue000",
    "\x00 \x01\x07\x1b[0m \x7f \ufeff \ufffd",
    "no\u00a0break\u2003em\u3000ideographic\u200bzero\u2028line\x85next",
    "é e\u0301 ñ n\u0303 \u0301alone", "Å A\u030a \u212b", "ẞ ß İ ı ǅ ŉ Σς ΑΣ", "\ufb01 \ufb00 ① ㎏ \uff46\uff55",
    "日本語 中文字 한국어 ひらがな カタカナ", "العربية עברית हिन्दी ไทย தமிழ்",
    "😀 😀😀 👨\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 👍🏽 🇨🇭 ❤\ufe0f ☺", "😀smile🎉party",
    START, END, "a <|endoftext|> b", "x<|endoftext|>y<|startoftext|>z", "<|ENDOFTEXT|> <|StartOfText|>", "<|endoftext",
    "|endoftext|>", "< | endoftext | >", "a</w>b </w>", "#version: 0.2", "snake_case CamelCase kebab-case",
    "https://example.com/?q=1&r=%20#x", "(((masterpiece:1.2))), [[x]], {y}", '\\n \\u0041 "q"',
    "supercalifragilisticexpialidocious" * 3, "word " * 200, "😀" * 100, "a" * 500, "0123456789" * 20,
    "<Cat-Toy> <cat-toy>s<NEW>",
]


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("transformers").CLIPTokenizer


@pytest.fixture(scope="module")
def ours():
    return CLIPTokenizer.from_pretrained("calotype/emoji", subfolder="tokenizer")


@pytest.fixture(scope="module")
def both(theirs, tmp_path_factory):
    """Ours and theirs, from the same folder of a layout."""
    @functools.cache
    def load(layout):
        folder = lay_out(tmp_path_factory.mktemp("tokenizer"), *LAYOUTS[layout])
        return CLIPTokenizer.from_pretrained(folder), theirs.from_pretrained(folder)

    return load


def lay_out(folder, files, config, special, added):
    folder.mkdir(exist_ok=True)
    for name in files:
        shutil.copy(FOLDER / name, folder)
    for name, content in (("tokenizer_config", config), ("special_tokens_map", special), ("added_tokens", added)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def many_texts(number=300):
    """Reproducible random texts of words, scripts and signs."""
    draw = random.Random(0)
    pieces = [*"aAzZ0189 .,!?'\u2019\"-_<|>/\\é\u0301ßИЖ中の한ع😀👍\u200d\t\n\u00a0\x00",
              "'s", "'t", "'ll", " the ", "cat", "Dog", END, START]
    return ["".join(draw.choices(pieces, k=draw.randrange(1, 30))) for _ in range(number)]


def as_lists(values):
    return values.tolist() if hasattr(values, "tolist") else values


def assert_same(a, b, texts):
    assert a(texts).input_ids == b(texts)["input_ids"]
    for text in texts:
        ids = a(text).input_ids
        assert a.tokenize(text) == b.tokenize(text)
        for skip in (False, True):
            assert a.decode(ids, skip_special_tokens=skip) == b.decode(ids, skip_special_tokens=skip), text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_every_layout_as_transformers_does(layout, both, theirs, tmp_path):
    a, b = both(layout)
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(a, name) == getattr(b, name)
        assert getattr(a, f"{name}_id") == getattr(b, f"{name}_id")
    assert (a.model_max_length, a.vocab_size, len(a)) == (b.model_max_length, b.vocab_size, len(b))
    assert_same(a, b, TEXTS)
    a.save_pretrained(tmp_path)
    again, b = CLIPTokenizer.from_pretrained(tmp_path), theirs.from_pretrained(tmp_path)
    assert repr(again) == repr(a)
    assert again.get_vocab() == a.get_vocab() == b.get_vocab()
    assert again(TEXTS).input_ids == a(TEXTS).input_ids == b(TEXTS)["input_ids"]


@pytest.mark.parametrize("layout", ["vocabulary and merges", "tokenizer.json"])
def test_random_texts(layout, both):
    assert_same(*both(layout), many_texts())


def test_any_text(both):
    a, b = both("all")

    @settings(max_examples=150, deadline=None)
    @given(st.text())
    def check(text):
        assert_same(a, b, [text])

    check()


def test_where_tokens_are(both):
    a, b = both("all")
    for text in [*TEXTS, *many_texts(100)]:
        theirs = b(text, return_offsets_mapping=True)["offset_mapping"]
        assert a(text, return_offsets_mapping=True).offset_mapping == [tuple(place) for place in theirs]
    options = {
        "padding": "max_length", "max_length": 6, "truncation": True, "return_tensors": "np", "return_offsets_mapping": True}
    texts = ["a CAT", "one two three four five six"]
    assert (a(texts, **options).offset_mapping == b(texts, **options)["offset_mapping"]).all()


@pytest.mark.parametrize("options", [
    {}, {"padding": "longest"},
    {"padding": True}, {"padding": "max_length"}, {"padding": "max_length", "max_length": 9},
    {"truncation": True}, {"truncation": True, "max_length": 4}, {"truncation": True, "max_length": 2},
    {"padding": "max_length", "truncation": True}, {"padding": "max_length", "max_length": 5, "truncation": True},
    {"padding": True, "max_length": 3}, {"padding": True, "max_length": 3, "truncation": True}, {"max_length": 4},
    {"max_length": 4, "truncation": False}, {"truncation": "do_not_truncate", "max_length": 4},
    {"add_special_tokens": False}, {"add_special_tokens": False, "truncation": True, "max_length": 2},
    {"padding": "max_length", "truncation": True, "return_tensors": "pt"}, {"padding": True, "return_tensors": "np"},
    {"return_attention_mask": False},
])
@pytest.mark.parametrize("layout", ["all", "Stable Diffusion 2"])
@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_padding_and_truncation(options, layout, both):
    a, b = both(layout)
    for text in ("a cat", "", "one two three four five six", ["a", "two words", "and these are three!"], ["lone"]):
        mine, reference = a(text, **options), b(text, **options)
        assert list(mine) == list(reference)
        for name in mine:
            assert type(mine[name]) is type(reference[name])
            assert getattr(mine[name], "dtype", None) == getattr(reference[name], "dtype", None)
            assert as_lists(mine[name]) == as_lists(reference[name])


def test_left_padding(theirs, tmp_path):
    folder = lay_out(tmp_path / "in", PAIRS, {**OLD, "padding_side": "left"}, None, None)
    a, b = CLIPTokenizer.from_pretrained(folder), theirs.from_pretrained(folder)
    assert dict(a(["a", "b c"], padding=True)) == dict(b(["a", "b c"], padding=True))


def test_results_are_entries_and_attributes(ours):
    result = ours(["a cat", "dog"], padding=True, return_tensors="pt")
    assert result.input_ids is result["input_ids"]
    assert result.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert set(result.to("cpu")) == {"input_ids", "attention_mask"}
    assert torch.equal(pickle.loads(pickle.dumps(result)).input_ids, result.input_ids)
    with pytest.raises(AttributeError, match="no 'pixels'; it gave input_ids, attention_mask"):
        _ = result.pixels
    assert ours([]).input_ids == []
    assert ours.encode("a cat") == ours("a cat").input_ids


def test_added_tokens(ours, theirs, tmp_path):
    a = CLIPTokenizer.from_pretrained(FOLDER)
    b = theirs.from_pretrained(FOLDER)
    for new in (["<Cat-Toy>", "two words"], "<s1>", ["<s1>", "<s2>", "<s2>"]):
        assert a.add_tokens(new) == b.add_tokens(new)
    assert a.add_tokens(["<Special>"], special_tokens=True) == b.add_tokens(["<Special>"], special_tokens=True) == 1
    texts = ["a <Cat-Toy> dog", "x<cat-toy>y TWO words<s1><s2>", "<special> <Special>", "two  words"]
    assert len(a) == len(b) == 8197 and a.vocab_size == b.vocab_size == 8192
    assert a.convert_tokens_to_ids("<Cat-Toy>") == 8192
    assert_same(a, b, texts)
    a.save_pretrained(tmp_path)
    assert_same(CLIPTokenizer.from_pretrained(tmp_path), theirs.from_pretrained(tmp_path), texts)
    (tmp_path / "tokenizer.json").unlink()
    assert CLIPTokenizer.from_pretrained(tmp_path).get_vocab() == a.get_vocab()
    ours.save_pretrained(tmp_path)  # over it: nothing of the added tokens stays
    assert len(CLIPTokenizer.from_pretrained(tmp_path)) == len(theirs.from_pretrained(tmp_path)) == 8192
    assert pickle.loads(pickle.dumps(a))(texts).input_ids == a(texts).input_ids


def test_added_tokens_of_any_letters():
    """Where transformers takes the letters of an added token for bytes, and loses them."""
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER)
    tokenizer.add_tokens(["<été>"])
    assert tokenizer.decode(tokenizer("un <été>").input_ids, skip_special_tokens=True) == "un <été>"


def test_ids_and_tokens(ours, both):
    b = both("all")[1]
    for tokens in ("cat</w>", "nonsense!", ["a</w>", END, "?!?"], []):
        assert ours.convert_tokens_to_ids(tokens) == b.convert_tokens_to_ids(tokens)
    for ids in (5, [320, 8191], []):
        assert ours.convert_ids_to_tokens(ids) == b.convert_ids_to_tokens(ids)
        assert ours.decode(ids) == b.decode(ids)
    draw = random.Random(1)
    for _ in range(100):
        ids = draw.choices(range(8192), k=draw.randrange(12))
        assert ours.decode(ids) == b.decode(ids)
    rows = ours(["a cat", "it's"], padding=True, return_tensors="pt").input_ids
    assert ours.batch_decode(rows, skip_special_tokens=True) == ["a cat", "it 's"]
    assert ours.decode(rows[0, 1]) == "a"
    assert ours.decode(rows[0].numpy()) == ours.decode(rows[0].tolist()) == ours.decode(list(rows[0]))
    for wrong in (-1, 8192):
        with pytest.raises(ValueError, match=f"no token of id {wrong}; the tokenizer has 8192"):
            ours.decode([wrong])


@pytest.mark.parametrize("text", [None, 3, [3], ["a", None], [["a"]], b"bytes", {"a": 1}])
def test_what_is_no_text(ours, text):
    with pytest.raises(TypeError, match="takes a string or a list of strings, and was given"):
        ours(text)


def test_wrong_calls(ours):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        ours("\ud800")
    with pytest.raises(TypeError, match="takes no argument 'paddding'; did you mean 'padding'?"):
        ours("a", paddding=True)
    with pytest.raises(ValueError, match="padding is 'max', but must be False, True, 'longest', 'max_length' or"):
        ours("a", padding="max")
    with pytest.raises(ValueError, match="return_tensors is 'tf'"):
        ours("a", return_tensors="tf")
    with pytest.raises(ValueError, match="truncation is 'yes'"):
        ours("a", truncation="yes")
    with pytest.raises(ValueError, match="from 3 to 4 tokens, and make no tensor; give `padding=True`"):
        ours(["a", "b c"], return_tensors="pt")
    for length in (0, 1, -5):
        with pytest.raises(ValueError, match=f"max_length is {length}, which has no room"):
            ours("a", max_length=length, truncation=True)
    with pytest.raises(TypeError, match="takes no argument 'pad_tokens'; did you mean 'pad_token'?"):
        CLIPTokenizer.from_pretrained(FOLDER, pad_tokens="!")
    with pytest.raises(ValueError, match="padding_side is 'up', but must be 'right' or 'left'"):
        CLIPTokenizer.from_pretrained(FOLDER, padding_side="up")
    limitless = CLIPTokenizer.from_pretrained(FOLDER, model_max_length=NO_LIMIT)
    assert len(limitless("a " * 100, truncation=True).input_ids) == 102
    with pytest.raises(ValueError, match="padding='max_length' needs a `max_length`"):
        limitless("a", padding="max_length")


def test_settings_replace_those_of_the_files():
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER, pad_token="!", model_max_length=5, use_fast=False)
    assert tokenizer("a", padding="max_length").input_ids == [8190, 320, 8191, 0, 0]
    assert tokenizer.pad_token_id == 0
    tokenizer.pad_token = END
    assert tokenizer.pad_token_id == 8191


def test_old_ways_of_writing_the_vocabulary(ours, tmp_path):
    folder = lay_out(tmp_path / "in", PAIRS, None, None, None)
    merges = (FOLDER / "merges.txt").read_text().removeprefix("#version: 0.2\n")
    (folder / "merges.txt").write_bytes(merges.replace("\n", "\r\n").encode())
    assert CLIPTokenizer.from_pretrained(folder)(TEXTS).input_ids == ours(TEXTS).input_ids
    content = json.loads((FOLDER / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert CLIPTokenizer.from_pretrained(folder)(TEXTS).input_ids == ours(TEXTS).input_ids


@pytest.mark.parametrize(("name", "content", "message"), [
    ("vocab.json", "{", "vocab.json' is damaged: it is not JSON"),
    ("vocab.json", "[]", "vocab.json' holds a JSON list, and an object is needed"),
    ("vocab.json", '{"a": "b"}', "damaged"),
    ("vocab.json", '{"a": 0}', "is damaged: vocabulary and merges do not fit together"),
    ("merges.txt", "a b c\n", "is damaged: vocabulary and merges do not fit together"),
    ("merges.txt", "nonesuch nonesuch\n", "is damaged: vocabulary and merges do not fit together"),
    ("tokenizer_config.json", "", "tokenizer_config.json' is damaged"),
    ("tokenizer_config.json", '{"pad_token": {"no": 1}}', "is damaged: there is no 'content'"),
    ("tokenizer_config.json", '{"pad_token": 5}', "damaged"),
    ("tokenizer_config.json", '{"model_max_length": "long"}', "damaged"),
    ("added_tokens.json", '{"<x>": 9000}', "added token '<x>' should have the id 9000, but the next free one is 8192"),
    ("tokenizer.json", "{}", "is damaged: there is no 'model'"),
    ("tokenizer.json", '{"model": {"type": "WordPiece", "vocab": {}}}', "is damaged: there is no 'merges'"),
    ("tokenizer.json", '{"model": {"vocab": [], "merges": {}}, "added_tokens": [1]}', "damaged"),
])
def test_damaged_files(name, content, message, tmp_path):
    folder = lay_out(tmp_path / "in", PAIRS, OLD, None, None)
    (folder / name).write_text(content)
    with pytest.raises(ValueError) as caught:
        CLIPTokenizer.from_pretrained(folder)
    assert message in str(caught.value) and str(folder) in str(caught.value)


def test_missing_files(tmp_path):
    folder = lay_out(tmp_path / "in", PAIRS[:1], OLD, None, None)
    with pytest.raises(FileNotFoundError, match="nor both .*; there is tokenizer_config.json, vocab.json"):
        CLIPTokenizer.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="did you mean 'tokenizer'"):
        CLIPTokenizer.from_pretrained("calotype/emoji", subfolder="tokeniser")


def test_importing_it_imports_little():
    code = ("import sys, calotype.tokenizer as t\n"
            "print([m for m in ('torch', 'numpy', 'transformers', 'tokenizers') if m in sys.modules])\n"
            "t.CLIPTokenizer.from_pretrained('calotype/emoji', subfolder='tokenizer')('a')\n"
            "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n[]\n"
