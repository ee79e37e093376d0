"""Requests that would take much memory or time before a model sees them."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from functions.core.openai import encoding, fields, vectors
from functions.core.protocol import effort
from tests.unit.functions.openai.plane import (
    DECODER,
    ENCODER,
    RERANKER,
    ByteTokenizer,
    LanguagePlane,
)

LONG = "x" * (DECODER.context * encoding.TOKEN_CHARACTERS + 1)
GENERATE = "/v2/models/tiny/generate"
TEXTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    ("/v1/completions", {"prompt": ["Hi", LONG]}),
    (GENERATE, {"text_input": LONG}),
    ("/v1/embeddings", {"model": "vectors", "input": ["a", LONG]}),
    ("/v1/rerank", {"model": "rank", "query": LONG, "documents": ["a"]}),
    ("/v1/rerank", {"model": "rank", "query": "a", "documents": ["a", LONG]}),
    ("/v1/rerank", {"model": "vectors", "query": "a", "documents": ["a", LONG]}),
    ("/v1/rerank", {"model": "vectors", "query": LONG, "documents": ["a"]}),
]


@pytest.fixture(autouse=True)
def encoders(plane: LanguagePlane) -> None:
    plane.add("vectors", ENCODER)
    plane.add("rank", RERANKER)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that tokenizers have seen."""
    texts: list[str] = []

    def encode(_: ByteTokenizer, text: str, *, special: bool = True) -> list[int]:
        texts.append(text)
        return list(text.encode())

    monkeypatch.setattr(ByteTokenizer, "encode", encode)
    return texts


@pytest.mark.parametrize(("path", "body"), TEXTS)
def test_a_text_far_beyond_the_context_is_not_tokenized(
    plane: LanguagePlane, encoded: list[str], path: str, body: dict[str, Any]
) -> None:
    reply = plane.send("POST", path, {"model": "tiny", **body})

    assert reply.status == 400
    code = reply.json["code"] if path == GENERATE else reply.error["code"]
    assert code.lower() == "context_length_exceeded"
    context = (DECODER if body.get("model", "tiny") == "tiny" else ENCODER).context
    assert f"{context} tokens" in reply.body.decode()
    assert f"at most {context * encoding.TOKEN_CHARACTERS} characters" in reply.body.decode()
    assert all(len(text) < 99 for text in encoded)


@pytest.mark.parametrize(("path", "body"), TEXTS)
def test_a_text_that_memory_cannot_tokenize_is_413(
    plane: LanguagePlane,
    encoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
) -> None:
    def room(size_bytes: int) -> None:
        if size_bytes > encoding.ENCODING_BYTES * 99:
            raise MemoryError

    monkeypatch.setattr(encoding, "check_room", room)
    monkeypatch.setattr(encoding, "TOKEN_CHARACTERS", 10 * encoding.TOKEN_CHARACTERS)

    assert plane.send("POST", path, {"model": "tiny", **body}).status == 413
    assert all(len(text) < 99 for text in encoded)


def test_pairs_are_checked_one_by_one_and_the_query_first(
    plane: LanguagePlane, encoded: list[str]
) -> None:
    documents = ["a", "x" * 70, "b"]
    body = {"model": "vectors", "query": "q", "documents": documents}
    assert plane.send("POST", "/v1/rerank", body).error["param"] == "documents[1]"
    assert encoded == ["q", *documents[:2]]

    for model in ("vectors", "rank"):
        body = {"model": model, "query": "q" * 65, "documents": ["a"]}
        assert plane.send("POST", "/v1/rerank", body).error["param"] == "query"


def test_prompts_are_checked_one_by_one(plane: LanguagePlane, encoded: list[str]) -> None:
    assert plane.complete(["x" * 300, "b"]).status == 400
    assert encoded == ["x" * 300]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "vectors", "input": "a"}),
        ("/v1/rerank", {"model": "rank", "query": "a", "documents": ["a"]}),
        ("/v1/rerank", {"model": "vectors", "query": "a", "documents": ["a"]}),
    ],
)
def test_texts_are_not_tokenized_after_the_deadline(
    plane: LanguagePlane, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    monkeypatch.setattr(effort, "time", SimpleNamespace(monotonic=lambda: math.inf))

    assert plane.send("POST", path, body).status == 504
    assert not plane.model.embedded


@pytest.mark.parametrize("text", [b"[],", b"{},", b"0,"])
def test_a_body_of_very_many_values_is_413(plane: LanguagePlane, text: bytes) -> None:
    body = b'{"model": "tiny", "prompt": [' + text * 4_200_000 + b"0]}"
    reply = plane.send("POST", "/v1/completions", body)

    assert (reply.status, reply.error["code"]) == (413, "payload_too_large")


def test_a_body_that_memory_cannot_parse_is_413(
    plane: LanguagePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def no_room(size_bytes: int) -> None:
        sizes.append(size_bytes)
        raise MemoryError

    monkeypatch.setattr(fields, "check_room", no_room)
    body = b'{"model": "tiny", "prompt": [[1, 2], {}]}'
    reply = plane.send("POST", "/v1/completions", body)

    assert (reply.status, reply.error["code"]) == (413, "out_of_memory")
    assert sizes == [12 * len(body) + 64 * 3 + 128 * 2 + 128 * 2]


def test_vectors_that_memory_cannot_write_are_413(
    plane: LanguagePlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def no_room(size_bytes: int) -> None:
        sizes.append(size_bytes)
        raise MemoryError

    monkeypatch.setattr(vectors, "check_room", no_room)
    reply = plane.send("POST", "/v1/embeddings", {"model": "vectors", "input": ["a", "b"]})

    assert (reply.status, reply.error["code"]) == (413, "out_of_memory")
    assert sizes == [effort.WRITING * vectors.NUMBER_BYTES * 2 * 4]
