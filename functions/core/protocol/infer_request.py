"""Decoder of inference requests in the Open Inference Protocol (v2, REST).

A body is JSON, or JSON followed by raw tensors (the binary tensor extension), or, with header
length 0, nothing but the model's only input. An optional field may be null, which clients that
write every attribute of a class send for an absent one. Sources: kserve/open-inference-protocol
`inference_rest.md`, Triton `docs/protocol/*.md`.
"""

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from functions.core.errors import InvalidRequest, shown
from functions.core.protocol import tensors
from functions.core.protocol.classification import CLASSES_MAX, is_classifiable
from functions.core.protocol.effort import NO_DEADLINE, check_deadline, check_effort
from functions.core.protocol.signature import DYNAMIC, Signature, TensorSpec
from functions.core.protocol.tensors import Tensor, describe, invalid_input
from functions.core.records import mutable_record, record

HEADER = "Inference-Header-Content-Length"
TIMEOUT_US_MAX = 2**63
EXAMPLE_INPUTS = 3  # inputs in the example that an error gives
# Fields in which other protocols have their tensors
FOREIGN_FIELDS = {
    "instances": "KServe's protocol 1 and TensorFlow Serving",
    "dataframe_split": "MLflow",
    "dataframe_records": "MLflow",
}
_BINARY_HINT = (
    f"; when tensors follow the JSON as bytes, the header {HEADER} must hold the length of the JSON"
)

Parameters = Mapping[str, Any]


@record
class RequestedOutput:
    """Requested output: its name, binary or JSON encoding, and class count.

    `classes` above 0 asks for that many "value:index[:label]" instead of the values.
    """

    name: str
    binary: bool
    classes: int


class RequestedOutputs(tuple[RequestedOutput, ...]):
    """Requested outputs in the model's order, with what concerns all of them.

    Requests of one template share them, so that this is found out once.
    """

    names: tuple[str, ...]
    binary: bool  # any of them in binary
    classified: bool  # any of them as classes

    def __new__(cls, outputs: Iterable[RequestedOutput]) -> "RequestedOutputs":
        requested = super().__new__(cls, outputs)
        requested.names = tuple([output.name for output in requested])
        requested.binary = any(output.binary for output in requested)
        requested.classified = any(output.classes for output in requested)
        return requested


@mutable_record
class InferRequest:
    """Decoded inference request whose tensors fit the model's signature."""

    id: str | None
    inputs: Mapping[str, Tensor]  # every declared input, in the model's order
    outputs: RequestedOutputs  # all if the request names none
    timeout_us: int | None
    parameters: Mapping[str, str | int | float | bool]  # all but timeout and binary_data_output


def decode_infer(
    body: bytes | memoryview,
    header_length: str | None,
    signature: Signature,
    deadline: float = NO_DEADLINE,
) -> InferRequest:
    """Decode an inference request and check it against the model's signature.

    `header_length` is the header Inference-Header-Content-Length as sent, None without one.

    Raises:
        InvalidRequest: the body, the header or a value is malformed or does not fit the model.
        PayloadTooLarge: its JSON has too many values or lists.
        TimedOut: `deadline`, a time of `time.monotonic`, is over.
    """
    view = memoryview(body)
    length = None if header_length is None else json_length(header_length, len(view))
    if length == 0:
        return _raw_request(view, signature)
    document = parse_document(view[:length])
    binary = None if length is None else view[length:]
    inputs = _inputs(document, binary, signature.inputs, deadline)
    return make_request(document, inputs, signature)


def make_request(
    document: Mapping[str, Any], inputs: Mapping[str, Tensor], signature: Signature
) -> InferRequest:
    """Build an inference request from decoded inputs and the remaining JSON fields.

    Raises:
        InvalidRequest: id, parameters or outputs are malformed.
    """
    parameters = _parameters(document, "the request")
    binary_by_default = _flag(parameters, "binary_data_output", "the request")
    return InferRequest(
        id=_id(document),
        inputs=inputs,
        outputs=_outputs(document, signature.outputs, binary_by_default),
        timeout_us=_timeout_us(parameters),
        parameters={
            name: value
            for name, value in parameters.items()
            if name not in ("binary_data_output", "timeout")
        },
    )


