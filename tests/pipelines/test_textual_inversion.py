"""Textual inversion: files of all kinds, words of several vectors, the peer's numbers, errors."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hub_server import HubServer
from safetensors.torch import save_file

import calotype
from calotype.hub import BUNDLED
from calotype.prompts.chunks import split
from calotype.prompts.encode import encode_pair
from calotype.prompts.syntax import parse
from calotype.prompts.textual_inversion import TextualInversion

FOLDER = BUNDLED["calotype/emoji"]
WIDTH = 256


class Words(TextualInversion):
    """What such a pipeline has of it."""

    def __init__(self, folder=FOLDER):
        self.tokenizer = calotype.CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text_encoder = calotype.CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()

    def states(self, prompt, **options):
        with torch.no_grad():
            return encode_pair(self.tokenizer, self.text_encoder, prompt, None, 1, False, **options)[0]

    @property
    def words(self):
        return [token for id, token in self.tokenizer.added_tokens_decoder.items() if id >= 8192]

    def row(self, word):
        return self.text_encoder.get_input_embeddings().weight[self.tokenizer.convert_tokens_to_ids(word)].detach()


@pytest.fixture(scope="module")
def without_words():
    return Words()


@pytest.fixture
def pipe(without_words):
    return copy.deepcopy(without_words)


@pytest.fixture(scope="module")
def peer_without_words(diffusers):
    return diffusers.StableDiffusionPipeline.from_pretrained(
        FOLDER, unet=None, vae=None, safety_checker=None, torch_dtype=torch.float32)


@pytest.fixture
def peer(peer_without_words):
    yield peer_without_words
    peer_without_words.unload_textual_inversion()


def learned(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.03


SOURCES = {  # what is given, the words that come of it, and their vectors
    "Diffusers": ({"<cat>": learned(WIDTH)}, None, ["<cat>"]),
    "several vectors": ({"<cat>": learned(3, WIDTH)}, None, ["<cat>", "<cat>_1", "<cat>_2"]),
    "one vector of two dimensions": ({"<cat>": learned(1, WIDTH)}, None, ["<cat>"]),
    "a word of one's own": ({"<cat>": learned(2, WIDTH)}, "<mine>", ["<mine>", "<mine>_1"]),
    "AUTOMATIC1111": ({"string_to_param": {"*": learned(2, WIDTH)}, "string_to_token": {"*": 265}, "name": "my-style", "step": 9},
                      None, ["my-style", "my-style_1"]),
    "AUTOMATIC1111 with a word": ({"string_to_param": {"*": learned(2, WIDTH)}, "name": "x"}, "<bad>", ["<bad>", "<bad>_1"]),
    "emb_params": ({"emb_params": learned(2, WIDTH)}, "<bad>", ["<bad>", "<bad>_1"]),
    "emb_params without a word": ({"emb_params": learned(2, WIDTH)}, None, ["emb_params", "emb_params_1"]),
    "a tensor": (learned(2, WIDTH), "<cat>", ["<cat>", "<cat>_1"]),
    "a tensor with a word a vector": (learned(2, WIDTH), ["<s0>", "<s1>"], ["<s0>", "<s1>"]),
    "a list": ([{"<a>": learned(WIDTH)}, {"<b>": learned(2, WIDTH)}], None, ["<a>", "<b>", "<b>_1"]),
    "a list with words": ([{"<a>": learned(WIDTH)}, learned(WIDTH, seed=1)], ["<c>", "<d>"], ["<c>", "<d>"]),
    "capitals": ({"<Cat-Toy>": learned(WIDTH)}, None, ["<Cat-Toy>"]),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_as_in_diffusers(pipe, peer, kind):
    source, token, words = SOURCES[kind]
    for one in (pipe, peer):
        one.load_textual_inversion(source, token=token)
    assert pipe.words == words
    other = words[0].upper() if f"{words[0]}_1" not in words else ""  # else see test_words_in_another_form
    prompts = [f"a {words[0]} on grass, {words[-1]}.", words[0], f"x{words[0]}y {other}", "a cat"]
    for prompt in prompts:
        written = peer.maybe_convert_prompt(prompt, peer.tokenizer)
        if "_" not in words[-1] or prompt != prompts[0]:  # see test_what_is_written_out_stays
            assert pipe.maybe_convert_prompt(prompt, pipe.tokenizer) == written
        assert pipe.tokenizer(written).input_ids == peer.tokenizer(written).input_ids
    theirs = peer.text_encoder.get_input_embeddings().weight.detach()
    ours = pipe.text_encoder.get_input_embeddings().weight.detach()
    assert torch.equal(ours, theirs) and pipe.text_encoder.config.vocab_size == len(pipe.tokenizer) == len(theirs)
    with torch.no_grad():
        wanted = peer.encode_prompt(prompts[1:], "cpu", 1, False)[0]
    assert torch.allclose(pipe.states(prompts[1:]), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_words_of_several_vectors_are_written_out(pipe):
    pipe.load_textual_inversion({"<m>": learned(3, WIDTH)})
    pipe.load_textual_inversion({"<m>x": learned(2, WIDTH)})
    pipe.load_textual_inversion({"<one>": learned(WIDTH)})
    written = "<m> <m>_1 <m>_2"
    for prompt, expected in {
        "a <m> b": f"a {written} b", "<m>": written, "a <m><m>": f"a {written}{written}", "<m>, <one>": f"{written}, <one>",
        "<m>x": "<m>x <m>x_1", "a <M>": f"a {written}", "<m>0": f"{written} 0", "a cat": "a cat",
    }.items():
        assert pipe.maybe_convert_prompt(prompt, pipe.tokenizer) == expected
    assert pipe.maybe_convert_prompt(["<m>", "b"], pipe.tokenizer) == [written, "b"]
    assert torch.equal(pipe.states("<m> b"), pipe.states(f"{written} b"))
    assert not torch.equal(pipe.states("<m> b"), pipe.states("<one> b"))


def test_what_is_written_out_stays(pipe):
    """Diffusers replaces inside `<m>_1` too, and writes out twice what is converted twice."""
    pipe.load_textual_inversion({"<m>": learned(3, WIDTH)})
    for prompt in ("a <m> <m>_1 <m>_2 b", "<m>_1", "<m>_2 <m>_1"):
        assert pipe.maybe_convert_prompt(prompt, pipe.tokenizer) == prompt
    assert pipe.maybe_convert_prompt("<m>_1 <m>", pipe.tokenizer) == "<m>_1 <m> <m>_1 <m>_2"


def test_words_have_weights_and_chunks(pipe):
    pipe.load_textual_inversion({"<m>": learned(3, WIDTH)})
    assert torch.allclose(pipe.states("a <m>", prompt_syntax="a1111"), pipe.states("a <m>"), atol=1e-5)
    changed = (pipe.states("a (<m>)1.5", prompt_syntax="compel") - pipe.states("a <m>")).abs().amax((0, 2)) > 1e-4
    assert changed.nonzero().flatten().tolist() == [2, 3, 4]
    assert pipe.states("<m> " * 11, long_prompts=True).shape == (1, 64, WIDTH)


@pytest.mark.parametrize(("word", "forms"), [
    ("<Cat>", ["<cat>", "<CAT>", "<Cat>"]), ("EasyNegative", ["easynegative", "EASYNEGATIVE"]),
    ("caf\u00e9", ["cafe\u0301", "CAF\u00c9"]),
    ("A\u030angstr\u00f6m", ["\u212bngstro\u0308m", "\u00e5NGSTR\u00d6M"]),
    ("my  word", ["my word", "My\t\n word", "MY\u3000WORD"]),
    ("\u0130x", ["i\u0307X"])])
def test_words_in_another_form(pipe, word, forms):
    """Whatever the tokenizer takes for the same is the word, with all its vectors."""
    pipe.load_textual_inversion({word: learned(3, WIDTH)})
    ids = [8192, 8193, 8194]
    expected = pipe.states(f"a {word} b")
    for form in (word, *forms):
        written = pipe.maybe_convert_prompt(f"a {form}, {form}", pipe.tokenizer)
        assert [id for id in pipe.tokenizer(written).input_ids if id >= 8192] == ids * 2
        assert pipe.maybe_convert_prompt(written, pipe.tokenizer) == written
        assert torch.equal(pipe.states(f"a {form} b"), expected)
        assert torch.allclose(pipe.states(f"a {form} b", long_prompts=True), expected, atol=1e-5)
    pipe.unload_textual_inversion(forms[0])
    assert pipe.words == [] and pipe.text_encoder.config.vocab_size == 8192


def test_full_width_letters_are_others(pipe):
    """CLIP's tokenizer does not take them for the same."""
    pipe.load_textual_inversion({"cat-toy": learned(2, WIDTH)})
    wide = "".join(chr(ord(sign) + 0xfee0) for sign in "cat-toy")
    assert pipe.maybe_convert_prompt(wide, pipe.tokenizer) == wide
    pipe.load_textual_inversion({wide: learned(2, WIDTH, seed=1)})
    assert not torch.equal(pipe.states(wide), pipe.states("cat-toy"))


