"""What a model is asked to prove itself: the samples of its package or, where none came, a request made up for it."""

import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from functions.adapters.onnx.sessions import OnnxSession
from functions.core.errors import ExecutionFailed, InvalidModel, InvalidRequest, TimedOut, shown
from functions.core.protocol import tensors
from functions.core.protocol.infer_request import decode_infer
from functions.core.protocol.signature import DATATYPES, DYNAMIC, Signature, TensorSpec
from functions.core.protocol.tensors import FLOATS, Tensor

RUN_S = 30.0  # no single run may take longer
SIZES = (1, 2, 4, 8, 16, 32, 224)  # of dynamic dimensions, tried in this order
ELEMENTS = 2**24  # of a tensor that is made up
ATTEMPTS_S = 5.0  # after it, no new one is made
SEED = 20261122
KEPT_BYTES = 64 * 1024  # of a sample in the serving bucket, as JSON

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Sample:
    """A request and, unless it is made up, what has to come of it. `origin` is what the manifest says."""

    inputs: Tensors
    expected: Tensors
    origin: Mapping[str, Any] | None = None

    @property
    def synthetic(self) -> bool:
        return self.origin is None


def read_samples(origins: Sequence[Mapping[str, Any]], signature: Signature) -> list[Sample]:
    """The samples of a manifest.

    Raises:
        InvalidModel: `BAD_SAMPLE`, and what to change.
    """
    return [_read(f"sample {at}", origin, signature) for at, origin in enumerate(origins)]


