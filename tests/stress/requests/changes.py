"""Changes that make a request hostile, by kind; they are mixed at random.

Each alters one part of a draft and leaves the others, so that two or three of them meet.
"""

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from functions.core.protocol.infer_request import HEADER
from tests.stress.requests.drafts import WORDS, Draft, pack, tensor, value

ODD_NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**40, -(2**63), 0.5, 1e308,
)  # fmt: skip
ODD: tuple[Any, ...] = (
    *ODD_NUMBERS, None, True, False, "", "1", "x" * 5000, [], {}, [[]], [1], {"a": 1}, "\ud800",
    float("nan"), float("inf"), "\0", "ü\u202e\n",
)  # fmt: skip
DATATYPES = ("FP32", "INT64", "BYTES", "BOOL", "FP16", "BF16", "UINT8", "FP64", "INT32", "STRING")
ENCODINGS = ("gzip", "deflate", "x-gzip", "GZIP", "br", "identity", "gzip, gzip", "", "zstd", "\0")
LENGTHS = ("0", "1", "-1", "7", "99999999", "1e3", "0x10", "٣", "", " 12 ", "9" * 5000, "12, 12")
METHODS = (
    "GET",
    "HEAD",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "post",
    "",
    "A B",
    "M" * 900,
)
VERSIONS = (
    "0",
    "1",
    "-1",
    "01",
    "9" * 30,
    "prod",
    "latest",
    "nosuch",
    "..",
    "%2e%2e",
    "ü",
    "a" * 999,
)
TAILS = (
    "", "/", "/ready", "/config", "/stats", "/infer", "/generate", "/generate_stream",
    "/trace/setting", "/nosuch", "//infer", "/infer/..", "/infer%00", "/infer?a=b",
)  # fmt: skip
ROOTS = (
    "/v2", "/v2/", "/v2/models", "/v2/models/stats", "/v2/health/live", "/v2/health/ready", "/",
    "", "/v1/models/scale", "/v3", "/v2/repository", "/v2/systemsharedmemory/status", "/live/v2",
    "/v2/logging", "/v2/models//infer", "/v2/models/%2e%2e/infer", "/v2/v2/v2", "/" * 3000,
)  # fmt: skip
BOMBS = (
    b"[],",
    b"0,",
    b"[0.5],",
    b"[[1],[2]],",
    b'"a",',
    b"{},",
    b"null,",
    b"NaN,",
    b"1e308,",
    b" ",
)


def _tensor(rng: Random, draft: Draft) -> dict[str, Any]:
    """Return one of the inputs to change; a new one if there is none left."""
    if not draft.inputs:
        draft.document = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}
    tensor: dict[str, Any] = rng.choice(draft.inputs)
    return tensor


def sizes(rng: Random, draft: Draft) -> None:
    """Declare another shape than the data have."""
    tensor = _tensor(rng, draft)
    shape = tensor.get("shape")
    match rng.randrange(5):
        case 0:
            tensor["shape"] = rng.choice((*ODD, [2**26], [2**26, 2**26], [0, 2**63], [1] * 70))
        case 1 if isinstance(shape, list):
            tensor["shape"] = [*shape, rng.choice((0, 1, 2))]
        case 2 if isinstance(shape, list) and shape:
            del tensor["shape"][0]
        case _ if isinstance(shape, list) and shape:
            shape[rng.randrange(len(shape))] = rng.choice((*ODD, 2**26, 2**26 + 1, 1000))


def fitted_sizes(rng: Random, draft: Draft) -> None:
    """Declare another shape, with as many values as it takes."""
    spec = rng.choice(draft.signature.inputs or [None])
    if spec is None:
        return
    large = rng.choice((0, 1, 2, 17, 1000, 30_000))
    changed = tensor(rng, spec, {-1: large})
    draft.document["inputs"] = [
        changed if each.get("name") == spec.name else each for each in draft.inputs
    ]


