"""Convert a GGUF file's tokenizer and template to Hugging Face's files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from training.errors import InvalidModelFile
from training.language.assets import dump, end_tokens

# Kinds of tokens, as llama.cpp numbers them.
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
SPACE = "▁"  # stands for a space in SentencePiece's vocabularies
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# llama.cpp's "default": each expression splits the pieces of those before it.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_INNER_BYTES = {**_BYTES, "use_regex": False}


class Metadata(Protocol):
    """Metadata of a GGUF file by name."""

    def get(self, name: str, default: Any = None) -> Any: ...
    def text(self, name: str) -> str: ...
    def items(self, name: str) -> list[Any]: ...


def assets(metadata: Metadata, context: int) -> dict[str, str]:
    """Return the tokenizer's files and the chat template by file name.

    Raises:
        InvalidModelFile: the tokenizer's kind is unknown, or its lists do not fit together.
    """
    tokens, kinds = _vocabulary(metadata)
    special = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == CONTROL
    }
    declared = [_token(metadata, tokens, name) for name in ("eos", "eot", "eom")]
    ends = end_tokens(special, declared)
    begin = _token(metadata, tokens, "bos")
    names = {"eos_token": declared[0], "bos_token": begin}
    padding = metadata.get("tokenizer.ggml.padding_token_id")  # -1 in some files, and not used
    if isinstance(padding, int) and 0 <= padding < len(tokens):
        names["pad_token"] = padding
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        **{name: tokens[at] for name, at in names.items() if at is not None},
    }
    generation = {"eos_token_id": ends} | ({} if begin is None else {"bos_token_id": begin})
    files = {
        "tokenizer.json": dump(tokenizer(metadata)),
        "tokenizer_config.json": dump(config),
        "generation_config.json": dump(generation),
    }
    template = metadata.get("tokenizer.chat_template")
    return files | ({"chat_template.jinja": template} if isinstance(template, str) else {})


def _vocabulary(metadata: Metadata) -> tuple[list[str], list[int]]:
    tokens = metadata.items("tokenizer.ggml.tokens")
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise InvalidModelFile("metadata 'tokenizer.ggml.tokens' is no list of texts")
    kinds = [1] * len(tokens)
    if metadata.get("tokenizer.ggml.token_type"):
        kinds = metadata.items("tokenizer.ggml.token_type")
    if len(kinds) != len(tokens):
        raise InvalidModelFile(
            f"the tokenizer has {len(tokens)} tokens and {len(kinds)} token types"
        )
    return tokens, kinds


def _token(metadata: Metadata, tokens: Sequence[str], name: str) -> int | None:
    """Return the number of a special token, or None."""
    field = f"tokenizer.ggml.{name}_token_id"
    number = metadata.get(field)
    if number is None:
        return None
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise InvalidModelFile(
            f"metadata {field!r} is {repr(number)[:60]}, and the tokenizer has {len(tokens)} tokens"
        )
    return number


def tokenizer(metadata: Metadata) -> dict[str, Any]:
    """Return the content of tokenizer.json.

    Raises:
        InvalidModelFile: the tokenizer's kind or its splitting of words is unknown.
    """
    kind = metadata.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise InvalidModelFile(
            f"tokenizer {kind!r} is not known; those that can be imported are gpt2 and llama"
        )
    tokens, kinds = _vocabulary(metadata)
    build = _byte_level if kind == "gpt2" else _sentencepiece
    added = [
        _added(number, token, special=token_kind in (CONTROL, UNKNOWN))
        for number, (token, token_kind) in enumerate(zip(tokens, kinds, strict=True))
        if token_kind in (CONTROL, USER_DEFINED) or (kind == "llama" and token_kind == UNKNOWN)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **build(metadata, tokens),
        "post_processor": _post_processor(metadata, tokens, byte_level=kind == "gpt2"),
    }


def _added(number: int, token: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, **flags, "special": special}


# --- byte-level vocabularies


def _byte_level(metadata: Metadata, tokens: Sequence[str]) -> dict[str, Any]:
    split = metadata.get("tokenizer.ggml.pre")
    if split is None:
        raise InvalidModelFile(
            "the file does not say how its tokenizer splits words (tokenizer.ggml.pre): convert "
            "the model again, with a converter from May 2024 or later"
        )
    if not isinstance(split, str) or split not in _SPLITS:
        raise InvalidModelFile(
            f"the tokenizer splits words like {split!r}, which is not known; those that can be "
            f"imported are {', '.join(_SPLITS)}"
        )
    merges = [str(merge).split(" ", 1) for merge in metadata.items("tokenizer.ggml.merges")]
    whole = split in _LLAMA3  # whole words of the vocabulary need no merges
    return {
        "normalizer": {"type": "NFC"} if split in _QWEN2 else None,
        "pre_tokenizer": _SPLITS[split],
        "decoder": _BYTES,
        "model": _bpe(tokens, merges, ignore_merges=whole),
    }


def _bpe(tokens: Sequence[str], merges: Sequence[Sequence[str]], **more: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: number for number, token in enumerate(tokens)},
        "merges": list(merges),
        **more,
    }


def _words(digits: str) -> dict[str, Any]:
    """Return Qwen 2's and Llama 3's pre-tokenizer.

    `digits` limits how many digits follow each other in a piece.
    """
    return _split(_WORDS.replace("{DIGITS}", digits))


def _split(*patterns: str) -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, _INNER_BYTES]}


_DIGITS = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES],
}
_LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
_QWEN2 = ("qwen2", "deepseek-r1-qwen")
# GGUF's name of a way to split words → the same as Hugging Face's pre-tokenizer.
_SPLITS: Mapping[str, Mapping[str, Any]] = {
    "default": _split(*_DEFAULT),
    "gpt-2": _BYTES,
    "smollm": _DIGITS,
    **dict.fromkeys(_QWEN2, _words("")),
    **dict.fromkeys(_LLAMA3, _words("{1,3}")),
}


# --- SentencePiece's vocabularies


def _sentencepiece(metadata: Metadata, tokens: Sequence[str]) -> dict[str, Any]:
    scores = metadata.items("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise InvalidModelFile(f"the tokenizer has {len(tokens)} tokens and {len(scores)} scores")
    _, kinds = _vocabulary(metadata)
    normal = {
        token: score
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
        if kind not in (UNKNOWN, CONTROL, BYTE)
    }
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise InvalidModelFile("metadata 'tokenizer.ggml.scores' is no list of finite numbers")
    if any(score != int(score) for score in normal.values()):
        raise InvalidModelFile(
            "the scores of the tokenizer are those of a Unigram model, which GGUF's tokenizer "
            "'llama' is not: import the model's folder by import-hf"
        )
    unknown = _token(metadata, tokens, "unknown") or 0
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    begin = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    steps = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if prefix else [])]
    model = _bpe(tokens, _merges(normal), byte_fallback=True, fuse_unk=True)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*begin, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {**model, "unk_token": tokens[unknown]},
    }


def _merges(scores: Mapping[str, float]) -> list[list[str]]:
    """Return the merges that give the same tokens as SentencePiece's scores.

    `scores` are those of tokens that texts are made of, in the order of their numbers.

    >>> _merges({"a": 0, "b": 0, "c": 0, "bc": -1, "abc": -2})
    [['b', 'c'], ['a', 'bc']]
    """
    numbers = {token: number for number, token in enumerate(scores)}
    pairs = []
    lengths = {
        len(token) for token in scores if token
    }  # a token of a million letters has few such parts
    for token, score in scores.items():
        for at in lengths & {len(token) - length for length in lengths}:
            left, right = token[:at], token[at:]
            if left in numbers and right in numbers:
                order = (-score, numbers[left], numbers[right])
                pairs.append((order, [left, right]))
    pairs.sort(key=lambda pair: pair[0])
    return [pair for _, pair in pairs]


def _post_processor(
    metadata: Metadata, tokens: Sequence[str], *, byte_level: bool
) -> dict[str, Any] | None:
    """Return the post-processor that adds begin and end tokens, or None."""
    # Llama 3's files do not say so: llama.cpp adds it.
    usual = not byte_level or metadata.get("tokenizer.ggml.pre") in _LLAMA3
    begin = metadata.get("tokenizer.ggml.add_bos_token", usual)
    first, last = (_token(metadata, tokens, name) for name in ("bos", "eos"))
    end = metadata.get("tokenizer.ggml.add_eos_token", False)
    before = [first] if begin and first is not None else []
    after = [last] if end and last is not None else []
    if not before and not after:
        return {**_INNER_BYTES, "trim_offsets": False} if byte_level else None

    def single(letter: str, kind: int) -> list[dict[str, Any]]:
        def special(number: int) -> dict[str, Any]:
            return {"SpecialToken": {"id": tokens[number], "type_id": kind}}

        text = {"Sequence": {"id": letter, "type_id": kind}}
        return [*map(special, before), text, *map(special, after)]

    special_tokens = {
        tokens[number]: {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]}
        for number in {*before, *after}
    }
    return {
        "type": "TemplateProcessing",
        "single": single("A", 0),
        "pair": [*single("A", 0), *single("B", 1)],
        "special_tokens": special_tokens,
    }