@pytest.mark.parametrize(("source", "message"), [
    ({"<mIX>": learned(WIDTH)}, "the tokenizer cannot tell '<mIX>' from '<Mix>', which is a token already: give another as"),
    ([{"<x>": learned(2, WIDTH)}, {"<X>_1": learned(WIDTH)}], "cannot tell '<X>_1' from '<x>_1'"),
    ([{"<x>": learned(WIDTH)}, {"<X>": learned(WIDTH)}], "cannot tell '<X>' from '<x>'"),
    ({"<MIX>_1": learned(WIDTH)}, "cannot tell '<MIX>_1' from '<Mix>_1'"),
    ({"e\u0301e": learned(WIDTH)}, "cannot tell 'e\u0301e' from '\u00e9e'"),
    ({"<|EndOfText|>": learned(WIDTH)}, r"cannot tell '<\|EndOfText\|>' from '<\|endoftext\|>'"),
    ({"<Mix>_2": learned(WIDTH)}, "'<Mix>' and '<Mix>_2' would be read as vectors of one word: give another as token="),
    ([{"<y>_1": learned(WIDTH)}, {"<y>": learned(WIDTH)}], "'<y>' and '<y>_1' would be read as vectors of one word"),
    ({"<z>": torch.full((2, WIDTH), float("nan"))}, "the embedding of '<z>' holds numbers that are not finite"),
])
def test_words_that_cannot_be_told_apart(pipe, source, message):
    pipe.load_textual_inversion([{"<Mix>": learned(2, WIDTH)}, {"\u00e9e": learned(WIDTH)}])
    words, before = pipe.words, pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        pipe.load_textual_inversion(source)
    assert pipe.words == words and torch.equal(pipe.text_encoder.get_input_embeddings().weight, before)


