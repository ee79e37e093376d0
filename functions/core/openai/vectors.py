"""Embeddings and ranks: requests and replies of /v1/embeddings and /v1/rerank."""

import sys
from array import array
from base64 import b64encode
from collections.abc import Sequence
from math import exp, sqrt
from typing import Any

from functions.core.errors import shown
from functions.core.language.ports import Tokenizer
from functions.core.language.spec import Kind, LanguageSpec
from functions.core.openai.encoding import check_text
from functions.core.openai.errors import InvalidParameter, context_exceeded
from functions.core.openai.fields import Fields
from functions.core.openai.requests import parse_prompts
from functions.core.protocol.effort import NO_DEADLINE, WRITING, check_deadline, check_room
from functions.core.records import record

INPUTS_MAX = 2048  # OpenAI's limit
DOCUMENTS_MAX = 1000
FORMATS = ("float", "base64")
TOP_MAX = 1 << 31
NUMBER_BYTES = 25  # the longest number of 64 bits in JSON, and a comma

Vector = Sequence[float]


@record
class RankRequest:
    """Texts to sort by their relevance to a query."""

    query: str
    documents: tuple[str, ...]
    top: int
    returns_documents: bool


def require_encoder(spec: LanguageSpec, model: str, *, reranker: bool = False) -> None:
    """Check that a model can embed texts, or rank them if `reranker`.

    An encoder can do both, a reranker only rank.

    Raises:
        InvalidParameter: the model is a decoder, or a reranker that should embed.
    """
    if spec.kind is not Kind.ENCODER:
        raise InvalidParameter(
            "model", f"{shown(model)} is a decoder, which makes no vectors: use /v1/completions"
        )
    if spec.reranker and not reranker:
        raise InvalidParameter(
            "model", f"{shown(model)} is a reranker, which makes no vectors: use /v1/rerank"
        )


def parse_inputs(
    fields: Fields, spec: LanguageSpec, tokenizer: Tokenizer, deadline: float = NO_DEADLINE
) -> list[Sequence[int]]:
    """Return the tokens of each input of an embeddings request.

    Raises:
        InvalidParameter: an input is malformed, empty, or longer than the context.
        MemoryError: there is not enough to encode it.
        TimedOut: the deadline passed.
    """
    inputs: list[Sequence[int]] = []
    entries = parse_prompts(fields, "input", spec, INPUTS_MAX)
    for at, entry in enumerate(entries):
        param = f"input[{at}]" if len(entries) > 1 else "input"
        if entry == "":
            raise InvalidParameter(param, "is empty")
        check_deadline(deadline)
        if isinstance(entry, str):
            check_text(entry, spec, param)
            entry = tokenizer.encode(entry)
        inputs.append(_checked(entry, spec, param))
    return inputs


def parse_form(fields: Fields, spec: LanguageSpec) -> tuple[bool, int]:
    """Return whether vectors are sent in base64, and their number of dimensions.

    Raises:
        InvalidParameter: encoding_format or dimensions has a wrong value.
    """
    form = fields.get("encoding_format")
    if form is not None and form not in FORMATS:
        raise fields.wrong("encoding_format", " or ".join(FORMATS))
    most = spec.dimensions
    return form == "base64", fields.integer("dimensions", most, 1, most)


def embeddings_document(
    model: str, vectors: Sequence[Vector], tokens: int, *, base64: bool, dimensions: int
) -> dict[str, Any]:
    """Return the reply of /v1/embeddings.

    `vectors` are one for each input, of the model's size; those longer than `dimensions` are
    shortened.

    Raises:
        MemoryError: there is not enough to write it.
    """
    check_room(WRITING * NUMBER_BYTES * len(vectors) * dimensions)
    data = []
    for at, vector in enumerate(vectors):
        if dimensions < len(vector):
            vector = shortened(vector, dimensions)
        embedding = to_base64(vector) if base64 else list(vector)
        data.append({"object": "embedding", "index": at, "embedding": embedding})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def shortened(vector: Vector, dimensions: int) -> Vector:
    """Return the first dimensions of a vector, at length 1 again.

    >>> list(shortened([3.0, 4.0, 5.0], 2))
    [0.6, 0.8]
    """
    head = vector[:dimensions]
    length = sqrt(sum(value * value for value in head)) or 1.0
    return [value / length for value in head]


