"""Compressed request and response bodies, their limits and negotiation."""

import contextlib
import gzip
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.http import InferResult

from functions.core.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding
from functions.core.serving.compression import compress, inflate

LIMIT = 1_000_000
BODY = b'{"inputs": []}' * 20


def raw_deflate(body: bytes) -> bytes:
    return zlib.compress(body, wbits=-15)


@pytest.mark.parametrize(
    ("encoding", "sent"),
    [
        (None, BODY),
        ("", BODY),
        ("identity", BODY),
        ("gzip", gzip.compress(BODY)),
        (" GZIP ", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("deflate", zlib.compress(BODY)),
        ("deflate", zlib.compress(BODY, 9)),
        ("deflate", raw_deflate(BODY)),
        ("gzip", BODY),  # API Gateway may decompress and leave the header
        ("deflate", BODY),
        ("gzip", b"\xef\xbb\xbf \n" + BODY),
        ("gzip", b""),
        ("deflate", b""),
        ("gzip", gzip.compress(BODY[:9]) + gzip.compress(b"") + gzip.compress(BODY[9:])),
    ],
)
def test_a_body_is_decompressed(encoding: str | None, sent: bytes) -> None:
    assert inflate(sent, encoding, LIMIT).lstrip(b"\xef\xbb\xbf \n") == (BODY if sent else b"")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, deflate", "compress", "*", "\n\0" * 500])
def test_an_unknown_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(UnsupportedEncoding, match="is not offered: send gzip, deflate or none"):
        inflate(BODY, encoding, LIMIT)


@pytest.mark.parametrize(
    ("encoding", "sent", "says"),
    [
        ("gzip", gzip.compress(BODY)[:-3], "ends too early"),
        ("gzip", gzip.compress(BODY)[:5], "ends too early"),
        ("gzip", gzip.compress(BODY)[:-8] + b"\0" * 8, "gzip data is damaged and cannot be read"),
        ("gzip", gzip.compress(BODY) + b"abc", "has 3 bytes after its gzip data"),
        ("gzip", gzip.compress(BODY) + gzip.compress(BODY)[:-1], "gzip data ends too early"),
        ("gzip", gzip.compress(b"a") * 257, "gzip data has more than 256 members"),
        ("gzip", b"garbage", "header Content-Encoding is gzip and the body is not gzip: compress"),
        ("x-gzip", b"\x1f", "header Content-Encoding is x-gzip and the body is not x-gzip"),
        ("gzip", zlib.compress(BODY), "header Content-Encoding is gzip and the body is not gzip"),
        ("deflate", b"garbage", "header Content-Encoding is deflate and the body is not deflate"),
        ("deflate", gzip.compress(BODY), "Content-Encoding is deflate and the body is not deflate"),
        ("deflate", zlib.compress(BODY)[:-3], "ends too early"),
        ("deflate", zlib.compress(BODY)[:-4] + b"\0" * 4, "deflate data is damaged"),
        ("deflate", zlib.compress(BODY) + b"abc", "has 3 bytes after its deflate data"),
    ],
)
def test_a_damaged_body_is_refused(encoding: str, sent: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        inflate(sent, encoding, LIMIT)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [(None, bytes), ("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
)
def test_the_limit_is_exact(encoding: str | None, pack) -> None:
    assert len(inflate(pack(bytes(LIMIT)), encoding, LIMIT)) == LIMIT
    with pytest.raises(PayloadTooLarge, match="holds more than 1000000 bytes"):
        inflate(pack(bytes(LIMIT + 1)), encoding, LIMIT)


def test_the_limit_counts_all_members_of_a_gzip_body() -> None:
    halves = gzip.compress(bytes(LIMIT // 2)) * 2

    assert len(inflate(halves, "gzip", LIMIT)) == LIMIT
    with pytest.raises(PayloadTooLarge, match="holds more than 1000000 bytes"):
        inflate(halves + gzip.compress(b"a"), "gzip", LIMIT)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
)
def test_a_decompression_bomb_is_stopped_at_the_limit(encoding: str, pack) -> None:
    bomb = pack(bytes(100_000_000))
    tracemalloc.start()
    with pytest.raises(PayloadTooLarge):
        inflate(bomb, encoding, LIMIT)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 4 * LIMIT


@settings(max_examples=200, deadline=None)
@given(
    st.binary(),
    st.sampled_from(["gzip", "deflate"]),
    st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\0", b"\x78\x9c"]),
)
def test_any_bytes_are_decompressed_or_refused(body: bytes, encoding: str, magic: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert len(inflate(magic + body, encoding, 100)) <= 100


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        (None, None),
        ("", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZip", "gzip"),
        ("gzip, deflate, br", "gzip"),
        ("deflate, gzip", "gzip"),
        ("gzip;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip ; q = 0.5 , deflate", "deflate"),
        ("gzip;q=0", None),
        ("gzip;q=0, *", "deflate"),
        ("*", "gzip"),
        ("*;q=0", None),
        ("identity", None),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0.5, gzip", "gzip"),
        ("gzip;q=high, deflate;q=0.1", "deflate"),
        ("gzip;q=nan", None),
        ("br, zstd", None),
        (";;,,q=1", None),
    ],
)
def test_the_accept_encoding_header_chooses_the_encoding(
    accepted: str | None, chosen: str | None
) -> None:
    sent, encoding = compress(BODY, accepted)

    assert encoding == chosen
    assert inflate(sent, encoding, LIMIT) == BODY


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compression_of_a_long_body_ends_at_the_limit(encoding: str) -> None:
    noise = random.Random(0).randbytes(8_000_000)  # noqa: S311 (no secret)
    zeros = bytes(8_000_000)

    packed, _ = compress(noise, encoding, LIMIT)
    assert LIMIT < len(packed) < 3 * LIMIT  # not all of it

    packed, chosen = compress(zeros, encoding, LIMIT)
    assert len(packed) < LIMIT
    assert inflate(packed, chosen, len(zeros)) == zeros


def test_a_body_that_would_grow_is_not_compressed() -> None:
    assert compress(b"{}", "gzip") == (b"{}", None)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_tritonclient_reads_compressed_replies(encoding: str) -> None:
    reply = (
        b'{"model_name":"m","outputs":[{"name":"y","datatype":"INT8","shape":[99],"data":['
        + b"1," * 98
        + b"1]}]}"
    )
    sent, chosen = compress(reply, encoding)

    assert chosen == encoding
    assert (
        InferResult.from_response_body(sent, content_encoding=encoding).as_numpy("y").tolist()
        == [1] * 99
    )
