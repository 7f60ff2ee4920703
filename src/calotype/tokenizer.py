"""From text to the numbers that CLIP reads: byte-pair encoding of lower-cased words.

The vocabulary is that of Radford et al. 2021 (arXiv:2103.00020, section 2.4): byte-level pairs (Sennrich et al. 2016,
arXiv:1508.07909), with `</w>` at the end of a word. The pairing itself is done by Hugging Face's `tokenizers`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from .files import read_json, staged_folder, write_json
from .hub import split_options
from .tokenized import Tokenized, as_tensor
from .words import check_choice, check_keywords, some

NO_LIMIT = int(1e30)
"""The `model_max_length` of a tokenizer whose files name none (the format's own number for it)."""

_PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_SETTINGS = (*_SPECIAL, "model_max_length", "padding_side")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
          "tokenizer_config.json")
_Token = str | Mapping[str, Any]  # its text, or a mapping with `content` and the format's flags


def _id_of(name: str) -> Any:
    return property(lambda self: self.convert_tokens_to_ids(getattr(self, name)), doc=f"The id of `{name}`.")


class CLIPTokenizer:
    """Texts to token ids and back, as transformers' class of this name does it. Usually made by `from_pretrained`.

    Args:
        vocab: the id of every token.
        merges: the pairs of tokens that become one, the first pair first.
        bos_token, eos_token: put before and after every text.
        unk_token: stands for what the vocabulary lacks (nothing, where it has all bytes).
        pad_token: fills up a short text. All four are also recognised inside texts: with Stable Diffusion 2, which
            pads with "!", every "!" is one.
        model_max_length: how many tokens the model reads.
        padding_side: `"right"` or `"left"`.
        added_tokens: more tokens, matched whole: mappings with `content`, `id` and the format's flags.

    Raises:
        ValueError: the merges use tokens that the vocabulary lacks, or an added token cannot have its id.
    """

    bos_token_id, eos_token_id, unk_token_id, pad_token_id = map(_id_of, _SPECIAL)

    def __init__(
        self, vocab: Mapping[str, int], merges: Iterable[Sequence[str]], *, bos_token: _Token = "<|startoftext|>",
        eos_token: _Token = "<|endoftext|>", unk_token: _Token = "<|endoftext|>", pad_token: _Token = "<|endoftext|>",
        model_max_length: int = NO_LIMIT, padding_side: str = "right", added_tokens: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

        check_choice("padding_side", padding_side, ("right", "left"))
        self.model_max_length, self.padding_side = int(model_max_length), padding_side
        special = [{"content": token} if isinstance(token, str) else token
                   for token in (bos_token, eos_token, unk_token, pad_token)]
        self.bos_token, self.eos_token, self.unk_token, self.pad_token = (token["content"] for token in special)
        try:
            model = models.BPE(dict(vocab), [(left, right) for left, right in merges], unk_token=self.unk_token,
                               continuing_subword_prefix="", end_of_word_suffix="</w>")
        except Exception as error:  # `tokenizers` raises nothing more definite
            raise ValueError(f"vocabulary and merges do not fit together ({error})") from None
        self._backend = backend = Tokenizer(model)
        backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(_PATTERN), "removed", invert=True), pre_tokenizers.ByteLevel(False)])
        backend.decoder = decoders.ByteLevel()
        marked = {token["content"]: {**token, "special": True} for token in special}
        for token in added_tokens:
            marked[token["content"]] = {**marked.get(token["content"], {}), **token}
        for token in sorted(marked.values(), key=lambda token: token.get("id", float("inf"))):
            self._add(**token)
        backend.post_processor = processors.RobertaProcessing(
            (self.eos_token, self.eos_token_id), (self.bos_token, self.bos_token_id), False, False)

    def _add(self, content: str, id: int | None = None, **flags: Any) -> int:
        from tokenizers import AddedToken

        flags = {name: bool(value) for name, value in flags.items() if name in _FLAGS}
        token = AddedToken(content, **flags)
        count = (self._backend.add_special_tokens if token.special else self._backend.add_tokens)([token])
        given = self._backend.token_to_id(content)
        if id is not None and given != id:
            raise ValueError(f"the added token {content!r} should have the id {id}, but the next free one is {given}")
        return count

    # -- files --------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> CLIPTokenizer:
        """Read a tokenizer.

        Args:
            pretrained_model_name_or_path: a bundled name, a folder, or a Hub repository.
            **kwargs: `subfolder`, the options of `hub.Source`, and settings to replace (`pad_token`, ...).

        Raises:
            FileNotFoundError: no such checkpoint, or there is no vocabulary in it; says what was tried or found.
            ValueError: a file is damaged; names it.
        """
        source, settings = split_options(pretrained_model_name_or_path, kwargs)
        settings.pop("use_fast", None)  # there is but the fast one
        check_keywords(f"{cls.__name__}.from_pretrained", settings, _SETTINGS)
        folder = source.folder(lambda names: [name for name in names if name in _FILES])
        has = {name: folder / name for name in _FILES if (folder / name).is_file()}
        if "tokenizer.json" not in has and not {"vocab.json", "merges.txt"} <= has.keys():
            held = some(sorted(path.name for path in folder.iterdir())) or "nothing"
            raise FileNotFoundError(f"{str(folder)!r} has neither 'tokenizer.json' nor both 'vocab.json' and "
                                    f"'merges.txt'; there is {held}")
        read = {name: read_json(path) for name, path in has.items() if path.suffix == ".json"}
        config = read.get("tokenizer_config.json", {})
        decoder = config.get("added_tokens_decoder", {})
        if not decoder:  # files with a decoder came after the map of special tokens; before, the map had the last word
            config |= read.get("special_tokens_map.json", {})
        settings = {name: config[name] for name in _SETTINGS if config.get(name) is not None} | settings
        try:
            if "tokenizer.json" in read:
                vocab, merges = (read["tokenizer.json"]["model"][name] for name in ("vocab", "merges"))
                added = read["tokenizer.json"].get("added_tokens", [])
            else:
                vocab, merges = read["vocab.json"], has["merges.txt"].read_text(encoding="utf-8").split("\n")
                merges = [line.rstrip("\r") for line in merges[merges[0].startswith("#version"):] if line.strip()]
                added = [{**token, "id": int(id)} for id, token in decoder.items()]
            added += [{"content": token, "id": id} for token, id in read.get("added_tokens.json", {}).items()
                      if token not in {other["content"] for other in added}]
            pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
            return cls(vocab, pairs, added_tokens=added, **settings)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            what = f"there is no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"of {str(folder)!r}, one of {some(list(has))} is damaged: {what}") from error

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the tokenizer into a folder, in the old format (`vocab.json`, `merges.txt`) and the new."""
        content = self._backend.to_str(pretty=True)
        model = json.loads(content)["model"]
        special = {name: getattr(self, name) for name in _SPECIAL}
        added = {token: id for token, id in self.get_vocab().items() if token not in model["vocab"]}
        with staged_folder(save_directory) as scratch:
            (scratch / "tokenizer.json").write_text(content, encoding="utf-8")
            (scratch / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
            with open(scratch / "merges.txt", "w", encoding="utf-8", newline="\n") as file:
                file.writelines(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in model["merges"])])
            write_json(scratch / "added_tokens.json", added)
            write_json(scratch / "special_tokens_map.json", special)
            write_json(scratch / "tokenizer_config.json", {
                **special, "model_max_length": self.model_max_length, "padding_side": self.padding_side,
                "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace",
            })

    # -- text to ids --------------------------------------------------------------------------------------------------

    def __call__(
        self, text: str | Sequence[str], *, padding: bool | str = False, truncation: bool | str | None = None,
        max_length: int | None = None, return_tensors: str | None = None, return_attention_mask: bool | None = True,
        return_offsets_mapping: bool = False, add_special_tokens: bool = True, **unknown: Any,
    ) -> Tokenized:
        """Encode a text, or a list of texts.

        Args:
            text: what to encode.
            padding: `False`; `True` or `"longest"`, to the length of the longest; `"max_length"`, to `max_length`.
            truncation: whether what is longer than `max_length` loses its last words (never its end token). By
                default, if `max_length` is given and there is no padding.
            max_length: in tokens, those of start and end among them; by default `model_max_length`.
            return_tensors: `None` for lists, `"pt"` or `"np"` for int64 of shape `[texts, tokens]`.
            return_attention_mask: give `attention_mask` too, 1 for tokens and 0 for padding.
            return_offsets_mapping: give `offset_mapping` too, where in the text each token begins and ends; (0, 0) for
                those of start, end and padding.
            add_special_tokens: put start and end tokens around each text.

        Raises:
            TypeError: `text` is neither a string nor a list of strings.
            ValueError: `max_length` has no room for start and end, there is none to pad to, or texts of different
                lengths should become one tensor.
        """
        check_keywords("a tokenizer's call", unknown, self.__call__.__kwdefaults__ or ())
        check_choice("padding", padding, (False, True, "longest", "max_length", "do_not_pad"))
        check_choice("truncation", truncation, (None, False, True, "longest_first", "only_first", "do_not_truncate"))
        check_choice("return_tensors", return_tensors, (None, "pt", "np"))
        limit = self.model_max_length if max_length is None else max_length
        padded = padding not in (False, "do_not_pad")
        if truncation is None:
            truncation = max_length is not None and not padded
        cut = truncation not in (False, "do_not_truncate")
        start, end = ([self.bos_token_id], [self.eos_token_id]) if add_special_tokens else ([], [])
        room = limit - len(start + end)
        if room < 0:
            raise ValueError(f"max_length is {limit}, which has no room for the start and end tokens; give 2 or more")
        read, last = self._encode(text), room if cut else None
        rows = [start + encoded.ids[:last] + end for encoded in read]
        width = 0 if not padded else limit if padding == "max_length" else max(map(len, rows), default=0)
        if width >= NO_LIMIT:
            raise ValueError("padding='max_length' needs a `max_length`, since the tokenizer has no model_max_length")

        def fill(row: list[Any], value: Any) -> list[Any]:
            missing = [value] * (width - len(row))
            return row + missing if self.padding_side == "right" else missing + row

        results = Tokenized(input_ids=[fill(row, self.pad_token_id) for row in rows])
        if return_attention_mask is not False:
            results["attention_mask"] = [fill([1] * len(row), 0) for row in rows]
        if return_offsets_mapping:
            results["offset_mapping"] = [
                fill([(0, 0)] * len(start) + encoded.offsets[:last] + [(0, 0)] * len(end), (0, 0)) for encoded in read]
        if return_tensors:
            return Tokenized({name: as_tensor(value, return_tensors) for name, value in results.items()})
        return Tokenized({name: value[0] for name, value in results.items()}) if isinstance(text, str) else results

    def _encode(self, text: Any) -> list[Any]:
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or not all(isinstance(one, str) for one in texts):
            raise TypeError(f"a tokenizer takes a string or a list of strings, and was given {text!r:.80}")
        for one in texts:
            one.encode()  # raises what is clearer than `tokenizers`' own complaint of half a surrogate pair
        return self._backend.encode_batch(list(texts), add_special_tokens=False)

    def encode(self, text: str, **options: Any) -> Any:
        """The `input_ids` alone; options as in a call."""
        return self(text, **options)["input_ids"]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text in the vocabulary's spelling, without start and end."""
        return [token for encoded in self._encode(text) for token in encoded.tokens]

    # -- ids to text --------------------------------------------------------------------------------------------------

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of ids (one, a list, an array or a tensor `[tokens]`), with a space after every word."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        added, text = self._backend.get_added_tokens_decoder(), ""
        for whole, part in groupby([ids] if isinstance(ids, int) else map(int, ids), added.__contains__):
            tokens = [(id, self.convert_ids_to_tokens(id)) for id in part]
            if whole:
                text += "".join(token for id, token in tokens if not (skip_special_tokens and added[id].special))
            else:  # \u0120 is how bytes spell a space
                text += self._backend.decoder.decode([re.sub("</w>$", "\u0120", token) for _, token in tokens])
        return text.strip()

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = False) -> list[str]:
        """`decode` for each of `sequences`."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    # -- the vocabulary -----------------------------------------------------------------------------------------------

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token, or of each in a list; the unknown token's for those that are none."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        id = self._backend.token_to_id(tokens)
        return self._backend.token_to_id(self.unk_token) if id is None else id

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> Any:
        """The token of an id, or of each in a list, in the vocabulary's spelling; `ValueError` where there is none."""
        if not isinstance(ids, int):
            return [self.convert_ids_to_tokens(int(id)) for id in ids]
        token = self._backend.id_to_token(ids) if ids >= 0 else None
        if token is None:
            raise ValueError(f"there is no token of id {ids}; the tokenizer has {len(self)}")
        return token

    def add_tokens(self, new_tokens: str | Sequence[str], special_tokens: bool = False) -> int:
        """Add tokens that are matched whole, each with the next free id. Returns how many were new.

        Unless they are special, their letters' case makes no difference, as with all text.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str) else new_tokens
        return sum(self._add(token, special=special_tokens) for token in tokens)

    def normalized(self, text: str) -> str:
        """A text as it is read: letters composed, white space as single spaces, no capitals. Added tokens are so too."""
        return str(self._backend.normalizer.normalize_str(text))

    def remove_tokens(self, tokens: Iterable[str]) -> list[int]:
        """Take tokens that were added out again: returns their ids. Those after them move up, so that none is missing."""
        added = {token: id for id, token in self.added_tokens_decoder.items() if id >= self.vocab_size}
        own = (self.bos_token, self.eos_token, self.unk_token, self.pad_token)
        for token in tokens:
            if token not in added or token in own:
                raise ValueError(f"{token!r} is no token that was added (there are {some(list(added)) or 'none'})")
        gone = sorted(added[token] for token in tokens)
        content = json.loads(self._backend.to_str())
        content["added_tokens"] = [
            {**token, "id": token["id"] - sum(id < token["id"] for id in gone)}
            for token in content["added_tokens"] if token["id"] not in gone]
        self._backend = type(self._backend).from_str(json.dumps(content))
        return gone

    @property
    def added_tokens_decoder(self) -> dict[int, str]:
        """The tokens that are matched whole, by their ids: the special ones, and those that were added."""
        return {id: token.content for id, token in sorted(self._backend.get_added_tokens_decoder().items())}

    def get_vocab(self) -> dict[str, int]:
        """The ids of all tokens."""
        return self._backend.get_vocab()

    @property
    def vocab_size(self) -> int:
        """The number of tokens without those that were added."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._backend.get_vocab_size()

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in _SETTINGS)
        return f"CLIPTokenizer({len(self)} tokens, {settings})"
