"""Replies of /v1/embeddings and /v1/rerank."""

import base64
import struct
from typing import Any

import pytest

from tests.unit.functions.openai.plane import ENCODER, RERANKER, LanguagePlane, Reply


@pytest.fixture(autouse=True)
def encoders(plane: LanguagePlane) -> None:
    plane.add("rank", RERANKER)
    plane.add("vectors", ENCODER)


def embed(plane: LanguagePlane, texts: Any, **fields: Any) -> Reply:
    return plane.send("POST", "/v1/embeddings", {"model": "vectors", "input": texts, **fields})


def rerank(plane: LanguagePlane, **fields: Any) -> Reply:
    body = {"model": "rank", "query": "q", "documents": ["aa", "abc", "ab"], **fields}
    return plane.send("POST", "/v1/rerank", body)


def test_vectors_come_in_the_order_of_the_texts(plane: LanguagePlane) -> None:
    assert embed(plane, ["a", "abc"]).json == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [3.0, 4.0, 0.0, 1.0]},
            {"object": "embedding", "index": 1, "embedding": [3.0, 4.0, 0.0, 3.0]},
        ],
        "model": "vectors:1",
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }


@pytest.mark.parametrize("texts", ["ab", ["ab"], [97, 98], [[97, 98]]])
def test_inputs_are_texts_or_tokens(plane: LanguagePlane, texts: Any) -> None:
    assert len(embed(plane, texts).json["data"]) == 1
    assert plane.model.embedded == [[97, 98]]


def test_base64_holds_floats_of_32_bits(plane: LanguagePlane) -> None:
    [entry] = embed(plane, "a", encoding_format="base64").json["data"]

    assert struct.unpack("<4f", base64.b64decode(entry["embedding"])) == (3.0, 4.0, 0.0, 1.0)


def test_fewer_dimensions_have_length_one_again(plane: LanguagePlane) -> None:
    [entry] = embed(plane, "a", dimensions=2).json["data"]
    assert entry["embedding"] == [0.6, 0.8]

    reply = embed(plane, "a", dimensions=5)
    assert (reply.status, reply.error["param"]) == (400, "dimensions")


@pytest.mark.parametrize(
    ("texts", "fields", "param"),
    [
        (None, {}, "input"),
        ("", {}, "input"),
        (["a", ""], {}, "input[1]"),
        ([], {}, "input"),
        (["a"] * 2049, {}, "input"),
        ([258], {}, "input"),
        (["a", "x" * 65], {}, "input[1]"),
        ("a", {"encoding_format": "int8"}, "encoding_format"),
        ("a", {"encoding_format": ""}, "encoding_format"),
        ("a", {"model": "tiny"}, "model"),
        ("a", {"model": "rank"}, "model"),
    ],
)
def test_wrong_inputs_are_refused(
    plane: LanguagePlane, texts: Any, fields: Any, param: str
) -> None:
    reply = embed(plane, texts, **fields)

    assert (reply.status, reply.error["param"]) == (400, param)


def test_a_text_beyond_the_context_is_refused_with_both_numbers(plane: LanguagePlane) -> None:
    error = embed(plane, "x" * 65).error

    assert error["code"] == "context_length_exceeded"
    assert "64 tokens" in error["message"]
    assert "65 tokens" in error["message"]


def test_encoders_write_no_text(plane: LanguagePlane) -> None:
    for reply in (plane.complete(model="vectors"), plane.chat(model="vectors")):
        assert (reply.status, reply.error["param"]) == (400, "model")
        assert "/v1/embeddings" in reply.error["message"]


def test_a_reranker_sorts_by_its_scores_of_pairs(plane: LanguagePlane) -> None:
    document = rerank(plane, top_n=2, return_documents=True).json

    scores = [result.pop("relevance_score") for result in document["results"]]
    assert scores == pytest.approx([0.9933, 0.9820], abs=1e-4)  # of log-odds 5 and 4
    assert document == {
        "id": "rerank-the-request",
        "object": "list",
        "model": "rank:1",
        "results": [
            {"index": 1, "document": {"text": "abc"}},
            {"index": 2, "document": {"text": "ab"}},
        ],
        "usage": {"prompt_tokens": 13, "total_tokens": 13},
    }


def test_an_encoder_sorts_by_cosines(plane: LanguagePlane) -> None:
    results = rerank(plane, model="vectors", documents=[{"text": "aaaa"}, "a"]).json["results"]

    assert [result["index"] for result in results] == [1, 0]
    assert results[0]["relevance_score"] == pytest.approx(1.0)
    assert "document" not in results[0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a", {}]}, "documents[1]"),
        ({"documents": ["a", "x" * 70]}, "documents[1]"),
        ({"documents": ["a"] * 1001}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"model": "tiny"}, "model"),
    ],
)
def test_wrong_ranks_are_refused(plane: LanguagePlane, fields: Any, param: str) -> None:
    reply = rerank(plane, **fields)

    assert (reply.status, reply.error["param"]) == (400, param)


def test_tokens_of_vectors_are_counted(plane: LanguagePlane) -> None:
    embed(plane, ["ab", "c"])
    line = plane.lines[-1]

    assert (line["action"], line["PromptTokens"]) == ("embed", 3)
    [row] = [counters for key, counters in plane.meter.unwritten() if key.model == "vectors"] or [
        next(item for item in plane.table.items.values() if item["pk"] == "USAGE#vectors")
    ]
    assert (row["tokens_in"] if isinstance(row, dict) else row.tokens_in) == 3
