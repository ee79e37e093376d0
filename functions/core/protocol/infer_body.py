"""The infer body of the Open Inference Protocol (v2, REST): what a caller sends and what goes back.

A body is JSON, or JSON followed by raw tensors (the binary tensor extension), or, with header length 0, nothing but
the model's one input. Sources: kserve/open-inference-protocol `inference_rest.md`, Triton `docs/protocol/*.md`.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from functions.core.errors import InvalidRequest, PayloadTooLarge, shown
from functions.core.protocol import tensors
from functions.core.protocol.classification import CLASSES_LIMIT, classify, is_classifiable
from functions.core.protocol.signature import DYNAMIC, Signature, TensorSpec
from functions.core.protocol.tensors import Tensor, described, refused

HEADER = "Inference-Header-Content-Length"
REPLY_LIMIT = 4_650_000  # bytes: 3/4 of Lambda's 6 MiB, because replies travel as base64, less 64 KiB for headers
TIMEOUT_LIMIT_US = 2**63

Parameters = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """One output to send back; `classes` > 0 asks for that many "value:index[:label]" instead of the values."""

    name: str
    binary: bool
    classes: int


@dataclass(slots=True)
class InferRequest:
    """What a caller asks of a model."""

    id: str | None
    inputs: Mapping[str, Tensor]  # every declared input, in the model's order
    outputs: tuple[
        RequestedOutput, ...
    ]  # in the model's order; all of them when the request names none
    timeout_us: int | None
    parameters: Mapping[str, str | int | float | bool]  # whatever else was sent, for the log


@dataclass(slots=True)
class InferReply:
    """A reply body. `header_length` None: JSON; else JSON of this length and then raw tensors (octet-stream)."""

    body: bytes
    header_length: int | None


# --- requests ---------------------------------------------------------------------------------------------------------


def decode_infer(
    body: bytes | memoryview, header_length: str | None, signature: Signature
) -> InferRequest:
    """The request in `body`, checked against `signature`.

    `header_length` is the header Inference-Header-Content-Length as sent, None without one.

    Raises:
        InvalidRequest: anything at all is wrong with it.
    """
    view = memoryview(body)
    length = json_length(header_length, len(view))
    if length == 0:
        return _raw_request(view, signature)
    document = parse_document(view[:length])
    inputs = _inputs(document, None if length is None else view[length:], signature.inputs)
    return make_request(document, inputs, signature)


def make_request(
    document: Mapping[str, Any], inputs: Mapping[str, Tensor], signature: Signature
) -> InferRequest:
    """`inputs`, and what else `document` says."""
    parameters = _parameters(document, "the request")
    everything_binary = _flag(parameters, "binary_data_output", "the request")
    return InferRequest(
        id=_id(document),
        inputs=inputs,
        outputs=_outputs(document, signature.outputs, everything_binary),
        timeout_us=_timeout_us(parameters),
        parameters={
            name: value
            for name, value in parameters.items()
            if name not in ("binary_data_output", "timeout")
        },
    )


def json_length(header: str | None, size: int) -> int | None:
    if header is None:
        return None
    digits = header.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 15):
        raise InvalidRequest(
            f"header {HEADER} must be the length of the JSON part in bytes, not {shown(header)}"
        )
    length = int(digits)
    if length > size:
        raise InvalidRequest(f"header {HEADER} is {length}, the body has only {size} bytes")
    return length


def parse_document(text: memoryview) -> dict[str, Any]:
    hint = f"; when tensors follow the JSON as bytes, the header {HEADER} must hold the length of the JSON"
    try:
        document = _DECODER.decode(str(text, "utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"the body is not JSON in UTF-8, from byte {error.start} on{hint}"
        ) from None
    except RecursionError:
        raise InvalidRequest("the body is JSON that is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"the body is not JSON: {error.msg} at character {error.pos}{hint}"
        ) from None
    except ValueError:  # Python's bound on the digits of an integer
        raise InvalidRequest("the body is JSON with a number of too many digits") from None
    if type(document) is not dict:
        raise InvalidRequest(f"the body must be a JSON object, not {described(document)}")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidRequest(f"the body is JSON with the key {shown(twice)} twice in one object")
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=tensors.Constant)


def _id(document: Mapping[str, Any]) -> str | None:
    if "id" not in document:
        return None
    value = document["id"]
    if type(value) is not str:
        raise InvalidRequest(f"id must be a string, not {described(value)}")
    _no_surrogates(value, "id")
    return value


def _no_surrogates(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{what} holds a lone surrogate, which is no text") from None


def _parameters(owner: Mapping[str, Any], what: str) -> Parameters:
    """The `parameters` of a request, an input or an output."""
    parameters = owner.get("parameters", {})
    if type(parameters) is not dict:
        raise InvalidRequest(f"{what}: parameters must be an object, not {described(parameters)}")
    for name, value in parameters.items():
        if type(value) not in (str, int, float, bool) or (
            type(value) is float and not math.isfinite(value)
        ):
            raise InvalidRequest(
                f"{what}: parameter {shown(name)} must be a string, a number or a boolean, not {described(value)}"
            )
        if name.startswith("triton_"):
            raise InvalidRequest(
                f"{what}: parameter {shown(name)} is reserved, choose a name without triton_"
            )
        _no_surrogates(name, f"{what}: a parameter name")
        if type(value) is str:
            _no_surrogates(value, f"{what}: parameter {shown(name)}")
    if "shared_memory_region" in parameters:
        raise InvalidRequest(
            f"{what}: shared memory is not offered, send and ask for data or binary data"
        )
    return parameters


def _flag(parameters: Parameters, name: str, what: str) -> bool:
    value = parameters.get(name, False)
    if type(value) is not bool:
        raise InvalidRequest(
            f"{what}: parameter {name} must be true or false, not {described(value)}"
        )
    return value


def _timeout_us(parameters: Parameters) -> int | None:
    value = parameters.get("timeout")
    if value is not None and (type(value) is not int or not 0 <= value < TIMEOUT_LIMIT_US):
        raise InvalidRequest(
            f"parameter timeout must be microseconds, a non-negative integer, not {described(value)}"
        )
    return value


# --- inputs -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Location:
    """Where the values of one input lie: in the bytes after the JSON, or, without an `end`, in the JSON."""

    spec: TensorSpec
    shape: tuple[int, ...]
    base64: bool = False
    start: int = 0
    end: int | None = None

    def read(self, entry: Mapping[str, Any], binary: memoryview | None) -> Tensor:
        """The tensor of the input. `binary` is what follows the JSON."""
        if self.end is None or binary is None:
            return tensors.from_json(self.spec, self.shape, entry["data"], base64=self.base64)
        return tensors.from_bytes(self.spec, self.shape, binary[self.start : self.end])


def _inputs(
    document: Mapping[str, Any], binary: memoryview | None, specs: Sequence[TensorSpec]
) -> dict[str, Tensor]:
    """All declared inputs, in the model's order. `binary` is what follows the JSON, None without the header."""
    declared = {spec.name: spec for spec in specs}
    found: dict[str, Tensor] = {}
    size = None if binary is None else len(binary)
    at = 0
    for spec, entry in named_entries(document, "input", declared):
        place = locate(spec, entry, at, size)
        found[spec.name] = place.read(entry, binary)
        at = place.end or at
    check_all_given(declared, found, size, at)
    return {name: found[name] for name in declared}