def batch(rng: Random, draft: Draft) -> None:
    """Send many rows: of zeros, or of one hostile value."""
    for spec, each in zip(draft.signature.inputs, draft.inputs, strict=False):
        if not spec.shape or spec.shape[0] != -1:
            continue
        rows, rest = rng.choice((1000, 100_000, 500_000)), 1
        shape = each.get("shape")
        if not isinstance(shape, list) or any(type(size) is not int for size in shape):
            continue
        for size in shape[1:]:
            rest *= size
        if not 0 <= rest * rows <= 1_000_000:
            continue
        each["shape"] = [rows, *shape[1:]]
        each["data"] = [value(rng, spec.datatype)] * (rows * rest)


def datatypes(rng: Random, draft: Draft) -> None:
    _tensor(rng, draft)["datatype"] = rng.choice((*DATATYPES, *ODD, "fp32", "FP32 "))


def values(rng: Random, draft: Draft) -> None:
    """Exchange values for some of other types and ranges."""
    each = _tensor(rng, draft)
    data = each.get("data")
    if not isinstance(data, list) or not data or rng.random() < 0.2:
        each["data"] = rng.choice((*ODD, [[1], 2], [[[[]]]], ["1"], {"0": 1}))
        return
    for _ in range(rng.choice((1, 1, 3))):
        data[rng.randrange(len(data))] = rng.choice((*ODD, *WORDS))


def nesting(rng: Random, draft: Draft) -> None:
    """Nest data rightly, in part, or much too deeply."""
    each = _tensor(rng, draft)
    data = each.get("data")
    if isinstance(data, list) and rng.random() < 0.5:
        width = rng.choice((1, 2, 3))
        each["data"] = [data[at : at + width] for at in range(0, len(data), width)]
        return
    depth = rng.choice((10, 900, 5000, 200_000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"[", b"")))
    inner = opened * depth + b"1" + closed * depth
    name = rng.choice(("data", "shape", "parameters", "id", "unknown"))
    (each if rng.random() < 0.5 else draft.document)[name] = "DEEP"
    draft.text.append(lambda body: body.replace(b'"DEEP"', inner, 1))


def duplicates(rng: Random, draft: Draft) -> None:
    """Send inputs twice, too few, unknown or unnamed ones, or a key twice."""
    inputs = draft.document.get("inputs")
    match rng.randrange(6):
        case 0 if isinstance(inputs, list) and inputs:
            inputs.append(dict(draft.inputs[0]) if draft.inputs else 1)
        case 1 if isinstance(inputs, list) and inputs:
            del inputs[rng.randrange(len(inputs))]
        case 2:
            _tensor(rng, draft)["name"] = rng.choice((*ODD, *WORDS, "nosuch"))
        case 3:
            draft.document["inputs"] = rng.choice((*ODD, [None], [[]], [{}] * 1000))
        case 4:
            each = _tensor(rng, draft)
            each.pop(rng.choice(("name", "datatype", "shape", "data")), None)
        case _:
            key = rng.choice((b'"name"', b'"data"', b'"inputs"', b'"shape"'))
            draft.text.append(lambda body: body.replace(key, key + b": 1, " + key, 1))


def outputs(rng: Random, draft: Draft) -> None:
    """Ask for odd outputs and classes."""
    names = [spec.name for spec in draft.signature.outputs]
    chosen = [{"name": rng.choice((*names, *names, "nosuch"))} for _ in range(rng.choice((1, 2)))]
    for each in chosen:
        parameters = {
            "classification": rng.choice((1, 2, 5, 1000, *ODD)),
            "binary_data": rng.choice((True, False, *ODD)),
            "odd": rng.choice(ODD),
        }
        kept = rng.sample(sorted(parameters), rng.randrange(3))
        each["parameters"] = {name: parameters[name] for name in kept}  # type: ignore[assignment]
    draft.document["outputs"] = rng.choice((chosen, chosen, chosen, rng.choice(ODD), [{}], [None]))