def _read(what: str, origin: Mapping[str, Any], signature: Signature) -> Sample:
    try:
        request = decode_infer(json.dumps(origin["request"]).encode(), None, signature)
    except InvalidRequest as error:
        raise _bad(f"{what}: its request: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise _bad(f"{what} needs a request, an object as a client would send it") from error
    if any(output.classes for output in request.outputs):
        raise _bad(f"{what}: its request asks for classes, which prove little; ask for values")
    response = origin.get("response")
    entries = response.get("outputs") if isinstance(response, Mapping) else None
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise _bad(f"{what} needs a response with at least one of the model's outputs")
    declared = {spec.name: spec for spec in signature.outputs}
    expected: dict[str, Tensor] = {}
    for entry in entries:
        name, tensor = _expected(what, entry, declared)
        if name in expected:
            raise _bad(f"{what}: its response has the output {shown(name)} twice")
        expected[name] = tensor
    return Sample(request.inputs, expected, origin)


def _expected(what: str, entry: object, declared: Mapping[str, TensorSpec]) -> tuple[str, Tensor]:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(name, str) or name not in declared:
        known = shown(", ".join(declared))
        raise _bad(f"{what}: its response has the output {shown(name)}, and the model has {known}")
    spec = declared[name]
    if entry.get("datatype") != spec.datatype:
        told = shown(entry.get("datatype"))
        raise _bad(f"{what}: its output {shown(name)} is {told}, the model's is {spec.datatype}")
    shape = entry.get("shape")
    parameters = entry.get("parameters", {})
    base64 = isinstance(parameters, Mapping) and parameters.get("content_type") == "base64"
    try:
        # An output may have any rank: that its shape differs is a mismatch, not a bad sample.
        rank = len(shape) if isinstance(shape, list) else 0
        free = TensorSpec(name, spec.datatype, (DYNAMIC,) * rank)
        return name, tensors.from_json(
            free, tensors.read_shape(free, shape), entry.get("data"), base64=base64
        )
    except InvalidRequest as error:
        raise _bad(f"{what}: its response: {str(error).replace('input', 'output', 1)}") from error


def _bad(message: str) -> InvalidModel:
    return InvalidModel(message, code="BAD_SAMPLE")


# --- running and comparing --------------------------------------------------------------------------------------------


def answer(session: OnnxSession, inputs: Tensors, signature: Signature) -> dict[str, Tensor]:
    """All outputs.

    Raises:
        InvalidRequest, ExecutionFailed, TimedOut, MemoryError: as `OnnxSession.run` does.
    """
    return session.run(inputs, [spec.name for spec in signature.outputs], RUN_S)


def try_answer(
    session: OnnxSession, inputs: Tensors, signature: Signature
) -> dict[str, Tensor] | None:
    """All outputs, or None where the model refuses these values."""
    try:
        return answer(session, inputs, signature)
    except (InvalidRequest, ExecutionFailed, TimedOut):
        return None


def same_bits(one: Tensors | None, other: Tensors | None) -> bool:
    """Whether two answers are the same in every bit; two refusals are."""
    return one is other if one is None or other is None else dict(one) == dict(other)


def check(what: str, expected: Tensors, outputs: Tensors, rtol: float, atol: float) -> None:
    """Raises:
    InvalidModel: `SAMPLE_MISMATCH`: |output - expected| > atol + rtol * |expected| somewhere, or, where the
        values are no floats, they differ at all. The element that is furthest off is named.
    """
    for name, wanted in expected.items():
        got = outputs[name]
        if got.shape != wanted.shape:
            raise _mismatch(
                f"{what}: output {shown(name)} has shape {list(got.shape)}, expected {list(wanted.shape)}"
            )
        if got.data == wanted.data:
            continue
        if wanted.datatype in FLOATS:
            _check_floats(f"{what}: output {shown(name)}", wanted, got, rtol, atol)
            continue
        want, have = wanted.values(), got.values()
        differing = [
            at for at, (one, other) in enumerate(zip(want, have, strict=True)) if one != other
        ]
        if differing:
            at = differing[0]
            raise _mismatch(
                f"{what}: output {shown(name)}{_element(at, wanted.shape)} is {_spelled(have[at])}, "
                f"expected {_spelled(want[at])}; {len(differing)} of {wanted.size} elements differ"
            )


def _check_floats(what: str, wanted: Tensor, got: Tensor, rtol: float, atol: float) -> None:
    want, have = wanted.values(), got.values()
    differing = [
        at
        for at, (one, other) in enumerate(zip(want, have, strict=True))
        if not _fits(one, other, rtol, atol)
    ]
    if not differing:
        return

    def excess(at: int) -> float:
        off = abs(have[at] - want[at]) - atol - rtol * abs(want[at])
        return math.inf if math.isnan(off) else off

    at = max(differing, key=excess)
    off, allowed = abs(have[at] - want[at]), atol + rtol * abs(want[at])
    raise _mismatch(
        f"{what}{_element(at, wanted.shape)} is {have[at]:.9g}, expected {want[at]:.9g}: off by {off:.3g}, "
        f"allowed {allowed:.3g} (rtol {rtol:g}, atol {atol:g}); {len(differing)} of {wanted.size} elements differ"
    )


def _fits(want: float, have: float, rtol: float, atol: float) -> bool:
    if math.isfinite(want):
        return abs(have - want) <= atol + rtol * abs(want)
    return have == want or (have != have and want != want)  # two NaN


def _element(at: int, shape: tuple[int, ...]) -> str:
    """Where the value number `at` is.

    >>> _element(5, (2, 3)), _element(0, ())
    ('[1, 2]', '')
    """
    index = []
    for size in reversed(shape):
        at, rest = divmod(at, size)
        index.append(rest)
    return f"[{', '.join(map(str, reversed(index)))}]" if index else ""


def _spelled(value: Any) -> str:
    return shown(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def _mismatch(message: str) -> InvalidModel:
    return InvalidModel(message, code="SAMPLE_MISMATCH")


# --- making up and keeping --------------------------------------------------------------------------------------------


def synthesise(session: OnnxSession, signature: Signature) -> tuple[Sample | None, Tensors | None]:
    """A request made up from the signature, and the model's answer; two None where it refuses all that were tried."""
    until = time.monotonic() + ATTEMPTS_S
    for inputs in _attempts(signature):
        if time.monotonic() > until:
            break
        outputs = try_answer(session, inputs, signature)
        if outputs is not None:
            return Sample(inputs, {}), outputs
    return None, None


def _attempts(signature: Signature) -> Iterator[dict[str, Tensor]]:
    """Ones where integers are asked for, because an index or a length of 1 mostly means something; then zeros.

    Where sizes are free, the first is the batch and stays 1, then all grow together.
    """
    dynamic = any(DYNAMIC in spec.shape for spec in signature.inputs)
    for first_too in (False, True):
        for size in SIZES if dynamic else SIZES[:1]:
            if first_too and size == 1:
                continue
            for integer in (1, 0):
                shapes = [_sized(spec.shape, size, first_too) for spec in signature.inputs]
                if all(math.prod(shape) <= ELEMENTS for shape in shapes):
                    chance = random.Random(SEED)  # noqa: S311 (no secret)
                    yield {
                        spec.name: _values(spec, shape, integer, chance)
                        for spec, shape in zip(signature.inputs, shapes, strict=True)
                    }


def _sized(shape: tuple[int, ...], size: int, first_too: bool) -> tuple[int, ...]:
    return tuple(
        have
        if have != DYNAMIC
        else size
        if at or first_too
        else 1  # the first dimension is the batch
        for at, have in enumerate(shape)
    )


def _values(
    spec: TensorSpec, shape: tuple[int, ...], integer: int, chance: random.Random
) -> Tensor:
    """Floats are eighths from 0 to 1: exact in every datatype, and short in JSON."""
    count, datatype = math.prod(shape), spec.datatype
    if datatype == "BYTES":
        return Tensor(datatype, shape, [b"a"] * count)
    width = DATATYPES[datatype] or 0
    if datatype not in FLOATS:
        return Tensor(datatype, shape, integer.to_bytes(width, "little") * count)
    exact = TensorSpec("", datatype, (256,))
    spelled = tensors.from_json(exact, exact.shape, [byte % 9 / 8 for byte in range(256)]).data
    drawn, data = chance.randbytes(count), bytearray(count * width)
    for at in range(width):  # of a value: this byte, for each that was drawn
        data[at::width] = drawn.translate(spelled[at::width])
    return Tensor(datatype, shape, bytes(data))


def has_rows(inputs: Tensors, signature: Signature) -> bool:
    """Whether `inputs` are a batch of several rows."""
    return signature.batches and any(tensor.shape[0] > 1 for tensor in inputs.values())


def rows(inputs: Tensors, count: int) -> dict[str, Tensor] | None:
    """`inputs` with their rows repeated to make `count`; None where they have none."""
    if any(not tensor.shape or not tensor.shape[0] for tensor in inputs.values()) or not inputs:
        return None
    return {name: _repeated(tensor, count) for name, tensor in inputs.items()}


def _repeated(tensor: Tensor, count: int) -> Tensor:
    have = tensor.shape[0]
    row = len(tensor.data) // have  # bytes or, of BYTES, elements
    data = (tensor.data * math.ceil(count / have))[: count * row]
    return Tensor(tensor.datatype, (count, *tensor.shape[1:]), data)


def first_row(sample: Sample, session: OnnxSession, signature: Signature) -> dict[str, Any] | None:
    """What is kept of a sample of many rows that is too large: the first of them, and what the model makes of it."""
    one = rows(sample.inputs, 1)
    outputs = try_answer(session, one, signature) if one else None
    document = kept(Sample(one, {}), outputs, signature) if one and outputs else None
    return document and document | {"synthetic": sample.synthetic}


def kept(sample: Sample, outputs: Tensors, signature: Signature) -> dict[str, Any] | None:
    """The sample as it is stored, shown and used to warm up; None where it is too large for that."""
    if sample.origin is not None:
        document = {
            "request": sample.origin["request"],
            "response": sample.origin["response"],
            "synthetic": False,
        }
    else:
        if (
            sum(tensor.size for tensor in (*sample.inputs.values(), *outputs.values())) * 2
            > KEPT_BYTES
        ):
            return None
        document = {
            "request": {"inputs": _tensors(sample.inputs, signature.inputs)},
            "response": {"outputs": _tensors(outputs, signature.outputs)},
            "synthetic": True,
        }
    try:
        fits = len(json.dumps(document, allow_nan=False)) <= KEPT_BYTES
    except ValueError:  # a bare NaN, which only Python calls JSON
        return None
    return document if fits else None


def _tensors(values: Tensors, specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    found = []
    for spec in specs:
        tensor = values[spec.name]
        data, base64 = tensors.to_json(tensor)
        entry: dict[str, Any] = {
            "name": spec.name, "datatype": spec.datatype, "shape": list(tensor.shape), "data": data,
        }  # fmt: skip
        if base64:
            entry["parameters"] = {"content_type": "base64"}
        found.append(entry)
    return found
