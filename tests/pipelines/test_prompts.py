"""Prompts: plain, weighted, with choices, and longer than the text encoder reads."""

from __future__ import annotations

import copy
import logging
import math
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import calotype
from calotype.hub import BUNDLED
from calotype.prompts.chunks import encode_chunks, split
from calotype.prompts.encode import encode_pair
from calotype.prompts.learned_words import expand_tokens
from calotype.prompts.syntax import Clause, parse
from calotype.prompts.wildcards import expand_wildcards

LENGTH = 32  # the positions of the text encoder here


@pytest.fixture(scope="module")
def tokenizer():
    return calotype.CLIPTokenizer.from_pretrained("calotype/emoji", subfolder="tokenizer")


@pytest.fixture(scope="module")
def tokenizer_with_word(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<m>", "<m>_1", "<m>_2"])
    return own


@pytest.fixture(scope="module")
def encoder():
    return calotype.CLIPTextModel.from_pretrained("calotype/emoji", subfolder="text_encoder").float().eval()


@pytest.fixture
def states(tokenizer, encoder):
    """Hidden states of ids, written out without the library's own padding and masks."""

    def hidden(ids, hide=()):
        row = [8190, *ids, 8191]
        row += [8191] * (LENGTH - len(row))
        mask = torch.ones(1, LENGTH, dtype=torch.long)
        mask[0, list(hide)] = 0
        with torch.no_grad():
            return encoder(torch.tensor([row]), attention_mask=mask).last_hidden_state[0]

    return hidden


@pytest.fixture
def pair(tokenizer, encoder):
    def encode(prompt="", negative=None, images=1, guided=True, **options):
        with torch.no_grad():
            return encode_pair(tokenizer, encoder, prompt, negative, images, guided, **options)

    return encode


def ids(tokenizer, *texts):
    return [id for text in texts for id in tokenizer(text, add_special_tokens=False).input_ids]


def near(got, wanted):
    return torch.allclose(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def parts(prompt, syntax):
    (clause,) = parse(prompt, syntax)
    return [(text, pytest.approx(weight)) for text, weight in clause.parts]


# -- the syntax of AUTOMATIC1111's web UI --------------------------------------------------------------------------------

A1111 = {  # the examples of its wiki, "Features: Attention/emphasis", and what follows from them
    "a (word)": [("a ", 1), ("word", 1.1)],
    "a ((word))": [("a ", 1), ("word", 1.21)],
    "a [word]": [("a ", 1), ("word", 1 / 1.1)],
    "a (word:1.5)": [("a ", 1), ("word", 1.5)],
    "a (word:0.25)": [("a ", 1), ("word", 0.25)],
    r"a \(word\)": [("a (word)", 1)],
    r"anime_\(character\)": [("anime_(character)", 1)],
    "[[word]]": [("word", 1 / 1.21)],
    "(a (b:1.5) c:0.5)": [("a ", 0.5), ("b", 0.75), (" c", 0.5)],
    "([word])": [("word", 1)],
    "(one)(two)": [("onetwo", 1.1)],
    "a (((farm))), daytime": [("a ", 1), ("farm", 1.331), (", daytime", 1)],
    "(a: b:1.2)": [("a: b", 1.2)],
    "( word : 1.3 )": [(" word ", 1.3)],
    "a:1.3, b": [("a:1.3, b", 1)],
    r"(a \) b) \[c\] \\": [("a ) b", 1.1), (" [c] \\", 1)],
    "": [],
    "word": [("word", 1)],
    # malformed: the odd bracket is text
    "(word": [("(word", 1)],
    "word)": [("word)", 1)],
    "[word": [("[word", 1)],
    "((word)": [("(", 1), ("word", 1.1)],
    "(a [b) c]": [("(a ", 1), ("b) c", 1 / 1.1)],
    "word:1.3)": [("word:1.3)", 1)],
    "(word:)": [("word:", 1.1)],
    "(word:1.3.4)": [("word:1.3.4", 1.1)],
    "()": [],
    "\\": [("\\", 1)],
    "(word++)": [("word++", 1.1)],  # the other tool's signs say nothing here
}


@pytest.mark.parametrize("prompt", A1111)
def test_weights_as_the_web_ui_writes_them(prompt):
    assert parts(prompt, "a1111") == A1111[prompt]


def test_break_begins_a_clause():
    assert parse("a cat BREAK (a BREAK b:1.5)", "a1111") == [
        Clause([("a cat", 1.0)]), Clause([("a", 1.5)]), Clause([("b", 1.5)])]
    assert parse("a BREAK", "a1111") == [Clause([("a", 1.0)]), Clause([])]
    assert parse("BREAKFAST, a break", "a1111") == [Clause([("BREAKFAST, a break", 1.0)])]


@pytest.mark.parametrize(("prompt", "what"), [
    ("a [cat:dog:0.5]", "prompt editing"), ("a [dog:10]", "prompt editing"), ("a [cat|dog]", "alternating words"),
    ("a cat AND a dog", "composition"), ("a <lora:style:1>", "a network to load")])
def test_what_the_web_ui_can_and_this_cannot_is_refused(prompt, what):
    with pytest.raises(ValueError, match=f"is {what}.*in the syntax 'a1111', which there is not here"):
        parse(prompt, "a1111")
    assert parse(prompt, None) == [Clause([(prompt, 1.0)])]


# -- the syntax of compel ------------------------------------------------------------------------------------------------

COMPEL = {  # the examples of its doc/syntax.md and Reference.md, and what follows from them
    "a tall thin man picking apricots+": [("a tall thin man picking", 1), ("apricots", 1.1)],
    "a tall thin man picking (apricots)+": [("a tall thin man picking", 1), ("apricots", 1.1)],
    "a tall thin man picking (apricots)-": [("a tall thin man picking", 1), ("apricots", 0.9)],
    "a tall thin man (picking apricots)+": [("a tall thin man", 1), ("picking apricots", 1.1)],
    "a tall thin man (picking apricots)++": [("a tall thin man", 1), ("picking apricots", 1.21)],
    "a tall thin man (picking apricots+)++": [("a tall thin man", 1), ("picking", 1.21), ("apricots", 1.331)],
    "a tall thin man picking (apricots)1.1": [("a tall thin man picking", 1), ("apricots", 1.1)],
    "a tall thin man (picking (apricots)1.3)1.1": [("a tall thin man", 1), ("picking", 1.1), ("apricots", 1.43)],
    "a man picking apricots--- from a tree": [("a man picking", 1), ("apricots", 0.729), ("from a tree", 1)],
    "mountain+ man": [("mountain", 1.1), ("man", 1)],
    "(apricots)0.5": [("apricots", 0.5)],
    "a man (picking apricots)1.5": [("a man", 1), ("picking apricots", 1.5)],
    r"\(my_keyword\)": [("(my_keyword)", 1)],
    r"a \"b\"": [('a "b"', 1)],
    "a cat playing with a ball++ in the forest": [("a cat playing with a", 1), ("ball", 1.21), ("in the forest", 1)],
    "cat,dog+, (x y)0.": [("cat,", 1), ("dog", 1.1), (",", 1), ("x y", 0), (".", 1)],
    "(love it.)0.8": [("love it.", 0.8)],
    "well-known don't+": [("well-known", 1), ("don't", 1.1)],
    '"a b"+ c': [("a b", 1.1), ("c", 1)],
    "a (b c)": [("a b c", 1)],
    "one+ two+": [("one two", 1.1)],
    "<cat>+": [("<cat>", 1.1)],
    # malformed, or no weights
    "(a": [("(a", 1)],
    "a)": [("a)", 1)],
    "a)(b": [("a)(b", 1)],
    "(a (b)+": [("(a", 1), ("b", 1.1)],
    "a - b + c ++": [("a - b + c ++", 1)],
    "+a --b": [("+a --b", 1)],
    "c++x": [("c++x", 1)],
    "f(x)+": [("f(x)", 1.1)],
    "a++-": [("a", 1.21), ("-", 1)],
    '(6" nails)+ and 5" (bolts)-': [('6" nails', 1.1), ('and 5"', 1), ("bolts", 0.9)],
    '("a b" c)+': [("a b c", 1.1)],
    '6" nails+': [('6"', 1), ("nails", 1.1)],
    "(word) 1.3": [("word 1.3", 1)],
    "(word:1.3)": [("word:1.3", 1)],  # the other tool's signs say nothing here
    "()+": [],
    "[word]": [("[word]", 1)],
}


@pytest.mark.parametrize("prompt", COMPEL)
def test_weights_as_compel_writes_them(prompt):
    assert parts(prompt, "compel") == COMPEL[prompt]


def test_conjunctions_are_clauses():
    assert parse('("a dream, of a galaxy", "trending (on)+ \\"art\\"").and()', "compel") == [
        Clause([("a dream, of a galaxy", 1.0)]), Clause([("trending", 1.0), ("on", 1.1), ('"art"', 1.0)])]
    assert [clause.weight for clause in parse('("a", "b", "c").and(1, 0.5, .5)', "compel")] == [1, 0.5, 0.5]
    with pytest.raises(ValueError, match="2 clauses and 1 weights"):
        parse('("a", "b").and(1)', "compel")
    with pytest.raises(ValueError, match="must be numbers, and are 'x'"):
        parse('("a").and(x)', "compel")
    with pytest.raises(ValueError, match="the whole prompt"):
        parse('x ("a", "b").and()', "compel")


@pytest.mark.parametrize(("prompt", "what"), [
    ('("a", "b").blend(1, 0.8)', "a blend"), ("a cat.swap(dog)", "a swap"), ("a withLora(x, 1)", "a network to load")])
def test_what_compel_can_and_this_cannot_is_refused(prompt, what):
    with pytest.raises(ValueError, match=f"is {what} in the syntax 'compel'"):
        parse(prompt, "compel")


@given(st.text("ab \\()[]{}|:+-,.\"13$", max_size=40))
@settings(max_examples=150, deadline=None)
def test_no_prompt_crashes(prompt):
    for syntax in ("a1111", "compel"):
        try:
            clauses = parse(prompt, syntax)
        except ValueError as error:
            assert "which there is not here" in str(error) or ".and()" in str(error)
        else:
            assert all(math.isfinite(weight) and text for clause in clauses for text, weight in clause.parts)
    try:
        expand_wildcards(prompt, 0)
    except ValueError as error:
        assert "all 0" in str(error) or "$$" in str(error)


def test_thousands_of_brackets():
    for syntax in ("a1111", "compel"):
        assert parse("(" * 1000 + "a" + ")" * 1000, syntax)
        assert parse("(" * 1000, syntax) == [Clause([("(" * 1000, 1.0)])]


def calls_of(function, *arguments):
    """How many Python functions and methods of C are called for it."""
    count = 0

    def counted(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        function(*arguments)
    except ValueError:
        pass
    finally:
        sys.setprofile(before)
    return count


READERS = {
    "a1111": lambda text, tokenizer: parse(text, "a1111"), "compel": lambda text, tokenizer: parse(text, "compel"),
    "choices": lambda text, tokenizer: expand_wildcards(text, 0), "words": lambda text, tokenizer: expand_tokens(tokenizer, text),
    "chunks": lambda text, tokenizer: split(tokenizer, parse(text, None), True)}
REPEATED = [(unit, "") for unit in (
    "cat ", "<m> ", "<m>", "a", "(a:1.1) ", "a++ ", "a+", "(a)++ ", "(", '("', "{a|b}", "{a|", "[a", "a BREAK ")]
NESTED = [("(a ", " b)"), ("(a:1.01 ", "b:1.01)"), ("([", "])"), ("{a|", "}"), ("{a ", "b}"), ("{1::", "|0::a}"), ("(", ")+")]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("opening", "closing"), [*REPEATED, *NESTED])
def test_reading_twice_as_much_is_twice_the_work(tokenizer_with_word, reader, opening, closing):
    read = READERS[reader]
    small, large = (calls_of(read, opening * n + closing * n, tokenizer_with_word) for n in (300, 600))
    assert large <= 2.2 * small + 50


@pytest.mark.parametrize(("syntax", "before", "repeated"), [
    ("a1111", "(a", " "), ("a1111", "(a:", "1"), ("a1111", "[a:", "1"), ("a1111", "[", "|"), ("compel", "a", "+")])
def test_no_sign_is_looked_at_again_and_again(syntax, before, repeated):
    """What a regular expression does cannot be counted, so the processor's time is: a square would take seconds."""
    def seconds(number):
        taken = []
        for _ in range(3):
            start = time.thread_time()
            parse(before + repeated * number + "b", syntax)
            taken.append(time.thread_time() - start)
        return min(taken)

    assert seconds(32_000) < 24 * seconds(4_000) + 0.1


def test_unknown_syntax():
    with pytest.raises(ValueError, match="prompt_syntax is 'A1111', but must be None, 'a1111' or 'compel'; did you mean 'a1111'"):
        parse("a", "A1111")


# -- what weights do -----------------------------------------------------------------------------------------------------


def test_no_weights_no_change(pair):
    plain = pair("a photo of a cat", "dark")
    for options in ({"prompt_syntax": "a1111"}, {"prompt_syntax": "compel"}, {"long_prompts": True}):
        assert all(near(got, wanted) for got, wanted in zip(pair("a photo of a cat", "dark", **options), plain, strict=True))


def in_the_web_ui(z, weights):
    """What its weights make of states [L, D], by the rule of this library: all of them keep their mean magnitude."""
    scaled = z * torch.as_tensor(weights, dtype=z.dtype)[:, None]
    return scaled * z.abs().mean() / scaled.abs().mean()


def test_the_web_uis_weights_scale_states_and_keep_their_magnitude(pair, states, tokenizer):
    got = pair("a (red:1.4) cat [dog]", prompt_syntax="a1111")[0][0]
    z = states(ids(tokenizer, "a ", "red", " cat ", "dog"))
    weights = torch.ones(LENGTH)
    weights[2], weights[4] = 1.4, 1 / 1.1
    assert near(got, in_the_web_ui(z, weights))
    assert float(got.abs().mean()) == pytest.approx(float(z.abs().mean()), rel=1e-4)


def encoded(tokenizer, states, prompt, syntax, count=1):
    """What weights make of states that a text encoder gave: a tensor [L, D] for every text."""
    chunks = [split(tokenizer, parse(prompt, syntax), True)]
    return encode_chunks(tokenizer, lambda ids, mask: states.expand(len(ids), -1, -1), chunks, count, syntax)[0]


def test_the_web_uis_rule_where_its_mean_means_something(tokenizer):
    """The web UI restores the mean. In Stable Diffusion's encoder it is about -0.1, for values of about 1, in every token."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(LENGTH, 768, generator=generator) - 0.11
    for prompt, weights in {
        "a (red:1.4) cat [dog]": {2: 1.4, 4: 1 / 1.1}, "(a red cat:1.5)": {1: 1.5, 2: 1.5, 3: 1.5}, "(cat:0.5) dog": {1: 0.5},
        "(" + "cat " * 30 + ":1.3)": dict.fromkeys(range(1, 31), 1.3), "((((red))))": {1: 1.1 ** 4},
    }.items():
        scaled = z * torch.tensor([weights.get(place, 1.0) for place in range(LENGTH)])[:, None]
        theirs = scaled * z.mean() / scaled.mean()
        ours = encoded(tokenizer, z, prompt, "a1111")
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 0.015


@pytest.mark.parametrize("mean", ["zero", "of the other sign", "of rounding errors"])
def test_no_weight_turns_or_blows_up_all_words(tokenizer, mean):
    """A mean that is 0 before or after the weights, or turns its sign: the states of unweighted words stay about the same."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(LENGTH, 16, generator=generator)
    z -= z.mean(1, keepdim=True)  # a text encoder with a layer norm that was never trained
    if mean == "zero":
        z = torch.cat([z[:LENGTH // 2], -z[:LENGTH // 2]])
    elif mean == "of the other sign":
        z += torch.tensor([0.3, *[-0.3] * 3, *[0.05] * (LENGTH - 4)])[:, None]
    for weight in (0, 0.5, 0.99, 1.01, 2, -1):
        got = encoded(tokenizer, z, f"(a b c:{weight})", "a1111")
        factor = got[[0, *range(4, LENGTH)]] / z[[0, *range(4, LENGTH)]]
        assert got.isfinite().all()
        assert torch.allclose(factor, factor[0, 0], rtol=1e-4) and 0.85 < float(factor[0, 0]) < 1.2
        assert abs(weight - 1) > 0.1 or abs(float(factor[0, 0]) - 1) < 0.01


def test_weights_of_a_text_encoder_that_gives_nothing(tokenizer):
    assert torch.equal(encoded(tokenizer, torch.zeros(LENGTH, 8), "(cat:1.3)", "a1111"), torch.zeros(LENGTH, 8))


STRANGE = ["(cat:0)", "(a cat:0)", "[cat]", "(:1.3)", "()", "", "(cat:1e400)", "(cat:nan)", "(cat:-3)",
           "(cat:1000000000000000)", "(cat:" + "9" * 60 + ") dog", "(cat:" + "9" * 300 + ") dog",
           r"\(cat\)", "a BREAK (b:0)", "BREAK",
           "(" * 50 + "cat" + ")" * 50, "(cat:0." + "0" * 400 + "1)"]
STRANGE_COMPEL = ["(cat)0", "(a cat)0", "cat---", "cat" + "-" * 5000, "()++", "++", "(cat)1000", "(cat)1e400",
                  '("a", "b").and(0, 0)', '("", "").and(1, 2)', '("a").and(-2)', r"\(cat\)++", "(cat)." + "0" * 400 + "1"]


@pytest.mark.parametrize(("syntax", "prompt"), [
    *(("a1111", prompt) for prompt in STRANGE), *(("compel", prompt) for prompt in STRANGE_COMPEL)])
def test_strange_weights_give_finite_states(pair, syntax, prompt):
    assert all(side.isfinite().all() for side in pair(prompt, prompt, prompt_syntax=syntax))


@pytest.mark.parametrize(("syntax", "prompt", "weighted"), [
    ("a1111", "a (cat:" + "9" * 400 + ")", "cat"), ("a1111", "(" * 8000 + "cat" + ")" * 8000, "cat"),
    ("a1111", "((cat:0) dog:" + "9" * 400 + ")", "cat"), ("compel", "a cat" + "+" * 8000, "cat"),
    ("compel", "a (cat)" + "9" * 400, "cat"), ("compel", '("cat", "b").and(nan, 1)', "cat"),
    ("compel", '("cat").and(-1e999)', "cat")])
def test_weights_that_are_no_numbers(pair, syntax, prompt, weighted):
    with pytest.raises(ValueError, match=rf"^the weight of '{weighted}' in the prompt is (-?inf|nan): it must be a finite"):
        pair(prompt, prompt_syntax=syntax)


def test_weights_beyond_what_the_states_can_hold(pair):
    for prompt in ("(cat)" + "9" * 60, '("cat", "dog").and(1' + "0" * 200 + ", 1)"):
        with pytest.raises(ValueError, match=r"^a weight of 1e\+\d+ in a prompt leads to hidden states beyond what torch"):
            pair(prompt, prompt_syntax="compel")


def test_compels_upweighting_leads_away_from_the_empty_prompt(pair, states, tokenizer):
    got = pair("a (red cat)1.5 dog+", prompt_syntax="compel")[0][0]
    z, empty = states(ids(tokenizer, "a red cat dog")), states([])
    weights = torch.ones(LENGTH)
    weights[2:4], weights[4] = 1.5, 1.1
    assert near(got, empty + weights[:, None] * (z - empty))


@pytest.mark.parametrize("weight", [0.9, 0.5, 0])
def test_compels_downweighting_blends_with_the_word_masked(pair, states, tokenizer, weight):
    got = pair(f"a (red)1.2 (cat){weight} dog", prompt_syntax="compel")[0][0]
    said, empty = ids(tokenizer, "a red cat dog"), states([])
    z, without = states(said), states(said, hide=[3])
    share = math.tan((1 - weight) * math.pi / 2) / (1 + math.tan((1 - weight) * math.pi / 2))
    weights = torch.ones(LENGTH)
    weights[2], weights[3] = 1.2, weight
    assert near(got, empty + weights[:, None] * ((1 - share) * z + share * without - empty))


def test_a_clause_of_compel_is_weighted_as_a_whole(pair, states, tokenizer):
    got = pair('("a cat", "a dog").and(1, 0.5)', prompt_syntax="compel")[0][0]
    empty = states([])
    assert near(got[:LENGTH], states(ids(tokenizer, "a cat")))
    assert near(got[LENGTH:], empty + 0.5 * (states(ids(tokenizer, "a dog")) - empty))


def test_weights_do_not_depend_on_the_batch(pair):
    prompts = ["a (red:1.4) cat", "a very [blue] dog in a (house:0.3)"]
    together = pair(prompts, "(dark:2)", prompt_syntax="a1111")
    for i, prompt in enumerate(prompts):
        alone = pair(prompt, "(dark:2)", prompt_syntax="a1111")
        assert near(together[0][i], alone[0][0]) and near(together[1][i], alone[1][0])


def test_weights_in_half_precision(tokenizer, encoder, pair):
    half = calotype.CLIPTextModel.from_config(encoder.config)
    half.load_state_dict(encoder.state_dict())
    half = half.to(torch.bfloat16).eval()
    with torch.no_grad():
        got = encode_pair(tokenizer, half, "a (cat)0.5", None, 1, True, prompt_syntax="compel")[0]
    assert got.dtype == torch.bfloat16
    assert torch.allclose(got.float(), pair("a (cat)0.5", prompt_syntax="compel")[0], atol=0.3)


# -- long prompts --------------------------------------------------------------------------------------------------------


def test_long_prompts_are_cut_with_a_warning_by_default(pair, states, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        cut = pair("cat " * 30 + "lost words")[0]
    assert caplog.messages == ["the text encoder reads 30 tokens; this end of the prompt is lost: 'lost words'"]
    assert near(cut[0], states(ids(tokenizer, "cat " * 30)))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert near(pair("(cat:1.0) " * 30 + "lost words", prompt_syntax="a1111")[0], cut)
    assert caplog.messages == ["the text encoder reads 30 tokens; this end of the prompt is lost: 'lost words'"]


def test_long_prompts_in_chunks(pair, states, tokenizer, caplog):
    said = ids(tokenizer, "cat " * 30 + "dog " * 30 + "bird")
    wanted, unwanted = pair("cat " * 30 + "dog " * 30 + "bird", "dark", long_prompts=True)
    assert wanted.shape == unwanted.shape == (1, 3 * LENGTH, 256)
    assert near(wanted[0], torch.cat([states(said[:30]), states(said[30:60]), states(said[60:])]))
    assert near(unwanted[0], torch.cat([states(ids(tokenizer, "dark")), states([]), states([])]))
    assert not caplog.messages


def test_both_sides_and_all_of_a_batch_get_the_same_length(pair):
    wanted, unwanted = pair(["a cat", "dog " * 40], "dark " * 70, long_prompts=True, images=2)
    assert wanted.shape == unwanted.shape == (4, 3 * LENGTH, 256)
    assert near(wanted[0, :LENGTH], pair("a cat")[0][0]) and torch.equal(wanted[0], wanted[1])
    assert near(wanted[0, LENGTH:2 * LENGTH], pair("")[0][0])
    assert torch.equal(unwanted[0], unwanted[3])


def test_chunks_end_at_a_comma_where_one_is_near(tokenizer):
    def sizes(prompt):
        return [len(chunk.tokens) for chunk in split(tokenizer, parse(prompt, None), True)]

    assert sizes("cat " * 14 + "," + " cat" * 20) == [15, 20]  # a comma among the last 20 of 30
    assert sizes("cat " * 10 + "," + " cat" * 20) == [11, 20]
    assert sizes("cat " * 9 + "," + " cat" * 21) == [30, 1]
    assert sizes("cat, " * 20) == [30, 10]
    assert sizes("cat " * 30) == [30]
    assert sizes("") == [0]


def test_chunks_end_between_words(tokenizer):
    def ends(prompt, syntax=None):
        chunks = split(tokenizer, parse(prompt, syntax), True)
        return [tokenizer.convert_ids_to_tokens([token.id for token in chunk.tokens]) for chunk in chunks]

    long = tokenizer.tokenize("supercalifragilistic")
    assert len(long) == 6
    for before in (25, 27, 29):
        assert ends("cat " * before + "supercalifragilistic dog") == [["cat</w>"] * before, [*long, "dog</w>"]]
    assert ends("cat " * 24 + "supercalifragilistic dog") == [["cat</w>"] * 24 + long, ["dog</w>"]]
    assert ends("cat " * 14 + ", " + "dog " * 13 + "(supercalifragilistic:1.2)", "a1111")[1] == ["dog</w>"] * 13 + long
    endless = "supercalifragilistic" * 8  # longer than a chunk: there is no whole
    assert [len(tokens) for tokens in ends("cat cat " + endless)][:-1] == [30] * (len(tokenizer.tokenize(endless)) // 30)


def test_break_fills_a_chunk(pair, states, tokenizer):
    wanted, unwanted = pair("a cat BREAK a (dog:1.0)", prompt_syntax="a1111")
    assert wanted.shape == unwanted.shape
    assert near(wanted[0], torch.cat([states(ids(tokenizer, "a cat")), states(ids(tokenizer, "a dog"))]))


def test_weights_reach_into_the_next_chunk(pair, states, tokenizer):
    got = pair("cat " * 29 + "(red dog:1.5)", prompt_syntax="a1111", long_prompts=True)[0][0]
    first, second = states(ids(tokenizer, "cat " * 29 + "red")), states(ids(tokenizer, "dog"))
    for z, chunk, place in ((first, got[:LENGTH], 30), (second, got[LENGTH:], 1)):
        weights = torch.ones(LENGTH)
        weights[place] = 1.5
        assert near(chunk, in_the_web_ui(z, weights))


def test_pictures_of_long_and_weighted_prompts(tiny):
    def picture(prompt="a (cat:1.3), " * 20, **options):
        return tiny(prompt, num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0), **options).images

    options = {"prompt_syntax": "a1111", "long_prompts": True}
    with torch.no_grad():
        wanted, unwanted = encode_pair(tiny.tokenizer, tiny.text_encoder, "a (cat:1.3), " * 20, "dark", 1, True, **options)
    assert wanted.shape == unwanted.shape == (1, 2 * LENGTH, 16)
    got = picture(negative_prompt="dark", **options)
    assert torch.allclose(got, picture(None, prompt_embeds=wanted, negative_prompt_embeds=unwanted), atol=1e-5)
    assert not torch.allclose(got, picture(negative_prompt="dark"), atol=1e-5)


# -- given embeddings, lists, errors -------------------------------------------------------------------------------------


def test_plain_prompts_are_what_they_are_in_diffusers(pair, diffusers):
    peer = diffusers.StableDiffusionPipeline.from_pretrained(
        BUNDLED["calotype/emoji"], unet=None, vae=None, safety_checker=None, torch_dtype=torch.float32)
    for prompt, negative, images in (("a (cat:1.3), dog++ [x]", None, 1), (["a", "b " * 50], ["dark", ""], 2), ("", "x", 1)):
        with torch.no_grad():
            wanted, unwanted = peer.encode_prompt(prompt, "cpu", images, True, negative_prompt=negative)
        ours = pair(prompt, negative, images)
        assert near(ours[0], wanted) and near(ours[1], unwanted)


def test_clip_skip(pair, encoder, tokenizer):
    transformers = pytest.importorskip("transformers")
    folder = BUNDLED["calotype/emoji"] / "text_encoder"
    peer = transformers.CLIPTextModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokens = tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = peer(tokens, output_hidden_states=True).hidden_states
        norm = next(module for name, module in peer.named_modules() if name.endswith("final_layer_norm"))
        for skip in range(len(hidden)):
            assert near(pair("a cat", clip_skip=skip)[0], norm(hidden[-1 - skip]))
            assert near(pair("a cat", clip_skip=skip, long_prompts=True)[0], norm(hidden[-1 - skip]))
            for options in ({}, {"long_prompts": True}, {"prompt_syntax": "compel", "images": 2}):  # the negative prompt has all
                assert near(pair("dark", "a cat", clip_skip=skip, **options)[1][:1], norm(hidden[-1]))
            assert pair("a cat", clip_skip=skip, guided=False)[1] is None
    for skip in (-1, 5):
        with pytest.raises(ValueError, match=f"clip_skip is {skip}, and the text encoder has 4 layers"):
            pair("a cat", clip_skip=skip)


def test_clip_skip_as_in_diffusers(pair, diffusers):
    """Of the prompt alone; in all pipelines that take it."""
    peer = diffusers.StableDiffusionPipeline.from_pretrained(
        BUNDLED["calotype/emoji"], unet=None, vae=None, safety_checker=None, torch_dtype=torch.float32)
    if not hasattr(peer.text_encoder, "text_model"):  # where it is sought, and transformers 4 had it
        object.__setattr__(peer.text_encoder, "text_model", peer.text_encoder)
    prompts, negatives = ["a cat", "a dog"], ["dark", ""]
    for name in ("StableDiffusion", "StableDiffusionImg2Img", "StableDiffusionUpscale", "StableUnCLIPImg2Img"):
        encode = getattr(diffusers, f"{name}Pipeline").encode_prompt
        for skip, images, guided in ((0, 1, True), (1, 2, True), (2, 1, True), (1, 1, False)):
            with torch.no_grad():
                theirs = encode(peer, prompts, "cpu", images, guided, negatives, clip_skip=skip)
            ours = pair(prompts, negatives, images, guided, clip_skip=skip)
            assert near(ours[0], theirs[0])
            assert near(ours[1], theirs[1]) if guided else ours[1] is None


def test_lists(pair):
    wanted, unwanted = pair(["a cat", "a dog"], ["dark", "blurry"], images=2)
    assert near(wanted[2], pair("a dog")[0][0]) and near(unwanted[3], pair("", "blurry")[1][0])
    assert near(pair(["a cat", "a dog"], "dark")[1][1], unwanted[0])
    assert pair(["a cat"], guided=False)[1] is None
    for options in ({}, {"long_prompts": True}):
        with pytest.raises(ValueError, match="3 negative prompts for 2 prompts"):
            pair(["a", "b"], ["x", "y", "z"], **options)
    with pytest.raises(ValueError, match=r"^prompt is \[\]: give a text"):
        pair([])
    with pytest.raises(ValueError, match=r"^negative_prompt is \[\]: give a text"):
        pair("a", [])
    with pytest.raises(ValueError, match="^prompt is None"):
        pair(None)


def test_a_text_has_the_length_of_given_embeddings(pair):
    assert near(pair(None, "dark", prompt_embeds=torch.zeros(2, 20, 256))[1][1], pair("", "dark")[1][0, :20])
    long, empty = pair(None, "dark", prompt_embeds=torch.zeros(1, 3 * LENGTH, 256))[1][0].split([LENGTH, 2 * LENGTH])
    assert near(long, pair("dark")[0][0]) and near(empty[:LENGTH], pair("")[0][0])
    assert pair("a cat", negative_prompt_embeds=torch.zeros(1, 2 * LENGTH, 256))[0].shape == (1, 2 * LENGTH, 256)
    with pytest.raises(ValueError, match="prompt_embeds have 40 tokens, and a negative prompt, in chunks of 32, cannot"):
        pair(None, prompt_embeds=torch.zeros(1, 40, 256))


def test_given_embeddings_of_another_shape(pair):
    zeros = torch.zeros
    for prompt, options in (
        (None, {"prompt_embeds": zeros(1, LENGTH, 256), "negative_prompt_embeds": zeros(1, 20, 256)}),
        ("a cat", {"negative_prompt_embeds": zeros(1, 20, 256)}), ("a cat", {"negative_prompt_embeds": zeros(1, LENGTH, 8)}),
        (["a", "b"], {"negative_prompt_embeds": zeros(1, LENGTH, 256)})):
        with pytest.raises(ValueError, match=r"are \[.*\] and the negative ones \[.*\]: they must have one shape"):
            pair(prompt, **options)


# -- choices -------------------------------------------------------------------------------------------------------------


def test_choices():
    seen = {expand_wildcards("a {red|blue|{dark|light} green} car", seed) for seed in range(60)}
    assert seen == {"a red car", "a blue car", "a dark green car", "a light green car"}
    assert expand_wildcards("{a|b} {c|d}", 3) == expand_wildcards("{a|b} {c|d}", 3)
    assert {expand_wildcards("x{|y}", seed) for seed in range(20)} == {"x", "xy"}


def test_choices_have_weights():
    drawn = [expand_wildcards("{3::a|b|0::c}", seed) for seed in range(1000)]
    assert "c" not in drawn
    assert drawn.count("a") / len(drawn) == pytest.approx(0.75, abs=0.04)
    assert expand_wildcards("{ 0.5::summer | 0::winter }", 0) == "summer "
    with pytest.raises(ValueError, match="all 0"):
        expand_wildcards("{0::a|0::b}", 0)
    with pytest.raises(ValueError, match="several choices at once"):
        expand_wildcards("{2$$a|b|c}", 0)
    with pytest.raises(ValueError, match="too large to be added"):
        expand_wildcards("{" + "9" * 400 + "::a|b}", 0)


def test_choices_in_texts_that_belong_together():
    """The first text has the choices that it has alone, and the second is not tied to them."""
    drawn = [expand_wildcards(["a {red|blue} cat", "{flat|noto} style"], seed) for seed in range(40)]
    assert [prompt for prompt, _ in drawn] == [expand_wildcards("a {red|blue} cat", seed) for seed in range(40)]
    assert len({tuple(texts) for texts in drawn}) == 4
    assert expand_wildcards([], 0) == []


@pytest.mark.parametrize(("prompt", "text"), [
    ("a cat", "a cat"), (r"\{a\|b\}", "{a|b}"), ("{a", "{a"), ("a}", "a}"), ("{a}", "{a}"), ("a|b", "a|b"), ("{}", "{}"),
    ("{{a}|{a}}", "{a}"), (r"{a\|b|a\|b}", "a|b")])
def test_what_is_no_choice_is_text(prompt, text):
    assert expand_wildcards(prompt, 0) == text


def test_choices_in_choices_are_drawn_from_the_innermost():
    assert expand_wildcards("{{0::x|y} {{a}|0::{b|c}}|0::z} {b", 0) == "y {a} {b"
    assert expand_wildcards("{0::a|{1::{1::{5::b|0::c}|0::d}|0::e}}", 0) == "b"
    assert expand_wildcards("{{0|0}::a|b}", 0) == "b"


def test_the_same_choice_for_a_seed_on_every_machine():
    """Recipes rely on it."""
    assert [expand_wildcards("{a|b|c|d}", seed) for seed in range(8)] == list("dadaacdb")
