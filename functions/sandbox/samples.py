"""Sample requests of a model: read from its manifest, resized and stored."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from functions.core.errors import InvalidModel, InvalidRequest, shown
from functions.core.protocol import tensors
from functions.core.protocol.infer_request import decode_infer
from functions.core.protocol.signature import DYNAMIC, Signature, TensorSpec
from functions.core.protocol.tensors import Tensor
from functions.sandbox.comparison import Tensors

STORED_BYTES = 64 * 1024  # largest sample in the serving bucket, as JSON
COMPARED_SAMPLES = 4  # most samples whose answers under different plans are compared
SMALL_ROWS_BYTES = 64 * 1024  # samples up to this size are also compared with repeated rows
GENERATED, FIRST_ROW = "the generated request", "its first row"
_CHARACTERS = 2  # fewest characters of an element in JSON: a digit and a comma


@dataclass(frozen=True, slots=True)
class Sample:
    """Sample request with expected outputs; a synthetic sample has none."""

    inputs: Tensors
    expected: Tensors
    origin: Mapping[str, Any] | None = None  # the manifest's entry; None if synthetic

    @property
    def synthetic(self) -> bool:
        return self.origin is None


def read_samples(origins: Sequence[Mapping[str, Any]], signature: Signature) -> list[Sample]:
    """Parse sample requests from a manifest, checked against the model's signature.

    Raises:
        InvalidModel: `BAD_SAMPLE`, and what to change.
    """
    return [_read(f"sample {at}", origin, signature) for at, origin in enumerate(origins)]


def _read(label: str, origin: Mapping[str, Any], signature: Signature) -> Sample:
    inputs = _read_request(label, origin, signature)
    response = origin.get("response")
    entries = response.get("outputs") if isinstance(response, Mapping) else None
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise _bad(f"{label} needs a response with at least one of the model's outputs")
    declared = {spec.name: spec for spec in signature.outputs}
    expected: dict[str, Tensor] = {}
    for entry in entries:
        name, tensor = _read_output(label, entry, declared)
        if name in expected:
            raise _bad(f"{label}: its response has the output {shown(name)} twice")
        expected[name] = tensor
    return Sample(inputs, expected, origin)


def _read_request(label: str, origin: Mapping[str, Any], signature: Signature) -> Tensors:
    try:
        request = decode_infer(json.dumps(origin["request"]).encode(), None, signature)
    except InvalidRequest as error:
        raise _bad(f"{label}: its request: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise _bad(f"{label} needs a request, an object as a client would send it") from error
    if any(output.classes for output in request.outputs):
        raise _bad(f"{label}: its request asks for classes, which prove little; ask for values")
    return request.inputs


def _read_output(
    label: str, entry: object, declared: Mapping[str, TensorSpec]
) -> tuple[str, Tensor]:
    """Parse one output of a sample's response into (name, tensor)."""
    name = entry.get("name") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(name, str) or name not in declared:
        names = shown(", ".join(declared))
        raise _bad(f"{label}: its response has the output {shown(name)}, and the model has {names}")
    datatype = declared[name].datatype
    if entry.get("datatype") != datatype:
        stated = shown(entry.get("datatype"))
        raise _bad(f"{label}: its output {shown(name)} is {stated}, the model's is {datatype}")
    try:
        return name, _read_tensor(name, datatype, entry)
    except InvalidRequest as error:
        message = str(error).replace("input", "output", 1)
        raise _bad(f"{label}: its response: {message}") from error


def _read_tensor(name: str, datatype: str, entry: Mapping[str, Any]) -> Tensor:
    """Parse a sample's output tensor from JSON, whatever its shape.

    A shape that differs from the declared one is a mismatch, reported later.
    """
    shape = entry.get("shape")
    rank = len(shape) if isinstance(shape, list) else 0
    spec = TensorSpec(name, datatype, (DYNAMIC,) * rank)
    parameters = entry.get("parameters", {})
    base64 = isinstance(parameters, Mapping) and parameters.get("content_type") == "base64"
    checked_shape = tensors.read_shape(spec, shape)
    return tensors.from_json(spec, checked_shape, entry.get("data"), base64=base64)