def to_base64(vector: Vector) -> str:
    """Return a vector's floats of 32 bits, little-endian, in base64."""
    values = array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return b64encode(values.tobytes()).decode()


def parse_rank(fields: Fields) -> RankRequest:
    """Parse the body of /v1/rerank, in Jina's or Cohere's form.

    Raises:
        InvalidParameter: a field is wrong.
    """
    query = fields.text("query")
    if not query:
        raise InvalidParameter("query", "missing; send a text")
    values = fields.required("documents")
    if type(values) is not list or not 1 <= len(values) <= DOCUMENTS_MAX:
        raise InvalidParameter("documents", f"must be an array of 1 to {DOCUMENTS_MAX} texts")
    documents = tuple(_document(at, value) for at, value in enumerate(values))
    top = fields.integer("top_n", len(documents), 1, TOP_MAX)
    return RankRequest(query, documents, top, fields.flag("return_documents"))


def rank_tokens(
    request: RankRequest,
    spec: LanguageSpec,
    tokenizer: Tokenizer,
    deadline: float = NO_DEADLINE,
) -> list[Sequence[int]]:
    """Return tokens to run: pairs for a reranker, else documents and query.

    Raises:
        InvalidParameter: a text is longer than the context.
        MemoryError: there is not enough to encode it.
        TimedOut: the deadline passed.
    """
    check_text(request.query, spec, "query")
    # checked before the pairs, each of which would hold it
    query = _checked(tokenizer.encode(request.query), spec, "query")
    inputs: list[Sequence[int]] = []
    for at, text in enumerate(request.documents):
        check_deadline(deadline)
        param = f"documents[{at}]"
        check_text(text, spec, param)
        if spec.reranker:
            tokens = tokenizer.encode_pair(request.query, text)
        else:
            tokens = tokenizer.encode(text)
        inputs.append(_checked(tokens, spec, param))
    return inputs if spec.reranker else [*inputs, query]


def _checked(tokens: Sequence[int], spec: LanguageSpec, param: str) -> Sequence[int]:
    if len(tokens) > spec.context:
        raise context_exceeded(spec.context, len(tokens), 0, param)
    return tokens


def rank_scores(spec: LanguageSpec, vectors: Sequence[Vector]) -> list[float]:
    """Return one score for each document from the model's vectors.

    A reranker's log-odds become probabilities.
    """
    if spec.reranker:
        return [_probability(vector[0]) for vector in vectors]
    *documents, query = vectors
    return [_cosine(document, query) for document in documents]


def rank_document(
    model: str, identity: str, request: RankRequest, scores: Sequence[float], tokens: int
) -> dict[str, Any]:
    """Return the reply of /v1/rerank, the most relevant first."""
    order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
    results: list[dict[str, Any]] = []
    for at in order[: request.top]:
        result: dict[str, Any] = {"index": at, "relevance_score": scores[at]}
        if request.returns_documents:
            result["document"] = {"text": request.documents[at]}
        results.append(result)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    head = {"id": f"rerank-{identity}", "object": "list", "model": model}
    return {**head, "results": results, "usage": usage}


def _document(at: int, value: Any) -> str:
    path = f"documents[{at}]"
    text = Fields(value, path).get("text") if type(value) is dict else value
    if type(text) is not str or not text:
        raise InvalidParameter(path, "must be a text, or an object with text")
    return text


def _cosine(first: Vector, second: Vector) -> float:
    product = sum(a * b for a, b in zip(first, second, strict=True))
    lengths = sqrt(sum(a * a for a in first) * sum(b * b for b in second))
    return product / lengths if lengths else 0.0


def _probability(log_odds: float) -> float:
    if log_odds < 0:  # exp of a large number would overflow
        return exp(log_odds) / (1 + exp(log_odds))
    return 1 / (1 + exp(-log_odds))
