"""The infer body of the Open Inference Protocol (v2, REST): what a caller sends and what goes back.

A body is JSON, or JSON followed by raw tensors (the binary tensor extension), or, with header length 0, nothing but
the model's one input. Sources: kserve/open-inference-protocol `inference_rest.md`, Triton `docs/protocol/*.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from functions.core.signature import Signature


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output to send back; `classes` > 0 asks for that many "value:index[:label]" instead of the values."""

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What a caller asks of a model; arrays are C-contiguous, of the request's shape and perhaps read-only.

    BYTES is an object array of `bytes`, BF16 a uint16 array of bit patterns, anything else its numpy dtype.
    """

    id: str | None
    inputs: Mapping[str, np.ndarray]  # every declared input, in the model's order
    outputs: tuple[RequestedOutput, ...]  # in the model's order; all of them when the request names none
    timeout_us: int | None
    parameters: Mapping[str, str | int | float | bool]  # whatever else was sent, for the log


@dataclass(frozen=True, slots=True)
class InferReply:
    """A reply body. `header_length` None: JSON; else JSON of this length and then raw tensors (octet-stream)."""

    body: bytes
    header_length: int | None


def decode_infer(body: bytes | memoryview, header_length: str | None, signature: Signature) -> InferRequest:
    """The request in `body`, checked against `signature`.

    `header_length` is the header Inference-Header-Content-Length as sent, None without one.

    Raises:
        InvalidRequest: anything at all is wrong with it.
    """
    raise NotImplementedError


def encode_infer(
    request: InferRequest, outputs: Mapping[str, np.ndarray], signature: Signature, model: str, version: int
) -> InferReply:
    """The reply to `request`: of all `outputs`, those it asks for, spelled as it asks."""
    raise NotImplementedError
