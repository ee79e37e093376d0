"""Encoder of inference replies in the Open Inference Protocol (v2, REST).

A reply is JSON, or JSON followed by raw tensors (the binary tensor extension).
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import orjson

from functions.core.errors import PayloadTooLarge, shown
from functions.core.protocol import tensors
from functions.core.protocol.classification import classify
from functions.core.protocol.effort import SMALL_BYTES, WRITING, check_room
from functions.core.protocol.infer_request import InferRequest
from functions.core.protocol.signature import DATATYPES, Signature
from functions.core.protocol.tensors import Tensor
from functions.core.records import mutable_record

# Bytes of a reply's event, Lambda's limit: JSON counts with its quotes escaped.
REPLY_BYTES_MAX = 6_291_556
BINARY_BYTES_MAX = REPLY_BYTES_MAX // 4 * 3  # a body that travels as base64
CLASSIFIED_BYTES_MAX = 64 * 1024 * 1024  # an output whose top classes are asked for
EXPANDED_BYTES_MAX = 32 * 1024 * 1024  # a reply before compression, where the caller accepts it
PIECE_VALUES = 2**14  # written at a time, because a list takes many times a tensor's memory
SHORT_BYTES = 2**12  # largest tensor and id of a reply made of cached texts
SHORT_REPLY_BYTES = 2**18  # more than such a reply takes
OPENINGS = 256  # cached texts before the values of an output
# Bytes that orjson reserves: for the longest number and a place in a list, for a byte of a string.
NUMBER_BYTES, PLACE_BYTES, ESCAPE_BYTES = 25, 64, 8


@mutable_record
class InferReply:
    """Encoded inference reply: body, and JSON length if raw tensors follow.

    `header_length` is in bytes, None for a body that is JSON as a whole.
    """

    body: bytes
    header_length: int | None


def reply_limit(request: InferRequest, compressed: bool) -> int:
    """Return a reply's largest size in bytes before it is compressed.

    The headers are not counted: whether a reply fits with them is checked once it has them.
    """
    if compressed:
        return EXPANDED_BYTES_MAX
    return BINARY_BYTES_MAX if request.outputs.binary else REPLY_BYTES_MAX


def encode_infer(
    request: InferRequest,
    outputs: Mapping[str, Tensor],
    signature: Signature,
    model: str,
    version: int,
    limit: int = REPLY_BYTES_MAX,
) -> InferReply:
    """Encode a model's requested outputs as JSON, raw tensors or top classes.

    Sizes are checked before anything is encoded: a list takes many times a tensor's memory.

    Raises:
        PayloadTooLarge: the reply would take more than `limit` bytes.
        MemoryError: there is not enough to write it.
    """
    if limit >= SHORT_REPLY_BYTES:
        body = _short_reply(request, outputs, signature, model, version)
        if body is not None:
            return InferReply(body, header_length=None)
    specs = {spec.name: spec for spec in signature.outputs}
    entries: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    size = head_bytes = 0
    for requested in request.outputs:
        spec, tensor = specs[requested.name], outputs[requested.name]
        if tensor.datatype != spec.datatype:
            raise TypeError(f"output {spec.name} is {tensor.datatype}, not {spec.datatype}")
        if requested.classes:
            _check_classified(spec.name, tensor)
            rows = tensor.shape[0] if signature.batches else 1
            count = min(tensor.size, requested.classes * rows)
            if size + count * len("0:0") > limit:
                raise _too_large(limit)
            tensor = classify(spec, tensor, requested.classes, batched=signature.batches)
        size += _least_size(tensor, requested.binary)
        if size > limit:
            raise _too_large(limit)
        entry: dict[str, Any] = {
            "name": spec.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if requested.binary:
            chunks.append(tensors.to_bytes(tensor))
            entry["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            entry["data"], base64, text_bytes = _json_values(tensor)
            head_bytes += text_bytes
            if base64:
                entry["parameters"] = {"content_type": "base64"}
        entries.append(entry)
    head = body = _head(request, entries, model, version, head_bytes)
    if chunks:
        body = b"".join([head, *chunks])
    if len(body) > limit:
        raise _too_large(limit)
    return InferReply(body, header_length=len(head) if len(body) > len(head) else None)


def _short_reply(
    request: InferRequest,
    outputs: Mapping[str, Tensor],
    signature: Signature,
    model: str,
    version: int,
) -> bytes | None:
    """Encode a reply of one short JSON list between cached texts.

    Return None if the reply is another one.
    """
    if len(signature.outputs) != 1 or len(request.id or "") > SHORT_BYTES:
        return None
    [spec], [requested] = signature.outputs, request.outputs
    tensor = outputs[spec.name]
    if requested.binary or requested.classes or tensor.datatype != spec.datatype:
        return None
    if tensor.datatype == "BYTES" or len(tensor.data) > SHORT_BYTES:
        return None
    values, _ = tensors.to_json(tensor)
    opening = _opening(model, version, spec.name, spec.datatype, tensor.shape)
    closing = b"" if request.id is None else b',"id":' + orjson.dumps(request.id)
    return b"".join((opening, orjson.dumps(values), b"}]", closing, b"}"))


@lru_cache(maxsize=OPENINGS)
def _opening(model: str, version: int, name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """Return a reply's JSON before the values of its only output."""
    entry = {"name": name, "datatype": datatype, "shape": shape, "data": None}
    document = {"model_name": model, "model_version": str(version), "outputs": [entry]}
    return orjson.dumps(document).removesuffix(b"null}]}")


