"""Draft of an inference request: tensors of a model's signature with hostile values."""

import base64
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from functions.core.protocol.infer_request import HEADER
from functions.core.protocol.signature import DYNAMIC, Signature, TensorSpec
from functions.core.protocol.tensors import STRUCT_CODES, round_to_bf16

BODY_BYTES_MAX = 4_500_000  # above it, API Gateway answers
ELEMENTS_MAX = 4096  # of a tensor, before it is changed
WORDS = (
    "", "a", "grün", "\0", "1e99", "nan", "-0", "0x10", " ", "\u202e", "\ud800", "a" * 3000,
    "ﷺ" * 50, "🜚" * 9, "true", "2147483648", "\n\t\r", "%s%n{0}", "(a+)+b", "AAECAw==",
)  # fmt: skip
ODD_NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 3, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**40, -(2**63), 0.5, 1e308,
)  # fmt: skip
ODD: tuple[Any, ...] = (
    *ODD_NUMBERS, None, True, False, "", "1", "x" * 5000, [], {}, [[]], [1], {"a": 1}, "\ud800",
    float("nan"), float("inf"), "\0", "ü\u202e\n",
)  # fmt: skip
# Values of the header that gives the length of the JSON.
LENGTHS = ("0", "1", "-1", "7", "99999999", "1e3", "0x10", "٣", "", " 12 ", "9" * 5000, "12, 12")
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, 7.5, math.nan, math.inf, -math.inf)
EXTREMES = {
    "FP16": (65504.0, -65504.0, 6e-8),
    "BF16": (3e38, -3e38, 1e-40),
    "FP32": (3e38, -3e38, 1e-45, 1e30),
    "FP64": (1.7e308, -1.7e308, 5e-324, 1e300),
}
INTEGERS = (0, 1, 2, 3, -1, -2, 4, 7, 16, 127, 128, 255, 2**16, 2**20, 2**29, 2**31, 2**40, 2**62)


@dataclass
class Draft:
    """Mutable inference request: document, binary tensors, headers and path.

    `text` and `packed` change the JSON and the whole body after they are encoded.
    """

    model: str
    signature: Signature
    document: Any
    method: str = "POST"
    path: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    binary: list[bytes] = field(default_factory=list)
    text: list[Callable[[bytes], bytes]] = field(default_factory=list)
    packed: list[Callable[[bytes], bytes]] = field(default_factory=list)
    event: dict[str, Any] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)  # names of the changes

    @property
    def inputs(self) -> list[Any]:
        """Inputs of the JSON document that are still objects."""
        inputs = self.document.get("inputs") if isinstance(self.document, dict) else None
        listed = inputs if isinstance(inputs, list) else []
        return [tensor for tensor in listed if isinstance(tensor, dict)]

    def body(self) -> bytes:
        """Return the request body: JSON document and binary tensors."""
        body = json.dumps(self.document).encode()
        for change in self.text:
            body = change(body)
        if self.binary:
            self.headers.setdefault(HEADER, str(len(body)))
        body += b"".join(self.binary)
        for change in self.packed:
            body = change(body)
        return body

    def to_event(self) -> dict[str, Any]:
        """Return API Gateway's event of this request."""
        body = self.body()
        if len(body) > BODY_BYTES_MAX:  # what the gateway lets through
            body = body[:BODY_BYTES_MAX]
        return {
            "httpMethod": self.method,
            "path": self.path or f"/v2/models/{self.model}/infer",
            "headers": self.headers,
            "queryStringParameters": self.query or None,
            "body": base64.b64encode(body).decode(),
            "isBase64Encoded": True,
            "requestContext": {"requestId": "hostile"},
            **self.event,
        }


def draft(rng: Random, model: str, signature: Signature) -> Draft:
    """Return a well-formed request with hostile values."""
    sizes = {DYNAMIC: rng.choice((0, 1, 1, 2, 2, 3, 3, 5))}
    inputs = [tensor(rng, spec, sizes) for spec in signature.inputs]
    return Draft(model, signature, {"inputs": inputs})


def tensor(rng: Random, spec: TensorSpec, sizes: dict[int, int]) -> dict[str, Any]:
    """Return a random input tensor whose dynamic sizes are often equal."""
    shape = [size if size != DYNAMIC else dynamic(rng, sizes) for size in spec.shape]
    while math.prod(shape) > ELEMENTS_MAX:
        shape = [size // 2 if spec.shape[at] == DYNAMIC else size for at, size in enumerate(shape)]
        if all(size != DYNAMIC for size in spec.shape):
            break
    count = math.prod(shape)
    pool = [value(rng, spec.datatype) for _ in range(rng.choice((1, 2, 4)))]
    data = [rng.choice(pool) for _ in range(count)]
    return {"name": spec.name, "datatype": spec.datatype, "shape": shape, "data": data}


def dynamic(rng: Random, sizes: dict[int, int]) -> int:
    return sizes[DYNAMIC] if rng.random() < 0.6 else rng.choice((0, 1, 2, 3, 4, 8, 33))


def value(rng: Random, datatype: str) -> Any:
    """Return a hostile value within the range of `datatype`."""
    if datatype == "BOOL":
        return rng.random() < 0.5
    if datatype == "BYTES":
        return rng.choice(WORDS)
    if datatype in EXTREMES:
        return rng.choice((*FLOATS, *EXTREMES[datatype]))
    bits = int(datatype.lstrip("UINT"))
    low, high = (
        (0, 2**bits - 1) if datatype[0] == "U" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    if rng.random() < 0.25:
        return rng.choice((low, low + 1, high, high - 1))
    return min(max(rng.choice(INTEGERS), low), high)


def pack(spec: TensorSpec, values: list[Any]) -> bytes:
    """Encode values of one datatype as binary tensor data."""
    if spec.datatype == "BYTES":
        encoded = [value.encode("utf-8", "surrogatepass") for value in values]
        return b"".join(struct.pack("<I", len(part)) + part for part in encoded)
    code = STRUCT_CODES[spec.datatype]
    packed = struct.pack(f"<{len(values)}{code}", *values)
    return round_to_bf16(packed)[0] if spec.datatype == "BF16" else packed
