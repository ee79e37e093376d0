"""Predictions as requests and replies of the Open Inference Protocol, in binary."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from mayfly.client.errors import InvalidInput, ServerError
from mayfly.client.http1 import compression
from mayfly.client.http1.messages import Reply, Request
from mayfly.client.prediction import Prediction, RawOutput
from mayfly.client.tensors import codec
from mayfly.client.tensors.signature import Signature

LENGTH = "inference-header-content-length"
REPLY_BYTES = 32_768  # a last reply from this size on is worth compressing


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one prediction.

    `outputs` limits the reply; `classes` asks for the N highest values of an output, as
    "value:index:label". `user` keeps a caller on the same side of a canary.
    """

    outputs: Sequence[str] = ()
    classes: Mapping[str, int] = field(default_factory=dict)
    timeout: float | None = None
    user: str = ""
    compress: bool = False
    accept_gzip: bool = False


def model_path(model: str, reference: str | int | None) -> str:
    """Return the path of a model, or of its version or alias.

    >>> model_path("digits", 8)
    '/v2/models/digits/versions/8'
    """
    path = f"/v2/models/{quote(model, safe='')}"
    return path if reference is None else f"{path}/versions/{quote(str(reference), safe='')}"


def build(
    signature: Signature, reference: str | int | None, inputs: Any, options: Options
) -> Request:
    """Return the request of a prediction.

    Raises:
        InvalidInput: inputs or options do not fit the signature.
    """
    tensors, contents = [], []
    for spec, value in signature.arrange(inputs):
        shape, content = codec.encode(spec, value)
        parameters = {"binary_data_size": len(content)}
        tensors.append({
            "name": spec.name, "datatype": spec.datatype, "shape": shape, "parameters": parameters,
        })  # fmt: skip
        contents.append(content)
    document: dict[str, Any] = {"inputs": tensors, "parameters": {"binary_data_output": True}}
    if outputs := _outputs(signature, options):
        document["outputs"] = outputs
    if options.timeout is not None:
        document["parameters"]["timeout"] = int(options.timeout * 1e6)
    head = json.dumps(document, separators=(",", ":")).encode()
    body = b"".join([head, *contents])
    headers = {"content-type": "application/octet-stream", LENGTH: str(len(head))}
    if options.compress and compression.worthwhile(body):
        body, headers["content-encoding"] = compression.deflate(body), "gzip"
    headers |= _headers(options)
    path = model_path(signature.model, reference) + "/infer"
    return Request("POST", path, headers, body, timeout=options.timeout)


def read(model: str, reply: Reply) -> Prediction:
    """Return the prediction of a reply.

    Raises:
        ServerError: the reply is not in the protocol's binary form.
    """
    try:
        length = int(reply.headers.get(LENGTH) or len(reply.body))
        document = json.loads(reply.body[:length])
        version = reply.headers.get("x-model-version") or document["model_version"]
        outputs = _read_outputs(document["outputs"], memoryview(reply.body)[length:])
        return Prediction(model, int(version), outputs, reply.headers)
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"the reply is no prediction in binary ({error!r}): does a proxy change it?",
            status=reply.status,
            request_id=reply.headers.get("x-request-id", ""),
        ) from error


def _read_outputs(rows: Sequence[Mapping[str, Any]], rest: memoryview) -> list[RawOutput]:
    outputs, offset = [], 0
    for row in rows:
        size = int(row["parameters"]["binary_data_size"])
        content = rest[offset : offset + size]
        offset += size
        outputs.append(RawOutput(row["name"], row["datatype"], tuple(row["shape"]), content))
    if offset != len(rest):
        raise ValueError(f"{len(rest)} bytes of outputs where {offset} are declared")
    return outputs


def _headers(options: Options) -> dict[str, str]:
    headers = {}
    if options.accept_gzip:
        headers["accept-encoding"] = "gzip"
    if options.user:
        headers["x-mayfly-user"] = options.user
    return headers


def _outputs(signature: Signature, options: Options) -> list[dict[str, Any]]:
    names = list(dict.fromkeys([*options.outputs, *options.classes]))
    declared = [spec.name for spec in signature.outputs]
    for name in names:
        if name not in declared:
            raise InvalidInput(
                f"unknown output {name!r}: {signature.model} has {', '.join(declared)}"
            )
    return [_output(name, options.classes.get(name)) for name in names]


def _output(name: str, classes: int | None) -> dict[str, Any]:
    parameters: dict[str, Any] = {"binary_data": True}
    if classes is not None:
        parameters["classification"] = classes
    return {"name": name, "parameters": parameters}
