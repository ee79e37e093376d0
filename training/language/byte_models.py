"""Packages of byte-level models, as the recipes gpt and embedder train them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from training.errors import InvalidModelFile
from training.export.graphs import first_line
from training.language.assets import dump

LENGTH = 128  # context of a decoder whose manifest names none: the recipe gpt's default


def read(path: Path, context: int) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return a model of bytes with the assets of a language model.

    Its tokens are the bytes of UTF-8, so each number is its own token. Without a chat template it
    continues texts, or makes vectors.

    Raises:
        InvalidModelFile: it is no ONNX file, or takes no bytes.
    """
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's errors, and those of the system
        raise InvalidModelFile(f"{path} is no readable ONNX file: {first_line(error)}") from error
    names = {value.name for value in model.graph.input}
    if names not in ({"tokens", "past"}, {"text"}):
        raise InvalidModelFile(
            f"{path} takes {', '.join(sorted(names))}; a model of bytes takes `tokens` and `past`, "
            "as the recipe gpt's, or `text`, as embedder's"
        )
    if "past" in names:
        context = min(context, _trained_length(model))
    config = {"vocab_size": 256, "max_position_embeddings": context}
    return model, {
        "tokenizer.json": dump(byte_tokenizer()),
        "tokenizer_config.json": dump({"model_max_length": context}),
        "config.json": dump(config),
    }


def _trained_length(model: onnx.ModelProto) -> int:
    """Return the length of the texts that a decoder was trained with."""
    for entry in model.metadata_props:
        try:
            length = json.loads(entry.value)["hyperparameters"]["length"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(length, int) and length > 0:
            return length
    return LENGTH


def byte_tokenizer() -> dict[str, Any]:
    """Return a tokenizer whose tokens are the 256 bytes."""
    level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", **level},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", **level},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {letter: byte for byte, letter in enumerate(_letters())},
            "merges": [],
        },
    }


def _letters() -> list[str]:
    """Return the letter that stands for each byte in byte-level vocabularies.

    Printable ones of Latin-1 stand for themselves, the others for letters from 256 on.

    >>> letters = _letters()
    >>> letters[65], letters[32], letters[255], len(set(letters))
    ('A', 'Ġ', 'ÿ', 256)
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]
