"""Tests that request bodies costly to decode are refused or stopped."""

import json
import time
from typing import Any

import pytest

from functions.core.errors import InvalidRequest, PayloadTooLarge, PlatformError, TimedOut
from functions.core.protocol import effort, tensors
from functions.core.protocol.effort import CONTAINERS_MAX, VALUES_MAX
from functions.core.protocol.fast_decoder import FastDecoder, read_list
from functions.core.protocol.infer_request import decode_infer
from functions.core.protocol.signature import Signature, TensorSpec

X = Signature((TensorSpec("x", "FP32", (-1, -1)),), ())
TEXT = Signature((TensorSpec("x", "BYTES", (-1,)),), ())


def body(shape: list[int], data: bytes, datatype: str = "FP32") -> bytes:
    entry = json.dumps({"name": "x", "datatype": datatype, "shape": shape, "data": 0}).encode()
    return b'{"inputs":[' + entry[:-2] + b"[" + data + b"]}]}"


def many(piece: bytes, count: int) -> bytes:
    return (piece * count)[:-1]


def refusal(signature: Signature, *request: Any) -> PlatformError:
    """Decode a request with both decoders; return their identical error."""
    errors = []
    for decode in (FastDecoder(signature).decode, lambda *a: decode_infer(*a, signature)):
        with pytest.raises(PlatformError) as error:
            decode(*request)
        errors.append(error.value)
    assert (type(errors[0]), str(errors[0])) == (type(errors[1]), str(errors[1]))
    return errors[0]


@pytest.mark.parametrize(
    ("shape", "piece", "count", "words"),
    [
        ([20_000_000, 0], b"[],", 20_000_000, "20000005 lists and objects"),
        ([1, 1], b"[],", CONTAINERS_MAX, f"{CONTAINERS_MAX + 5} lists and objects"),
        ([3_000_000, 1], b"[1],", 3_000_000, "3000005 lists and objects"),
        ([1, 1], b"[", 60_000_000, "60000004 lists and objects"),
        ([1, 1], b"{},", 3_000_000, "3000005 lists and objects"),
        ([1, 5_000_000], b"NaN,", 5_000_000, "5000003 values"),
        ([1, 1], b'"a",', VALUES_MAX, f"{VALUES_MAX + 3} values"),
    ],
    ids=["empty", "wrong shape", "rows", "depth", "objects", "constants", "strings"],
)
def test_more_json_than_a_process_has_memory_for_is_413(
    shape: list[int], piece: bytes, count: int, words: str
) -> None:
    error = refusal(X, body(shape, many(piece, count)), None)

    assert isinstance(error, PayloadTooLarge)
    assert words in str(error)
    assert "binary data" in str(error)


def test_what_an_uncompressed_body_can_hold_is_decoded() -> None:
    """Check that the longest list in a 4.5 MB event is decoded."""
    rows = many(b"[1],", 1_100_000)
    flat = many(b"1,", 2_200_000)

    for shape, data in (([1_100_000, 1], rows), ([1, 2_200_000], flat)):
        for decode in (FastDecoder(X).decode, lambda *a: decode_infer(*a, X)):
            assert decode(body(shape, data), None).inputs["x"].size == shape[0] * shape[1]


def test_a_long_flat_list_of_numbers_is_decoded_in_pieces() -> None:
    count = 2 * VALUES_MAX

    request = FastDecoder(X).decode(body([1, count], many(b"1,", count)), None)

    assert request.inputs["x"].size == count


def test_nested_lists_are_counted_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"[" + many(b"[1, 2],", 20_000) + b"]"
    spec = X.inputs[0]
    assert read_list(spec, (20_000, 2), text, 0, len(text)) is not None

    def parse(_: object) -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr("functions.core.protocol.fast_decoder.orjson.loads", parse)
    assert read_list(spec, (10, 2), text, 0, len(text)) is None


@pytest.mark.parametrize("kind", ["pieces", "general", "binary", "raw"])
def test_decoding_stops_at_the_deadline(kind: str) -> None:
    over, ahead = time.monotonic() - 1, time.monotonic() + 3600
    signature, header = X, None
    if kind == "pieces":
        content = body([1, 20_000], many(b"1,", 20_000))
    elif kind == "general":
        content = body([1, 2], b"1, NaN")
    else:
        strings = b"\1\0\0\0a" * 100_000
        entry = {"name": "x", "datatype": "BYTES", "shape": [100_000]}
        head = json.dumps(
            {"inputs": [{**entry, "parameters": {"binary_data_size": len(strings)}}]}
        ).encode()
        signature, header, content = TEXT, str(len(head)), head + strings
    if kind == "raw":
        spec = TEXT.inputs[0]
        tensors.from_bytes(spec, (100_000,), memoryview(strings), ahead)
        with pytest.raises(TimedOut):
            tensors.from_bytes(spec, (100_000,), memoryview(strings), over)
        return

    for decode in (FastDecoder(signature).decode, lambda b, h, d: decode_infer(b, h, signature, d)):
        assert decode(content, header, ahead).inputs["x"].size > 1
        with pytest.raises(TimedOut, match="the time was over before the body was read"):
            decode(content, header, over)


def test_a_list_longer_than_its_shape_is_not_read_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = b"[" + many(b"1,", 1_000_000) + b"]"
    looks = []
    monkeypatch.setattr("functions.core.protocol.fast_decoder.check_deadline", looks.append)

    assert read_list(X.inputs[0], (1, 10_000), text, 0, len(text)) is None

    assert len(looks) <= 2


def test_a_short_body_is_never_counted() -> None:
    assert len(body([1, 2], b"1,2")) < effort.SMALL_BYTES
    with pytest.raises(InvalidRequest, match="data holds 2 values"):
        decode_infer(body([1, 3], b"1,2"), None, X)