def _json_values(tensor: Tensor) -> tuple[Any, bool, int]:
    """Convert a tensor to JSON values; serialise a long one in pieces.

    The last result is the number of bytes that orjson reserves to write it.
    """
    item_bytes = DATATYPES[tensor.datatype]
    if item_bytes is None:
        values, base64 = tensors.to_json(tensor)
        size = ESCAPE_BYTES * sum(map(len, tensor.data)) + PLACE_BYTES * tensor.size
        if size < SMALL_BYTES:
            return values, base64, size
        # Slower than orjson, and safe where memory ends.
        text = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
        return orjson.Fragment(text), base64, len(text)
    if tensor.size <= PIECE_VALUES:
        return (*tensors.to_json(tensor), tensor.size * (NUMBER_BYTES + PLACE_BYTES))
    text = b"[" + b",".join(_pieces(tensor, PIECE_VALUES * item_bytes)) + b"]"
    return orjson.Fragment(text), False, len(text)


def _pieces(tensor: Tensor, piece_bytes: int) -> Iterator[bytes]:
    """Yield a numeric tensor's JSON text in chunks, without brackets."""
    for at in range(0, len(tensor.data), piece_bytes):
        check_room(WRITING * PIECE_VALUES * (NUMBER_BYTES + PLACE_BYTES))
        piece = Tensor(tensor.datatype, (-1,), tensor.data[at : at + piece_bytes])
        yield orjson.dumps(tensors.to_json(piece)[0])[1:-1]


def _head(
    request: InferRequest, entries: list[dict[str, Any]], model: str, version: int, text_bytes: int
) -> bytes:
    document: dict[str, Any] = {
        "model_name": model,
        "model_version": str(version),
        "outputs": entries,
    }
    if request.id is not None:
        document["id"] = request.id
        text_bytes += ESCAPE_BYTES * len(request.id)
    if text_bytes > SMALL_BYTES // WRITING:
        check_room(WRITING * text_bytes)
    return orjson.dumps(document)


def _least_size(tensor: Tensor, binary: bool) -> int:
    """Return a lower bound of a tensor's encoded size, in bytes."""
    if tensor.datatype == "BYTES":
        return sum(map(len, tensor.data)) + tensor.size * (4 if binary else 3)
    if binary:
        return len(tensor.data)
    return tensor.size * (4 if tensor.datatype in tensors.FLOATS else 2)  # "0.0," or "0,"


def _check_classified(name: str, tensor: Tensor) -> None:
    """Refuse an output tensor too large for the classification extension."""
    if len(tensor.data) > CLASSIFIED_BYTES_MAX:
        raise PayloadTooLarge(
            f"output {shown(name)} has {len(tensor.data)} bytes and classification reads at most "
            f"{CLASSIFIED_BYTES_MAX}: send fewer rows"
        )


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the reply takes more than {limit} bytes: "
        "send fewer rows, ask for fewer outputs, for binary data, or for gzip (Accept-Encoding)"
    )
