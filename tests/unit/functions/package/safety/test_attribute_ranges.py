"""Tests of the safe ranges of ONNX node attributes."""

from pathlib import Path
from typing import Any

import pytest

from functions.core.errors import InvalidModel
from functions.core.package.onnx_reader import read_onnx
from tests.hostile.cases import (
    FLOAT,
    INT64,
    message,
    model,
    node,
    number,
    raw_model,
    raw_node,
    raw_value,
    value,
    varint,
)

ML, MICROSOFT = "ai.onnx.ml", "com.microsoft"
TFIDF = {
    "mode": "TF", "min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 5,
    "ngram_counts": [0, 4], "ngram_indexes": [0, 1, 2, 3, 4, 5, 6],
    "pool_int64s": [2, 3, 5, 4, 5, 6, 7, 8, 6, 7],
}  # fmt: skip
HEADS = {"num_heads": 4, "kv_num_heads": 2, "domain": MICROSOFT}


def made(operator: str, **attributes: Any) -> bytes:
    return model(
        [node(operator, "x z", "y", **attributes)],
        [value("x", FLOAT, None), value("z", INT64, None)],
        [value("y", FLOAT, None)],
        opsets={ML: 3, MICROSOFT: 1},
    )


def read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    read_onnx(path)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("GatherND", {"batch_dims": 1}),
        ("FeatureVectorizer", {"inputdimensions": [2, 1], "domain": ML}),
        ("TfIdfVectorizer", TFIDF),
        ("TfIdfVectorizer", {**TFIDF, "pool_int64s": [], "pool_strings": ["a"] * 10}),
        ("TfIdfVectorizer", {**TFIDF, "ngram_counts": [0, 0], "ngram_indexes": [0] * 5}),
        ("GroupQueryAttention", HEADS),
    ],
)
def test_attributes_of_models_in_use_are_read(
    tmp_path: Path, operator: str, attributes: dict[str, Any]
) -> None:
    attributes = {key: content for key, content in attributes.items() if content != []}
    read(tmp_path, made(operator, **attributes))


@pytest.mark.parametrize(
    ("operator", "name", "content", "base"),
    [
        ("GatherND", "batch_dims", 2**63 - 1, {}),
        ("GatherND", "batch_dims", -2, {}),
        ("FeatureVectorizer", "inputdimensions", [2, -1], {"domain": ML}),
        ("FeatureVectorizer", "inputdimensions", [2**62, 2], {"domain": ML}),
        ("TfIdfVectorizer", "ngram_indexes", [0, 1, 2, 3, 4, 5], TFIDF),
        ("TfIdfVectorizer", "max_skip_count", 2**31, TFIDF),
        ("GroupQueryAttention", "num_heads", 2**62, HEADS),
        ("GroupQueryAttention", "kv_num_heads", 2**32, HEADS),
        ("MultiHeadAttention", "num_heads", -1, {"domain": MICROSOFT}),
        ("Attention", "q_num_heads", 2**32, {"kv_num_heads": 1}),
    ],
)
def test_an_attribute_that_ends_the_process_is_refused(
    tmp_path: Path, operator: str, name: str, content: Any, base: dict[str, Any]
) -> None:
    with pytest.raises(InvalidModel, match=name) as caught:
        read(tmp_path, made(operator, **{**base, name: content}))
    assert caught.value.instance_code == "UNSAFE_OPERATOR"
    assert operator in str(caught.value)
    assert "node 'y'" in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_packed_numbers_of_an_attribute_are_checked(tmp_path: Path) -> None:
    sizes = message(8, varint(2), varint(-1))
    attribute = message(5, message(1, b"inputdimensions"), sizes, number(20, 7))
    content = raw_model(
        raw_node(b"FeatureVectorizer", [b"x"], [b"y"], attribute, message(7, ML.encode())),
        message(11, raw_value(b"x")),
        message(12, raw_value(b"y")),
    )

    with pytest.raises(InvalidModel, match="inputdimensions of .* has -1"):
        read(tmp_path, content)