def test_one_vector_of_a_word_cannot_be_taken_out(pipe):
    pipe.load_textual_inversion({"<m>": learned(3, WIDTH)})
    with pytest.raises(ValueError, match="'<m>_1' is one of the vectors of '<m>': unload that"):
        pipe.unload_textual_inversion("<M>_1")
    assert pipe.words == ["<m>", "<m>_1", "<m>_2"]
    pipe.unload_textual_inversion(["<m>_2", "<m>"])
    assert pipe.words == []


@pytest.mark.parametrize(("one", "other", "syntax"), [
    ("a <m>++ here", "a (<m>)++ here", "compel"), ("a <M>-- here", "a (<m>)-- here", "compel"),
    ("<m>+", "(<m> <m>_1 <m>_2)+", "compel"),
    ('("<m>++", "a").and(1, 0.5)', '("(<m>)++", "a").and(1, 0.5)', "compel"), ("(<M>:1.3) b", "(<m> <m>_1 <m>_2:1.3) b", "a1111"),
    ("[<m>] BREAK <m>", "[<m> <m>_1 <m>_2] BREAK <m> <m>_1 <m>_2", "a1111"), ("a(<m>)b", "a(<m> <m>_1 <m>_2)b", "a1111")])
def test_a_syntax_is_read_before_words_are_written_out(pipe, one, other, syntax):
    pipe.load_textual_inversion({"<m>": learned(3, WIDTH, seed=4) * 20})
    assert torch.allclose(pipe.states(one, prompt_syntax=syntax), pipe.states(other, prompt_syntax=syntax), atol=1e-5)