def check_all_given(
    declared: Collection[str], given: Collection[str], size: int | None, at: int
) -> None:
    missing = [name for name in declared if name not in given]
    if missing:
        raise InvalidRequest(
            f"missing input {shown(missing[0])}: the model takes {_listed(declared)}"
        )
    if size is not None and at < size:
        raise InvalidRequest(f"the body has {size - at} bytes after the last tensor")


def named_entries(
    document: Mapping[str, Any], kind: str, declared: Mapping[str, TensorSpec]
) -> list[tuple[TensorSpec, Mapping[str, Any]]]:
    """The entries of the document's inputs or outputs, each beside what the model declares under its name."""
    entries = document.get(f"{kind}s", [])
    if type(entries) is not list:
        raise InvalidRequest(f"{kind}s must be a list, not {described(entries)}")
    named: dict[str, tuple[TensorSpec, Mapping[str, Any]]] = {}
    for at, entry in enumerate(entries):
        if type(entry) is not dict:
            raise InvalidRequest(f"{kind}s[{at}] must be an object, not {described(entry)}")
        name = entry.get("name")
        if type(name) is not str:
            raise InvalidRequest(f"{kind}s[{at}]: name must be a string, not {described(name)}")
        if name not in declared:
            raise InvalidRequest(f"unknown {kind} {shown(name)}: the model has {_listed(declared)}")
        if name in named:
            raise InvalidRequest(f"{kind} {shown(name)} is given twice")
        named[name] = declared[name], entry
    return list(named.values())


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(shown, names)) or "none"