def parameters(rng: Random, draft: Draft) -> None:
    """Set the request's or an input's parameters."""
    target = draft.document if rng.random() < 0.7 else _tensor(rng, draft)
    if rng.random() < 0.2:
        target["parameters"] = rng.choice(ODD)
        return
    names = ("timeout", "binary_data_output", "priority", "sequence_id", "content_type", "a" * 999)
    chosen = {name: rng.choice(ODD) for name in rng.sample(names, 2)}
    if rng.random() < 0.3:
        chosen["content_type"] = rng.choice(("base64", "str", "np", "BASE64"))
    target["parameters"] = chosen


def identity(rng: Random, draft: Draft) -> None:
    draft.document["id"] = rng.choice((*ODD, *WORDS, "x" * 100_000, "a\r\nset-cookie: b=c"))


def binary(rng: Random, draft: Draft) -> None:
    """Send an input as bytes, with a size, a header or lengths that lie, or none."""
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
    """Send nothing but the bytes of an input, as header length 0 announces."""
    draft.headers[HEADER] = "0"
    pieces = [rng.randbytes(rng.choice((0, 1, 3, 4, 12, 4096)))]
    spec = draft.signature.inputs[0] if draft.signature.inputs else None
    if spec and rng.random() < 0.6:
        pieces = [pack(spec, [value(rng, spec.datatype) for _ in range(rng.choice((1, 3, 12)))])]
    draft.packed.append(lambda _: b"".join(pieces))


def text(rng: Random, draft: Draft) -> None:
    """Damage the JSON: bytes, encoding, numbers, length."""
    draft.text.append(partial(_damaged, rng.choice(DAMAGES), rng.random()))


def _damaged(damage: Callable[[bytes, int], bytes], place: float, body: bytes) -> bytes:
    return damage(body, int(place * len(body)))


NUMBERS = (b"1e999", b"-1e999", b"01", b"+1", b"0x1", b"1" * 5000, b"-", b"1_0", b".5", b"-0")
DAMAGES: tuple[Callable[[bytes, int], bytes], ...] = (
    lambda body, at: body[:at],
    *(
        lambda body, at, odd=odd: body[:at] + odd + body[at:]  # type: ignore[misc]
        for odd in (b"\xff", b"\0", b"\xed\xa0\x80", b"\xc0\x80", b'"', b"}", b",")
    ),
    *(
        lambda body, _, mark=mark: mark + body  # type: ignore[misc]
        for mark in (b"\xef\xbb\xbf", b"\xff\xfe", b"\0\0\xfe\xff", b"  ")
    ),
    *(
        lambda body, _, name=name: body.decode("utf-8", "replace").encode(name)  # type: ignore[misc]
        for name in ("utf-16", "utf-32", "utf-7")
    ),
    *(
        lambda body, _, number=number: body.replace(b"[1", b"[" + number, 1)  # type: ignore[misc]
        for number in NUMBERS
    ),
    *(
        lambda body, _, end=end: body + end  # type: ignore[misc]
        for end in (b"}", b"{}", b"\0", b",", b" " * 100_000, b"//a")
    ),
    *(
        lambda body, _, key=key: body.replace(b'"data"', key, 1)  # type: ignore[misc]
        for key in (b'"data\\u0000"', b"data", b"'data'", b'"\\ud800"')
    ),
    lambda body, at: body[:at] + bytes([body[at] ^ 16]) + body[at + 1 :] if body else body,
)


def strings(rng: Random, draft: Draft) -> None:
    """Send very long or very many strings, wherever a string may be."""
    for spec, each in zip(draft.signature.inputs, draft.inputs, strict=False):
        if spec.datatype == "BYTES" and isinstance(each.get("data"), list) and each["data"]:
            word = rng.choice((*WORDS, "a" * 100_000, "\U0010ffff" * 9999, "\0" * 5000))
            each["data"] = [word for _ in each["data"]]
            return
    rng.choice((draft.document, _tensor(rng, draft)))[rng.choice(("x" * 200_000, "", "ü"))] = 1


def compression(rng: Random, draft: Draft) -> None:
    """Compress the body, rightly or not, and announce it, rightly or not."""
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