def test_transformers_tokenizer(pipe):
    """It reads words as ours does. It cannot lose them, and then nothing is changed."""
    transformers = pytest.importorskip("transformers")
    own = copy.deepcopy(pipe)
    own.tokenizer = transformers.CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    for one in (pipe, own):
        one.load_textual_inversion({"<Cat>": learned(3, WIDTH)})
        with pytest.raises(ValueError, match="cannot tell '<cat>' from '<Cat>'"):
            one.load_textual_inversion({"<cat>": learned(WIDTH)})
    for prompt in ("a <cat>", "<CAT>" * 3 + "x"):
        assert own.maybe_convert_prompt(prompt, own.tokenizer) == pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
        assert torch.equal(own.states(prompt), pipe.states(prompt))
    assert torch.equal(own.states("dog " * 28 + "<cat>++", prompt_syntax="compel", long_prompts=True),
                       pipe.states("dog " * 28 + "<cat>++", prompt_syntax="compel", long_prompts=True))
    with pytest.raises(TypeError, match="no word can be taken out of a transformers.*: load the tokenizer as calotype"):
        own.unload_textual_inversion("<Cat>")
    assert own.text_encoder.config.vocab_size == 8195


def test_prompts_of_nothing_but_words(pipe):
    pipe.load_textual_inversion([{"<m>": learned(3, WIDTH)}, {"<long>": learned(40, WIDTH)}])
    for prompt in ("<m>", "<m>" * 30, "<long>", "<long> <m> <long>"):
        for syntax in (None, "a1111", "compel"):
            assert pipe.states(prompt, prompt_syntax=syntax, long_prompts=syntax != "a1111").isfinite().all()
        assert pipe.states(prompt).isfinite().all()


def test_words_are_not_cut_by_chunks(pipe):
    """A word moves into the next chunk, unless it is longer than one."""
    pipe.load_textual_inversion([{"<m>": learned(6, WIDTH)}, {"<long>": learned(40, WIDTH)}])

    def chunks(prompt, syntax=None):
        return [[pipe.tokenizer.convert_ids_to_tokens(token.id) for token in chunk.tokens]
                for chunk in split(pipe.tokenizer, parse(prompt, syntax), True)]

    word = ["<m>", *(f"<m>_{i}" for i in range(1, 6))]
    for before in (25, 28, 29, 30):
        for written in ("<m>", "<M>", " ".join(word)):
            assert chunks("dog " * before + written) == [["dog</w>"] * before, word]
    assert chunks("dog " * 24 + "<m>") == [["dog</w>"] * 24 + word]
    assert chunks("dog " * 28 + "(<m>:1.2)", "a1111") == [["dog</w>"] * 28, word]
    assert chunks("<m> " * 6) == [word * 5, word]
    assert [len(tokens) for tokens in chunks("dog " * 5 + "<long> dog")] == [30, 16]


# -- files ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    save_file({"<cat>": learned(WIDTH)}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": learned(2, WIDTH)}, tmp_path / "easy.safetensors")
    (tmp_path / "inner").mkdir()
    save_file({"<inner>": learned(WIDTH).half()}, tmp_path / "inner" / "learned_embeds.safetensors")
    torch.save({"<bin>": learned(WIDTH)}, tmp_path / "learned_embeds.bin")
    torch.save({"string_to_param": {"*": torch.nn.Parameter(learned(2, WIDTH))}, "string_to_token": {"*": 265}, "name": "style",
                "step": 500, "sd_checkpoint": None}, tmp_path / "style.pt")
    return tmp_path


def test_files(pipe, files):
    before = pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    pipe.load_textual_inversion(files)
    pipe.load_textual_inversion(files, subfolder="inner")
    pipe.load_textual_inversion(str(files), weight_name="easy.safetensors", token="easy-negative")
    pipe.load_textual_inversion(files, weight_name="style.pt")
    pipe.load_textual_inversion(str(files), use_safetensors=False)
    pipe.load_textual_inversion([files / "easy.safetensors", files / "style.pt"], token=["<1>", "<2>"])
    assert pipe.words == ["<cat>", "<inner>", "easy-negative", "easy-negative_1", "style", "style_1", "<bin>",
                          "<1>", "<1>_1", "<2>", "<2>_1"]
    assert torch.equal(pipe.row("<cat>"), learned(WIDTH))
    assert torch.equal(pipe.row("<inner>"), learned(WIDTH).half().float())
    assert torch.equal(pipe.row("style_1"), learned(2, WIDTH)[1])
    assert torch.equal(pipe.row("<2>"), learned(2, WIDTH)[0])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[:8192], before)