def locate(spec: TensorSpec, entry: Mapping[str, Any], at: int, behind: int | None) -> Location:
    """Where one input lies, if not in the JSON then at `at` of the `behind` bytes after it."""
    datatype = entry.get("datatype")
    if datatype != spec.datatype:
        raise refused(spec, f"datatype is {described(datatype)}, the model takes '{spec.datatype}'")
    shape = tensors.read_shape(spec, entry.get("shape"))
    parameters = _parameters(entry, f"input {shown(spec.name)}")
    if "binary_data_size" not in parameters:
        if "data" not in entry:
            raise refused(spec, "send either data or the parameter binary_data_size")
        return Location(
            spec, shape, spec.datatype == "BYTES" and parameters.get("content_type") == "base64"
        )
    size = parameters["binary_data_size"]
    if "data" in entry:
        raise refused(spec, "send either data or the parameter binary_data_size, not both")
    if type(size) is not int or size < 0:
        raise refused(
            spec, f"binary_data_size must be a non-negative integer, not {described(size)}"
        )
    if behind is None:
        raise refused(
            spec,
            f"binary_data_size needs the header {HEADER}, the length of the JSON part of the body",
        )
    expected = tensors.byte_size(spec, shape)
    if expected not in (None, size):
        raise refused(
            spec,
            f"binary_data_size is {shown(size)}, shape {list(shape)} of {spec.datatype} takes {expected}",
        )
    if size > behind - at:
        raise refused(
            spec, f"binary_data_size is {shown(size)}, the body has only {behind - at} bytes left"
        )
    return Location(spec, shape, start=at, end=at + size)


def _raw_request(raw: memoryview, signature: Signature) -> InferRequest:
    """A body that is the model's one input and nothing else: one batch row, every output wanted as bytes."""
    if len(signature.inputs) != 1:
        raise InvalidRequest(
            f"header {HEADER} is 0, which takes a model with one input: the model takes "
            f"{_listed([spec.name for spec in signature.inputs])}"
        )
    [spec] = signature.inputs
    shape = _raw_shape(spec, len(raw), signature.batches)
    if spec.datatype == "BYTES":
        tensor = Tensor(spec.datatype, shape, [bytes(raw)])
    else:
        tensor = tensors.from_bytes(spec, shape, raw)
    outputs = tuple(
        RequestedOutput(output.name, binary=True, classes=0) for output in signature.outputs
    )
    return InferRequest(
        id=None, inputs={spec.name: tensor}, outputs=outputs, timeout_us=None, parameters={}
    )


def _raw_shape(spec: TensorSpec, size: int, batches: bool) -> tuple[int, ...]:
    """The shape that `size` bytes of raw input stand for: batch 1, and one more dimension may follow from the size.

    Raises:
        InvalidRequest: the shape does not follow from the size.
    """
    shape = [1, *spec.shape[1:]] if batches else list(spec.shape)
    if spec.datatype == "BYTES":
        if any(want not in (DYNAMIC, 1) for want in shape):
            raise refused(
                spec, f"header {HEADER} is 0, which takes a BYTES input of one element, not {shape}"
            )
        return (1,) * len(shape)
    variable = [at for at, want in enumerate(shape) if want == DYNAMIC]
    if len(variable) > 1:
        raise refused(
            spec, f"header {HEADER} is 0, which takes at most one variable dimension, not {shape}"
        )
    for at in variable:
        shape[at] = 1
        shape[at] = size // max(tensors.byte_size(spec, tuple(shape)) or 0, 1)
    return tensors.read_shape(spec, shape)