def headers(rng: Random, draft: Draft) -> None:
    names = {
        HEADER: LENGTHS,
        "Content-Type": ("text/plain", "", "application/json; charset=utf-16", "\0"),
        "Accept-Encoding": ("gzip", "deflate;q=0.1", "*;q=x", "gzip;q=0", ";" * 5000, "br"),
        "X-Model-Version": VERSIONS,
        "x-request-id": ("a\r\nb: c", "x" * 9999),
        "X" * 9000: ("1",),
        "content-length": ("-1", "99999999999"),
        "Expect": ("100-continue",),
    }
    for name in rng.sample(sorted(names), rng.choice((1, 2, 3))):
        draft.headers[name] = rng.choice(names[name])


def paths(rng: Random, draft: Draft) -> None:
    name = rng.choice((draft.model, draft.model, draft.model.upper(), "nosuch", "stats", *WORDS))
    version = f"/versions/{rng.choice(VERSIONS)}" if rng.random() < 0.5 else ""
    path = f"/v2/models/{name}{version}{rng.choice(TAILS)}"
    draft.path = rng.choice((path, path, path, rng.choice(ROOTS)))
    if rng.random() < 0.2:
        draft.path = "".join(f"%{ord(c):02x}" if c.isascii() else c for c in draft.path)
    draft.method = rng.choice(("GET", "POST", "HEAD"))
    if rng.random() < 0.3:
        draft.query = {rng.choice(("version", "", "\0")): rng.choice(VERSIONS)}


def methods(rng: Random, draft: Draft) -> None:
    draft.method = rng.choice(METHODS)


def repository(rng: Random, draft: Draft) -> None:
    """Call the repository with odd bodies; only `switched` is unloaded."""
    name = rng.choice(("switched", "switched", "nosuch", "..", "A" * 999, "%00"))
    action = rng.choice(("load", "unload"))
    draft.method = "POST"
    draft.path = rng.choice(
        ("/v2/repository/index", *[f"/v2/repository/models/{name}/{action}"] * 3)
    )
    bodies: tuple[Any, ...] = (
        {}, {"ready": True}, {"ready": rng.choice(ODD)}, {"parameters": rng.choice(ODD)},
        {"parameters": {"unload_dependents": rng.choice(ODD)}}, {"parameters": {"config": "{}"}},
        {"parameters": {"file:1/model.onnx": "AAAA"}}, {"a" * 5000: 1}, draft.document, [],
    )  # fmt: skip
    draft.document = rng.choice(bodies)
    draft.binary.clear()


def events(rng: Random, draft: Draft) -> None:
    """Send the event in another form: no body, no headers, text, an HTTP API's."""
    draft.event = rng.choice(
        (
            {"body": None}, {"headers": None}, {"body": "", "isBase64Encoded": False},
            {"body": "not base64!"}, {"body": "AA=A"}, {"headers": {}},
            {"body": "\ud800", "isBase64Encoded": False},
            {"body": json.dumps(draft.document), "isBase64Encoded": False},
            {"rawPath": f"/live/v2/models/{draft.model}/infer", "version": "2.0"},
            {"queryStringParameters": {"version": ""}},
        )
    )  # fmt: skip


VALUES_ONLY: tuple[Callable[[Random, Draft], None], ...] = (fitted_sizes, batch, strings)
CHANGES: tuple[Callable[[Random, Draft], None], ...] = (
    sizes, fitted_sizes, batch, datatypes, values, nesting, duplicates, outputs, outputs,
    parameters, identity, binary, binary, raw_body, text, strings, compression, compression,
    headers, paths, methods, repository, events,
)  # fmt: skip


def mix(rng: Random, draft: Draft) -> None:
    """Apply up to three changes, half the time none that a decoder would refuse."""
    pool, count = (VALUES_ONLY, rng.choice((0, 0, 1))) if rng.random() < 0.5 else (CHANGES, 0)
    for change in rng.sample(pool, count or (pool is CHANGES and rng.choice((1, 1, 2, 3)))):
        if not isinstance(draft.document, dict):
            draft.document = {}
        change(rng, draft)
        draft.kinds.append(change.__name__)
    draft.kinds = draft.kinds or ["hostile values"]
