"""Textual inversion: words whose embeddings were learned from pictures (Gal et al. 2022, arXiv:2208.01618)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..files import local_path
from ..hub import split_options
from ..runtime.offload import check_stays
from ..weights import read_tensors
from ..words import check_keywords, some
from .learned_words import added_tokens, expand_tokens, same_for_all, tokens_of

Embeddings = str | os.PathLike[str] | Tensor | Mapping[str, Any]
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_OPTIONS = ("weight_name", "use_safetensors", "subfolder", "revision", "hf_token", "cache_dir", "local_files_only",
            "force_download")


class TextualInversion:
    """What a pipeline with a tokenizer and a text encoder inherits to learn new words."""

    tokenizer: Any
    text_encoder: Any

    def load_textual_inversion(
        self, pretrained_model_name_or_path: Embeddings | list[Embeddings], token: str | list[str] | None = None,
        tokenizer: Any = None, text_encoder: Any = None, **kwargs: Any,
    ) -> None:
        """Add words with learned embeddings, to be used in prompts. This changes the tokenizer and the text encoder.

        A word may have several vectors: it then stands for the tokens `word word_1 word_2 …`, also in prompts. There it is
        found however the tokenizer lets it be written: with CLIP's, in any letters' case.

        Args:
            pretrained_model_name_or_path: a file, a folder or Hub repository with `learned_embeds.safetensors`, a tensor [D] or
                [vectors, D], or a mapping as such files hold: `{word: tensor}`, or `{"string_to_param": {"*": tensor},
                "name": word}` (AUTOMATIC1111's). Or a list of these.
            token: the word, if not that of the file (or files, with as many words). With several words for one tensor, each
                gets one of its vectors.
            tokenizer, text_encoder: which of the pipeline's they go to, where it has several.
            weight_name: the file's name in the folder or repository.
            use_safetensors: `False` allows pickled files (`.bin`, `.pt`), as does naming one; PyTorch's weights-only reader
                reads them.
            hf_token: access token for the Hub. **kwargs: `subfolder`, `revision`, `cache_dir`, `local_files_only`,
                `force_download`.

        Raises:
            FileNotFoundError: no such file; says what there is.
            ValueError: a file is damaged or holds something else, the embeddings have another width than the text
                encoder's or are not finite, a word is a token already or the tokenizer cannot tell it from one, or the text
                encoder is offloaded. Nothing is changed then.
        """
        check_keywords("load_textual_inversion", kwargs, _OPTIONS)
        tokenizer, text_encoder = tokenizer or self.tokenizer, text_encoder or self.text_encoder
        check_stays(text_encoder)
        given = pretrained_model_name_or_path
        contents = [_read(source, **kwargs) for source in (given if isinstance(given, list) else [given])]
        words = token if isinstance(token, list) else [token] * len(contents) if token is None else [token]
        if len(contents) == 1 and len(words) > 1:
            vectors = _vectors(contents[0], words[0])[1]
            if len(vectors) != len(words):
                raise ValueError(f"there are {len(vectors)} vectors for {len(words)} words ({some(words)})")  # type: ignore[arg-type]
            contents = list(vectors)
        if len(contents) != len(words):
            raise ValueError(f"there are {len(contents)} embeddings and {len(words)} words: give one for each")
        add_embeddings(tokenizer, text_encoder, [
            _vectors(content, word) for content, word in zip(contents, words, strict=True)])

    def unload_textual_inversion(
        self, tokens: str | list[str] | None = None, tokenizer: Any = None, text_encoder: Any = None
    ) -> None:
        """Take words out again, with all their vectors.

        Args:
            tokens: the words, in any of the forms in which prompts may have them; by default all that were added.
            tokenizer, text_encoder: as in `load_textual_inversion`.

        Raises:
            ValueError: there is no such word; says which there are. Or it is but one vector of a word, or the text encoder is
                offloaded. Nothing is changed then.
            TypeError: the tokenizer cannot lose tokens: transformers' cannot.
        """
        tokenizer, text_encoder = tokenizer or self.tokenizer, text_encoder or self.text_encoder
        check_stays(text_encoder)
        if not hasattr(tokenizer, "remove_tokens"):
            raise TypeError(f"no word can be taken out of a {type(tokenizer).__module__}.{type(tokenizer).__name__}: load the "
                            "tokenizer as calotype.CLIPTokenizer")
        added = dict.fromkeys(added_tokens(tokenizer))
        forms = {same_for_all(tokenizer, token): token for token in added}
        words = [tokens] if isinstance(tokens, str) else list(added) if tokens is None else tokens
        words = [word if word in added else forms.get(same_for_all(tokenizer, word), word) for word in words]
        taken = dict.fromkeys(token for word in words for token in tokens_of(word, added) or [word])
        for word in added:
            if len(part := [token for token in tokens_of(word, added) if token in taken]) and word not in taken:
                raise ValueError(f"{part[0]!r} is one of the vectors of {word!r}: unload that")
        gone = tokenizer.remove_tokens(taken)
        embedding = text_encoder.get_input_embeddings()
        kept = [row for row in range(len(embedding.weight)) if row not in set(gone)]
        if gone:
            with torch.no_grad():
                embedding.weight[:len(kept)] = embedding.weight[kept]
            text_encoder.resize_token_embeddings(len(kept))

    def maybe_convert_prompt(self, prompt: str | list[str], tokenizer: Any) -> str | list[str]:
        """The prompt with every word of several vectors written out."""
        return expand_tokens(tokenizer, prompt) if isinstance(prompt, str) else [expand_tokens(tokenizer, one) for one in prompt]


def add_embeddings(tokenizer: Any, text_encoder: Any, words: Sequence[tuple[str, Tensor]]) -> None:
    """Make each word, with its vectors [n, D], tokens of the tokenizer and rows of the text encoder's embeddings. All or none."""
    width = text_encoder.get_input_embeddings().weight.shape[1]
    for word, vectors in words:
        if vectors.shape[1] != width:
            raise ValueError(f"the embedding of {word!r} has {vectors.shape[1]} channels, and the text encoder's have {width}: "
                             "it was learned for another model")
        if not bool(vectors.isfinite().all()):
            raise ValueError(f"the embedding of {word!r} holds numbers that are not finite")
    rows = _rows(tokenizer, words)
    first, old = len(tokenizer), text_encoder.get_input_embeddings()
    embedding = text_encoder.resize_token_embeddings(max(first + len(rows), len(old.weight)))
    with torch.no_grad():
        embedding.weight[first:first + len(rows)] = torch.stack(list(rows.values())).to(embedding.weight)
    tokenizer.add_tokens(list(rows))  # last: no prompt has a token before there is its embedding


def _rows(tokenizer: Any, words: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The vector of each new token. The tokenizer must be able to tell every token from all others."""
    vocab, before = tokenizer.get_vocab(), dict.fromkeys(added_tokens(tokenizer))
    forms = {same_for_all(tokenizer, token): token for token in map(str, tokenizer.added_tokens_decoder.values())}
    advice = "give another as token=…, or unload it first"
    rows: dict[str, Tensor] = {}
    for word, vectors in words:
        for number, vector in enumerate(vectors):
            token = f"{word}_{number}" if number else word
            if token in vocab or token in rows:
                raise ValueError(f"{token!r} is a token already: {advice}")
            if (other := forms.setdefault(same_for_all(tokenizer, token), token)) != token:
                raise ValueError(f"the tokenizer cannot tell {token!r} from {other!r}, which is a token already: {advice}")
            rows[token] = vector
    counts = {word: len(tokens_of(word, before)) for word in before} | {word: len(vectors) for word, vectors in words}
    for word, count in counts.items():
        if len(tokens := tokens_of(word, {**before, **rows})) > count:
            raise ValueError(f"{word!r} and {tokens[count]!r} would be read as vectors of one word: {advice}")
    return rows


def _vectors(content: Any, word: str | None) -> tuple[str, Tensor]:
    """The word and the vectors [n, D] of what a file holds."""
    if isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Mapping):
        parameters = content["string_to_param"]
        vectors, own = parameters.get("*", next(iter(parameters.values()), None)), content.get("name")
    elif isinstance(content, Mapping) and len(content) == 1:
        (own, vectors), = content.items()
    elif isinstance(content, Mapping):
        held = some(list(content)) or "nothing"
        raise ValueError(f"an embedding is one tensor by its word, or 'string_to_param', and there is {held}; of a file with "
                         "several, give each as a tensor, with its token, tokenizer and text_encoder")
    else:
        vectors, own = content, None
    word = word or own
    if not isinstance(vectors, Tensor) or vectors.dim() not in (1, 2) or not vectors.numel():
        what = f"of shape {list(vectors.shape)}" if isinstance(vectors, Tensor) else f"a {type(vectors).__name__}"
        raise ValueError(f"an embedding is a tensor [channels] or [vectors, channels], and that of {word!r} is {what}")
    if not isinstance(word, str) or not word.strip():
        raise ValueError("these embeddings do not say their word: give it as token=…")
    return word, vectors.detach().reshape(-1, vectors.shape[-1])


def _read(
    source: Any, weight_name: str | None = None, use_safetensors: bool | None = None, hf_token: Any = None, **where: Any
) -> Any:
    """What a source holds: its tensor or mapping."""
    if isinstance(source, (Tensor, Mapping)):
        return source
    path = local_path(source)
    if not path.is_file():
        name = weight_name or f"learned_embeds.{'bin' if use_safetensors is False else 'safetensors'}"
        origin, _ = split_options(source, {**where, "token": hf_token})
        try:
            path = origin.file(name)
        except FileNotFoundError as error:
            if weight_name or use_safetensors is False:
                raise
            raise FileNotFoundError(f"{error}; a file of another name is read with weight_name=…, and learned_embeds.bin, which "
                                    "is pickled, with use_safetensors=False") from error
    if path.suffix == ".safetensors":
        return read_tensors([path])
    if path.suffix not in _PICKLED or use_safetensors:
        raise ValueError(f"{str(path)!r} is no safetensors file" + (
            ", which use_safetensors=True asks for" if path.suffix in _PICKLED else f", nor a pickled one ({some(_PICKLED)})"))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # there is no telling what a damaged or hostile pickle leads to
        raise ValueError(f"{str(path)!r} is damaged or holds more than tensors ({error})") from None