# --- requests like earlier ones ---------------------------------------------------------------------------------------


# --- requested outputs ------------------------------------------------------------------------------------------------


def _outputs(
    document: Mapping[str, Any], specs: Sequence[TensorSpec], everything_binary: bool
) -> tuple[RequestedOutput, ...]:
    """The outputs to send, in the model's order. `everything_binary` counts only where none is named, as in Triton."""
    declared = {spec.name: spec for spec in specs}
    named = {
        spec.name: _requested(spec, entry)
        for spec, entry in named_entries(document, "output", declared)
    }
    if not named:
        return tuple(RequestedOutput(name, everything_binary, classes=0) for name in declared)
    return tuple(named[name] for name in declared if name in named)


def _requested(spec: TensorSpec, entry: Mapping[str, Any]) -> RequestedOutput:
    what = f"output {shown(spec.name)}"
    parameters = _parameters(entry, what)
    classes = parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes <= CLASSES_LIMIT:
        raise InvalidRequest(
            f"{what}: classification must be an integer from 0 to {CLASSES_LIMIT}, not {described(classes)}"
        )
    if classes and not is_classifiable(spec):
        raise InvalidRequest(
            f"{what}: classification takes an output of numbers, this one is {spec.datatype}"
        )
    return RequestedOutput(spec.name, _flag(parameters, "binary_data", what), classes)


# --- replies ----------------------------------------------------------------------------------------------------------


def encode_infer(
    request: InferRequest,
    outputs: Mapping[str, Tensor],
    signature: Signature,
    model: str,
    version: int,
    limit: int = REPLY_LIMIT,
) -> InferReply:
    """The reply to `request`: of all `outputs`, those it asks for, spelled as it asks.

    Raises:
        PayloadTooLarge: it would take more than `limit` bytes.
    """
    specs = {spec.name: spec for spec in signature.outputs}
    entries: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    size = 0
    for wanted in request.outputs:
        spec, tensor = specs[wanted.name], outputs[wanted.name]
        if tensor.datatype != spec.datatype:
            raise TypeError(f"output {spec.name} is {tensor.datatype}, not {spec.datatype}")
        if wanted.classes:
            rows = tensor.shape[0] if signature.batches else 1
            _check_size(size + min(tensor.size, wanted.classes * rows) * len("0:0"), limit)
            tensor = classify(spec, tensor, wanted.classes, batched=signature.batches)
        size += _least_size(tensor, wanted.binary)
        _check_size(size, limit)
        entry: dict[str, Any] = {
            "name": spec.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if wanted.binary:
            chunks.append(tensors.to_bytes(tensor))
            entry["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            entry["data"], base64 = tensors.to_json(tensor)
            if base64:
                entry["parameters"] = {"content_type": "base64"}
        entries.append(entry)
    head = _head(request, entries, model, version)
    body = b"".join([head, *chunks])
    _check_size(len(body), limit)
    return InferReply(body, header_length=len(head) if len(body) > len(head) else None)


def _head(request: InferRequest, entries: list[dict[str, Any]], model: str, version: int) -> bytes:
    document: dict[str, Any] = {
        "model_name": model,
        "model_version": str(version),
        "outputs": entries,
    }
    if request.id is not None:
        document["id"] = request.id
    return orjson.dumps(document)


def _least_size(tensor: Tensor, binary: bool) -> int:
    """At least how many bytes `tensor` takes in a reply: known before it is spelled at many times its memory."""
    if tensor.datatype == "BYTES":
        return sum(map(len, tensor.data)) + tensor.size * (4 if binary else 3)
    if binary:
        return len(tensor.data)
    return tensor.size * (4 if tensor.datatype in tensors.FLOATS else 2)  # "0.0," or "0,"


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise PayloadTooLarge(
            f"the reply takes more than {limit} bytes: send fewer rows, ask for fewer outputs, or ask for binary data"
        )