def test_hub(pipe, files, monkeypatch, tmp_path):
    server = HubServer()
    try:
        server.reach(monkeypatch, tmp_path / "home")
        server.add("owner/concept", {"learned_embeds.safetensors": (files / "learned_embeds.safetensors").read_bytes(),
                                     "old/learned_embeds.bin": (files / "learned_embeds.bin").read_bytes()})
        pipe.load_textual_inversion("owner/concept")
        with pytest.raises(FileNotFoundError, match="learned_embeds.bin, which is pickled, with use_safetensors=False"):
            pipe.load_textual_inversion("owner/concept", subfolder="old")
        pipe.load_textual_inversion("owner/concept", subfolder="old", use_safetensors=False)
        assert pipe.words == ["<cat>", "<bin>"]
        with pytest.raises(FileNotFoundError, match="weight_name"):
            pipe.load_textual_inversion("owner/concept", subfolder="nowhere")
    finally:
        server.close()


class Harmful:
    def __reduce__(self):
        return print, ("run",)


def test_bad_files(pipe, files, capsys):
    (files / "learned_embeds.bin").write_bytes(pickle.dumps({"<cat>": Harmful()}, protocol=2))
    (files / "cut.safetensors").write_bytes((files / "easy.safetensors").read_bytes()[:-40])
    (files / "card.webp").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="learned_embeds.bin' is damaged or holds more than tensors"):
        pipe.load_textual_inversion(files, use_safetensors=False)
    assert "run" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="cut.safetensors' is damaged"):
        pipe.load_textual_inversion(files, weight_name="cut.safetensors")
    with pytest.raises(ValueError, match="no safetensors file, which use_safetensors=True asks for"):
        pipe.load_textual_inversion(files, weight_name="style.pt", use_safetensors=True)
    with pytest.raises(ValueError, match=r"card.webp' is no safetensors file, nor a pickled one \(.bin, .pt"):
        pipe.load_textual_inversion(files / "card.webp")
    with pytest.raises(FileNotFoundError, match=r"has no file 'none.safetensors' \(there is .*easy.safetensors"):
        pipe.load_textual_inversion(files, weight_name="none.safetensors")
    assert pipe.words == [] and pipe.text_encoder.config.vocab_size == 8192


# -- errors, taking back, saving -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "token", "message"), [
    ({"<cat>": learned(768)}, None, "'<cat>' has 768 channels, and the text encoder's have 256: it was learned for another"),
    ({"cat</w>": learned(WIDTH)}, None, "'cat</w>' is a token already"),
    ([{"<n>": learned(WIDTH)}, {"<n>": learned(WIDTH)}], None, "'<n>' is a token already"),
    ({"<old>": learned(WIDTH)}, None, "'<old>' is a token already: give another as token=…, or unload it first"),
    ({"<old>_": learned(2, WIDTH), "b": learned(WIDTH)}, None, "an embedding is one tensor by its word.*there is <old>_, b"),
    ({}, None, "there is nothing"),
    ({"clip_l": learned(WIDTH), "clip_g": learned(WIDTH)}, "<x>", "give each as a tensor, with its token, tokenizer"),
    (learned(WIDTH), None, "do not say their word: give it as token="),
    ({"string_to_param": {"*": learned(WIDTH)}}, None, "do not say their word"),
    ({"<x>": learned(1, 2, WIDTH)}, None, r"that of '<x>' is of shape \[1, 2, 256\]"),
    ({"<x>": "cat"}, None, "that of '<x>' is a str"),
    ({"string_to_param": {}, "name": "x"}, None, "that of 'x' is a NoneType"),
    ([learned(WIDTH), learned(WIDTH)], "<x>", "there are 2 embeddings and 1 words"),
    (learned(3, WIDTH), ["<x>", "<y>"], "there are 3 vectors for 2 words"),
])
def test_errors_change_nothing(pipe, source, token, message):
    pipe.load_textual_inversion({"<old>": learned(WIDTH)})
    with pytest.raises(ValueError, match=message):
        pipe.load_textual_inversion(source, token=token)
    assert pipe.words == ["<old>"] and pipe.text_encoder.config.vocab_size == 8193


