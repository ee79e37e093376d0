"""Changes to the bytes of a request: binary tensors, damaged JSON, compression."""

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from functions.core.protocol.infer_request import HEADER
from tests.stress.requests.drafts import LENGTHS, ODD, Draft, pack, value

ENCODINGS = ("gzip", "deflate", "x-gzip", "GZIP", "br", "identity", "gzip, gzip", "", "zstd", "\0")
BOMBS = (
    b"[],", b"0,", b"[0.5],", b"[[1],[2]],", b'"a",', b"{},", b"null,", b"NaN,", b"1e308,", b" ",
)  # fmt: skip
NUMBERS = (b"1e999", b"-1e999", b"01", b"+1", b"0x1", b"1" * 5000, b"-", b"1_0", b".5", b"-0")
DAMAGES: tuple[Callable[[bytes, int], bytes], ...] = (
    lambda body, at: body[:at],
    *(
        lambda body, at, odd=odd: body[:at] + odd + body[at:]
        for odd in (b"\xff", b"\0", b"\xed\xa0\x80", b"\xc0\x80", b'"', b"}", b",")
    ),
    *(
        lambda body, _, mark=mark: mark + body
        for mark in (b"\xef\xbb\xbf", b"\xff\xfe", b"\0\0\xfe\xff", b"  ")
    ),
    *(
        lambda body, _, name=name: body.decode("utf-8", "replace").encode(name)
        for name in ("utf-16", "utf-32", "utf-7")
    ),
    *(lambda body, _, number=number: body.replace(b"[1", b"[" + number, 1) for number in NUMBERS),
    *(
        lambda body, _, end=end: body + end
        for end in (b"}", b"{}", b"\0", b",", b" " * 100_000, b"//a")
    ),
    *(
        lambda body, _, key=key: body.replace(b'"data"', key, 1)
        for key in (b'"data\\u0000"', b"data", b"'data'", b'"\\ud800"')
    ),
    lambda body, at: body[:at] + bytes([body[at] ^ 16]) + body[at + 1 :] if body else body,
)


def binary(rng: Random, draft: Draft) -> None:
    """Send a binary input with missing or wrong sizes and lengths."""
    specs = {spec.name: spec for spec in draft.signature.inputs}
    for each in draft.inputs:
        spec = specs.get(each.get("name")) if isinstance(each.get("name"), str) else None
        if spec is None or rng.random() < 0.3:
            continue
        try:
            raw = pack(spec, each["data"])
        except (KeyError, TypeError, ValueError, AttributeError, struct.error, OverflowError):
            raw = rng.randbytes(16)
        each.pop("data", None)
        if spec.datatype == "BYTES" and rng.random() < 0.5:
            raw = _lie_about_lengths(rng, raw)
        size = len(raw) if rng.random() < 0.6 else rng.choice((*ODD, len(raw) + 1, len(raw) - 1))
        each["parameters"] = {"binary_data_size": size}
        draft.binary.append(raw)
    if rng.random() < 0.25:
        draft.headers[HEADER] = rng.choice(LENGTHS)


def _lie_about_lengths(rng: Random, raw: bytes) -> bytes:
    length = rng.choice((2**32 - 1, 2**31, len(raw), 2**31 - 1, 0))
    match rng.randrange(3):
        case 0:
            return struct.pack("<I", length) + raw[4:]
        case 1:
            return raw + struct.pack("<I", length)
    return raw[: rng.randrange(len(raw) + 1)] + b"\xff\xfe"


def raw_body(rng: Random, draft: Draft) -> None:
    """Send a raw binary body, announced by header length 0."""
    draft.headers[HEADER] = "0"
    pieces = [rng.randbytes(rng.choice((0, 1, 3, 4, 12, 4096)))]
    spec = draft.signature.inputs[0] if draft.signature.inputs else None
    if spec and rng.random() < 0.6:
        pieces = [pack(spec, [value(rng, spec.datatype) for _ in range(rng.choice((1, 3, 12)))])]
    draft.packed.append(lambda _: b"".join(pieces))


def text(rng: Random, draft: Draft) -> None:
    """Damage the body's JSON: bytes, encoding, numbers, length."""
    draft.text.append(partial(_damaged, rng.choice(DAMAGES), rng.random()))


def _damaged(damage: Callable[[bytes, int], bytes], place: float, body: bytes) -> bytes:
    return damage(body, int(place * len(body)))


def compression(rng: Random, draft: Draft) -> None:
    """Compress the body, sometimes damaged or with a wrong Content-Encoding."""
    draft.headers["content-encoding"] = rng.choice(("gzip", "gzip", "deflate", *ENCODINGS))
    piece, count = rng.choice(BOMBS), rng.choice((1000, 1_000_000, 20_000_000))
    cut = rng.random()

    def bomb(_: bytes) -> bytes:
        head = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [%d], "data": [' % count
        plain = head + piece * min(count, 60_000_000 // len(piece)) + b"1]}]}"
        return gzip.compress(plain, 6)

    changes: Sequence[Callable[[bytes], bytes]] = (
        lambda body: gzip.compress(body, 1),
        lambda body: zlib.compress(body, 1),
        lambda body: gzip.compress(body, 1)[: int(cut * 40)],
        lambda body: gzip.compress(body, 1)[:-4] + b"abcd",
        lambda body: gzip.compress(body, 1) + b"rest",
        lambda body: gzip.compress(b"", 1) * 300 + gzip.compress(body, 1),
        lambda _: gzip.compress(bytes(70_000_000), 9),
        lambda body: body,
        bomb,
        bomb,
    )
    draft.packed.append(rng.choice(changes))