def _bad(message: str) -> InvalidModel:
    return InvalidModel(message, code="BAD_SAMPLE")


# --- rows


def has_rows(inputs: Tensors, signature: Signature) -> bool:
    """Return True if a request's inputs are a batch of several rows."""
    return signature.batches and any(tensor.shape[0] > 1 for tensor in inputs.values())


def rows(inputs: Tensors, count: int) -> dict[str, Tensor] | None:
    """Resize a request to `count` rows by repetition; None without rows."""
    if any(not tensor.shape or not tensor.shape[0] for tensor in inputs.values()) or not inputs:
        return None
    return {name: _resized(tensor, count) for name, tensor in inputs.items()}


def _resized(tensor: Tensor, count: int) -> Tensor:
    rows_present = tensor.shape[0]
    row = len(tensor.data) // rows_present  # bytes or, for BYTES, elements
    data = (tensor.data * math.ceil(count / rows_present))[: count * row]
    return Tensor(tensor.datatype, (count, *tensor.shape[1:]), data)


def size_bytes(inputs: Tensors) -> int:
    """Return the total size of a request's tensors in bytes."""
    return sum(
        sum(map(len, tensor.data)) if tensor.datatype == "BYTES" else len(tensor.data)
        for tensor in inputs.values()
    )


def compared_requests(
    samples: Sequence[Sample], sample: Sample | None, signature: Signature, *, is_large: bool
) -> dict[str, Tensors]:
    """Return named test requests that all load plans must answer equally.

    Those are the samples, or the generated `sample`, and, where rows are a batch, the rows of the
    first one repeated to three and to eight. A large model, whose runs take long, gets two rows: an
    answer that depends on the number of rows differs for two as well.
    """
    if sample is None:
        return {}
    firsts = enumerate(samples[:COMPARED_SAMPLES])
    requests = {f"sample {at}": first.inputs for at, first in firsts}
    requests = requests or {GENERATED: sample.inputs}
    if signature.batches and size_bytes(sample.inputs) < SMALL_ROWS_BYTES:
        for count in (2,) if is_large else (3, 8):
            batch = rows(sample.inputs, count)
            if batch is not None:
                requests[f"{count} rows of it"] = batch
    first_row = _first_row_to_store(sample, signature)
    if first_row is not None:
        requests[FIRST_ROW] = first_row.inputs
    return requests


# --- storing


def to_document(sample: Sample, outputs: Tensors, signature: Signature) -> dict[str, Any] | None:
    """Convert a sample and its outputs to a JSON request and response.

    For storage, documentation and warm-up; returns None if it is too large.
    """
    if sample.origin is not None:
        request, response = sample.origin["request"], sample.origin["response"]
    else:
        elements = sum(tensor.size for tensor in (*sample.inputs.values(), *outputs.values()))
        if elements * _CHARACTERS > STORED_BYTES:
            return None
        request = {"inputs": _to_json(sample.inputs, signature.inputs)}
        response = {"outputs": _to_json(outputs, signature.outputs)}
    document = {"request": request, "response": response, "synthetic": sample.synthetic}
    try:
        fits = len(json.dumps(document, allow_nan=False)) <= STORED_BYTES
    except ValueError:  # a bare NaN, which no JSON parser but Python's accepts
        return None
    return document if fits else None


def _first_row_to_store(sample: Sample, signature: Signature) -> Sample | None:
    """Return the first row of a sample request too large to store."""
    if not has_rows(sample.inputs, signature):
        return None
    if sample.origin is not None and to_document(sample, {}, signature) is not None:
        return None
    row = rows(sample.inputs, 1)
    return Sample(row, {}) if row else None


def _to_json(values: Tensors, specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    entries = []
    for spec in specs:
        tensor = values[spec.name]
        data, base64 = tensors.to_json(tensor)
        entry: dict[str, Any] = {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": list(tensor.shape),
            "data": data,
        }
        if base64:
            entry["parameters"] = {"content_type": "base64"}
        entries.append(entry)
    return entries