def test_unknown_options(pipe):
    with pytest.raises(TypeError, match="load_textual_inversion takes no argument 'weights_name'; did you mean 'weight_name'"):
        pipe.load_textual_inversion({"<cat>": learned(WIDTH)}, weights_name="x")


def test_taking_words_back(pipe):
    states, before = pipe.states("a <b> c"), pipe.text_encoder.get_input_embeddings().weight.detach().clone()
    pipe.load_textual_inversion([{"<a>": learned(3, WIDTH)}, {"<b>": learned(2, WIDTH, seed=1)}, {"<c>": learned(WIDTH, seed=2)}])
    with_b = pipe.states("a <b> <c>")
    pipe.unload_textual_inversion("<a>")
    assert pipe.words == ["<b>", "<b>_1", "<c>"] and len(pipe.tokenizer) == 8195 == pipe.text_encoder.config.vocab_size
    assert torch.equal(pipe.row("<b>_1"), learned(2, WIDTH, seed=1)[1]) and torch.equal(pipe.row("<c>"), learned(WIDTH, seed=2))
    assert torch.allclose(pipe.states("a <b> <c>"), with_b, atol=1e-6)
    with pytest.raises(ValueError, match=r"'<a>' is no token that was added \(there are <b>, <b>_1, <c>\)"):
        pipe.unload_textual_inversion(["<b>", "<a>"])
    assert pipe.words == ["<b>", "<b>_1", "<c>"]
    with pytest.raises(ValueError, match="'<|endoftext|>' is no token that was added"):
        pipe.unload_textual_inversion("<|endoftext|>")
    pipe.unload_textual_inversion()
    pipe.unload_textual_inversion()
    assert pipe.words == [] and torch.equal(pipe.text_encoder.get_input_embeddings().weight, before)
    assert torch.equal(pipe.states("a <b> c"), states)
    pipe.load_textual_inversion({"<a>": learned(WIDTH)})


def test_another_tokenizer_and_text_encoder(pipe):
    second = copy.deepcopy(pipe)
    pipe.load_textual_inversion({"<cat>": learned(WIDTH)}, tokenizer=second.tokenizer, text_encoder=second.text_encoder)
    assert second.words == ["<cat>"] and pipe.words == []
    pipe.unload_textual_inversion("<cat>", tokenizer=second.tokenizer, text_encoder=second.text_encoder)
    assert second.words == []


def test_saving_and_loading(pipe, tmp_path):
    pipe.load_textual_inversion([{"<a>": learned(3, WIDTH)}, {"<B>": learned(WIDTH)}])
    pipe.unload_textual_inversion("<a>")
    pipe.load_textual_inversion({"<m>": learned(2, WIDTH, seed=3)})
    pipe.tokenizer.save_pretrained(tmp_path / "tokenizer")
    pipe.text_encoder.save_pretrained(tmp_path / "text_encoder")
    again = Words(tmp_path)
    assert again.words == ["<B>", "<m>", "<m>_1"]
    assert torch.equal(again.states("a <m> <b>"), pipe.states("a <m> <b>"))
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    encoder = transformers.CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()
    tokens = tokenizer(["a <m> <m>_1 <b>"], padding="max_length", max_length=32, return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(encoder(tokens).last_hidden_state, pipe.states("a <m> <b>"), atol=1e-4)


def test_a_text_encoder_with_more_rows_than_tokens(pipe):
    pipe.text_encoder.resize_token_embeddings(8200)
    pipe.load_textual_inversion({"<cat>": learned(2, WIDTH)})
    assert pipe.text_encoder.config.vocab_size == 8200
    assert torch.equal(pipe.row("<cat>_1"), learned(2, WIDTH)[1])


def test_half_precision(pipe):
    pipe.text_encoder.to(torch.float16)
    pipe.load_textual_inversion({"<cat>": learned(WIDTH)})
    assert pipe.row("<cat>").dtype == torch.float16