def json_length(header: str, body_bytes: int) -> int:
    """Parse the request header that gives the JSON part's length in bytes.

    Raises:
        InvalidRequest: the header is not a number, or exceeds the size of the body.
    """
    digits = header.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 15):
        raise InvalidRequest(
            f"header {HEADER} must be the length of the JSON part in bytes, not {shown(header)}"
        )
    length = int(digits)
    if length > body_bytes:
        raise InvalidRequest(f"header {HEADER} is {length}, the body has only {body_bytes} bytes")
    return length


def parse_document(text: memoryview, hint: str = _BINARY_HINT) -> dict[str, Any]:
    """Parse request JSON strictly: an object in UTF-8 without duplicate keys.

    A byte order mark is skipped (RFC 8259, section 8.1). `hint` ends the errors of a body that is
    no JSON.

    Raises:
        InvalidRequest: empty, not UTF-8, not JSON, not an object, or a key appears twice.
        PayloadTooLarge: it has too many values or lists.
    """
    if not text:
        raise InvalidRequest("the body is empty; send a JSON object")
    check_effort(text)
    encoding = json.detect_encoding(bytes(text[:4]))
    if encoding in ("utf-16", "utf-32"):  # by its byte order mark
        raise InvalidRequest(f"the body begins as text in {encoding.upper()}; send UTF-8{hint}")
    try:
        document = _JSON.decode(str(text[3:] if encoding == "utf-8-sig" else text, "utf-8"))
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
    except ValueError:  # Python limits an integer to 4,300 digits
        raise InvalidRequest("the body is JSON with a number of too many digits") from None
    if type(document) is not dict:
        raise InvalidRequest(f"the body must be a JSON object, not {describe(document)}")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's members as a dict; refuse duplicate keys."""
    members = dict(pairs)
    if len(members) != len(pairs):
        [(key, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise InvalidRequest(f"the body is JSON with the key {shown(key)} twice in one object")
    return members


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_constant=tensors.Constant)


def _id(document: Mapping[str, Any]) -> str | None:
    value = document.get("id")
    if value is None:
        return None
    if type(value) is not str:
        raise InvalidRequest(f"id must be a string, not {describe(value)}")
    _refuse_surrogates(value, "id")
    return value


def _refuse_surrogates(text: str, subject: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{subject} holds a lone surrogate, which is no text") from None


def _parameters(owner: Mapping[str, Any], subject: str) -> Parameters:
    """Validate and return a request object's `parameters`, without null values."""
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise InvalidRequest(f"{subject}: parameters must be an object, not {describe(parameters)}")
    parameters = {name: value for name, value in parameters.items() if value is not None}
    for name, value in parameters.items():
        _check_parameter(name, value, subject)
    if "shared_memory_region" in parameters:
        raise InvalidRequest(
            f"{subject}: shared memory is not offered, send and ask for data or binary data"
        )
    return parameters


def _check_parameter(name: str, value: object, subject: str) -> None:
    scalar = type(value) in (str, int, float, bool)
    if not scalar or (type(value) is float and not math.isfinite(value)):
        raise InvalidRequest(
            f"{subject}: parameter {shown(name)} must be a string, a number or a boolean, "
            f"not {describe(value)}"
        )
    if name.startswith("triton_"):
        raise InvalidRequest(
            f"{subject}: parameter {shown(name)} is reserved, choose a name without triton_"
        )
    _refuse_surrogates(name, f"{subject}: a parameter name")
    if type(value) is str:
        _refuse_surrogates(value, f"{subject}: parameter {shown(name)}")


def _flag(parameters: Parameters, name: str, subject: str) -> bool:
    value = parameters.get(name, False)
    if type(value) is not bool:
        raise InvalidRequest(
            f"{subject}: parameter {name} must be true or false, not {describe(value)}"
        )
    return value


def _timeout_us(parameters: Parameters) -> int | None:
    value = parameters.get("timeout")
    if value is not None and (type(value) is not int or not 0 <= value < TIMEOUT_US_MAX):
        raise InvalidRequest(
            f"parameter timeout must be microseconds, a non-negative integer, not {describe(value)}"
        )
    return value


# --- inputs


@mutable_record
class Location:
    """Location of an input tensor's values: in the JSON or after it.

    Without an `end` they are in the JSON. `start` and `end` are offsets into the binary part, the
    bytes after the JSON.
    """

    spec: TensorSpec
    shape: tuple[int, ...]
    base64: bool = False
    start: int = 0
    end: int | None = None

    def read(self, entry: Mapping[str, Any], binary: memoryview | None, deadline: float) -> Tensor:
        """Decode an input tensor from its JSON entry or the binary part.

        Raises:
            InvalidRequest: the values do not fit the declared datatype and shape.
            TimedOut: `deadline` is over.
        """
        check_deadline(deadline)
        if self.end is None or binary is None:
            return tensors.from_json(self.spec, self.shape, entry["data"], base64=self.base64)
        return tensors.from_bytes(self.spec, self.shape, binary[self.start : self.end], deadline)


def _inputs(
    document: Mapping[str, Any],
    binary: memoryview | None,
    specs: Sequence[TensorSpec],
    deadline: float,
) -> dict[str, Tensor]:
    """Decode every input of a request, in the model's declared order.

    `binary` holds the bytes after the JSON, None if the request has no length header.
    """
    declared = {spec.name: spec for spec in specs}
    inputs: dict[str, Tensor] = {}
    binary_bytes = None if binary is None else len(binary)
    offset = 0
    for spec, entry in named_entries(document, "input", declared):
        location = locate(spec, entry, offset, binary_bytes)
        inputs[spec.name] = location.read(entry, binary, deadline)
        offset = location.end or offset
    check_complete(declared, inputs, binary_bytes, offset)
    return {name: inputs[name] for name in declared}


def check_complete(
    declared: Collection[str], inputs: Collection[str], binary_bytes: int | None, end: int
) -> None:
    """Check that a request has every input and no trailing bytes.

    `end` is the end of the last tensor in the binary part.

    Raises:
        InvalidRequest: naming the first missing input, or the number of extra bytes.
    """
    missing = [name for name in declared if name not in inputs]
    if missing:
        raise InvalidRequest(
            f"missing input {shown(missing[0])}: the model takes {_listed(declared)}"
        )
    if binary_bytes is not None and end < binary_bytes:
        raise InvalidRequest(f"the body has {binary_bytes - end} bytes after the last tensor")


def named_entries(
    document: Mapping[str, Any], kind: str, declared: Mapping[str, TensorSpec]
) -> list[tuple[TensorSpec, Mapping[str, Any]]]:
    """Pair a request's inputs or outputs with the model's tensor declarations.

    `kind` is "input" or "output".

    Raises:
        InvalidRequest: an entry is malformed, or its name is unknown or used twice.
    """
    entries = document.get(f"{kind}s")
    if entries is None:
        if kind == "input":
            _check_not_foreign(document, declared)
        return []
    if type(entries) is not list:
        raise InvalidRequest(f"{kind}s must be a list, not {describe(entries)}")
    named: dict[str, tuple[TensorSpec, Mapping[str, Any]]] = {}
    for at, entry in enumerate(entries):
        if type(entry) is not dict:
            raise InvalidRequest(f"{kind}s[{at}] must be an object, not {describe(entry)}")
        name = entry.get("name")
        if type(name) is not str:
            raise InvalidRequest(f"{kind}s[{at}]: name must be a string, not {describe(name)}")
        if name not in declared:
            raise InvalidRequest(f"unknown {kind} {shown(name)}: the model has {_listed(declared)}")
        if name in named:
            raise InvalidRequest(f"{kind} {shown(name)} is given twice")
        named[name] = declared[name], entry
    return list(named.values())


def _check_not_foreign(document: Mapping[str, Any], declared: Mapping[str, TensorSpec]) -> None:
    """Refuse a request of another protocol, with an example of this one."""
    for field, protocol in FOREIGN_FIELDS.items():
        if field in document:
            entries = [
                f'{{"name": {json.dumps(spec.name)}, "datatype": "{spec.datatype}", '
                f'"shape": {[max(size, 1) for size in spec.shape]}, "data": [...]}}'
                for spec in islice(declared.values(), EXAMPLE_INPUTS)
            ]
            raise InvalidRequest(
                f"{field} is a field of {protocol}: "
                f'send {{"inputs": [{", ".join(entries)}]}}, as the Open Inference Protocol has it'
            )


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(shown, names)) or "none"


def locate(
    spec: TensorSpec, entry: Mapping[str, Any], offset: int, binary_bytes: int | None
) -> Location:
    """Check an input's JSON entry; return its values' location in the body.

    `offset` is the end of the tensor before it in the binary part of `binary_bytes`.

    Raises:
        InvalidRequest: datatype, shape, parameters or size do not fit the model or the body.
    """
    datatype = entry.get("datatype")
    if datatype != spec.datatype:
        raise invalid_input(
            spec, f"datatype is {describe(datatype)}, the model takes '{spec.datatype}'"
        )
    shape = tensors.read_shape(spec, entry.get("shape"))
    parameters = _parameters(entry, f"input {shown(spec.name)}")
    if "binary_data_size" in parameters:
        if entry.get("data") is not None:
            raise invalid_input(
                spec, "send either data or the parameter binary_data_size, not both"
            )
        size = parameters["binary_data_size"]
        _check_binary_size(
            spec, shape, size, None if binary_bytes is None else binary_bytes - offset
        )
        return Location(spec, shape, start=offset, end=offset + size)
    if "data" not in entry:
        raise invalid_input(spec, "send either data or the parameter binary_data_size")
    base64 = spec.datatype == "BYTES" and parameters.get("content_type") == "base64"
    return Location(spec, shape, base64)


def _check_binary_size(
    spec: TensorSpec, shape: tuple[int, ...], size: object, bytes_left: int | None
) -> None:
    """Check an input's binary_data_size against its shape and the remaining body."""
    if type(size) is not int or size < 0:
        raise invalid_input(
            spec, f"binary_data_size must be a non-negative integer, not {describe(size)}"
        )
    if bytes_left is None:
        raise invalid_input(
            spec,
            f"binary_data_size needs the header {HEADER}, the length of the JSON part of the body",
        )
    expected = tensors.byte_size(spec, shape)
    if expected not in (None, size):
        raise invalid_input(
            spec,
            f"binary_data_size is {shown(size)}, "
            f"shape {list(shape)} of {spec.datatype} takes {expected}",
        )
    if size > bytes_left:
        raise invalid_input(
            spec, f"binary_data_size is {shown(size)}, the body has only {bytes_left} bytes left"
        )


def _raw_request(raw: memoryview, signature: Signature) -> InferRequest:
    """Decode a body that holds only the raw bytes of one input.

    It is one batch row. All outputs are requested, in binary.
    """
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
    outputs = RequestedOutputs(
        RequestedOutput(output.name, binary=True, classes=0) for output in signature.outputs
    )
    return InferRequest(
        id=None, inputs={spec.name: tensor}, outputs=outputs, timeout_us=None, parameters={}
    )


def _raw_shape(spec: TensorSpec, raw_bytes: int, batches: bool) -> tuple[int, ...]:
    """Derive the shape of a raw input tensor from its byte count.

    The batch is 1, and at most one other dimension may be variable.

    Raises:
        InvalidRequest: the shape does not follow from the size.
    """
    shape = [1, *spec.shape[1:]] if batches else list(spec.shape)
    if spec.datatype == "BYTES":
        if any(size not in (DYNAMIC, 1) for size in shape):
            raise invalid_input(
                spec, f"header {HEADER} is 0, which takes a BYTES input of one element, not {shape}"
            )
        return (1,) * len(shape)
    variable = [axis for axis, size in enumerate(shape) if size == DYNAMIC]
    if len(variable) > 1:
        raise invalid_input(
            spec, f"header {HEADER} is 0, which takes at most one variable dimension, not {shape}"
        )
    for axis in variable:
        shape[axis] = 1
        shape[axis] = raw_bytes // max(tensors.byte_size(spec, tuple(shape)) or 0, 1)
    return tensors.read_shape(spec, shape)


# --- requested outputs


def _outputs(
    document: Mapping[str, Any], specs: Sequence[TensorSpec], binary_by_default: bool
) -> RequestedOutputs:
    """Return the outputs that a request asks for, in the model's order.

    `binary_by_default` counts only if the request names no output, as in Triton.
    """
    declared = {spec.name: spec for spec in specs}
    named = {
        spec.name: _requested(spec, entry)
        for spec, entry in named_entries(document, "output", declared)
    }
    if not named:
        return RequestedOutputs(
            RequestedOutput(name, binary_by_default, classes=0) for name in declared
        )
    return RequestedOutputs(named[name] for name in declared if name in named)


def _requested(spec: TensorSpec, entry: Mapping[str, Any]) -> RequestedOutput:
    subject = f"output {shown(spec.name)}"
    parameters = _parameters(entry, subject)
    classes = parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes <= CLASSES_MAX:
        raise InvalidRequest(
            f"{subject}: classification must be an integer from 0 to {CLASSES_MAX}, "
            f"not {describe(classes)}"
        )
    if classes and not is_classifiable(spec):
        raise InvalidRequest(
            f"{subject}: classification takes an output of numbers, this one is {spec.datatype}"
        )
    return RequestedOutput(spec.name, _flag(parameters, "binary_data", subject), classes)
