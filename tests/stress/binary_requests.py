"""Client that sends numpy arrays as binary inference requests."""

import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from functions.core.registry.version import Version
from tests.platform import Platform

Array = np.ndarray[Any, Any]


class RequestFailed(Exception):
    """Error: an inference request returned a status other than 200."""


def infer(platform: Platform, version: Version, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Send a binary inference request; return the outputs by name.

    Raises:
        RequestFailed: the status is not 200.
    """
    assert version.signature is not None
    tensors, blobs = [], []
    for spec in version.signature.inputs:
        array = np.asarray(inputs[spec.name])
        blob = _encode(array, spec.datatype)
        blobs.append(blob)
        tensor = {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape)}
        tensors.append(tensor | {"parameters": {"binary_data_size": len(blob)}})
    header = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    reply = platform.client.post(
        f"/v2/models/demo/versions/{version.number}/infer",
        header + b"".join(blobs),
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    if reply.status != 200:
        raise RequestFailed(f"{reply.status} {reply.body.decode()}")
    size = int(reply.headers.get("inference-header-content-length", len(reply.body)))
    outputs, offset = {}, size
    for output in json.loads(reply.body[:size])["outputs"]:
        length = output.get("parameters", {}).get("binary_data_size", 0)
        outputs[output["name"]] = _decode(reply.body[offset : offset + length], output)
        offset += length
    return outputs


def _encode(array: Array, datatype: str) -> bytes:
    if datatype != "BYTES":
        return array.tobytes()
    elements = [str(element).encode() for element in array.ravel()]
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def _decode(raw: bytes, output: Mapping[str, Any]) -> Array:
    shape, datatype = output["shape"], output["datatype"]
    if datatype != "BYTES":
        return np.frombuffer(raw, _dtype(datatype)).reshape(shape)
    elements, offset = [], 0
    while offset < len(raw):
        size = int.from_bytes(raw[offset : offset + 4], "little")
        elements.append(raw[offset + 4 : offset + 4 + size].decode())
        offset += 4 + size
    return np.array(elements, dtype=object).reshape(shape)


def _dtype(datatype: str) -> Any:
    """Return the numpy dtype of a protocol datatype, e.g. float32 for FP32."""
    if datatype == "BOOL":
        return np.bool_
    if datatype == "BF16":
        return ml_dtypes.bfloat16
    kind = {"FP": "f", "IN": "i", "UI": "u"}[datatype[:2]]
    return np.dtype(f"{kind}{int(datatype.lstrip('FPINTU')) // 8}")
