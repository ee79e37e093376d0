"""What a model is asked to prove itself: the samples of its package or, where none came, a request made up for it."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from functions.adapters.onnx import OnnxSession
from functions.core import tensors
from functions.core.errors import ExecutionFailed, InvalidModel, InvalidRequest, TimedOut, shown
from functions.core.protocol import decode_infer
from functions.core.signature import DYNAMIC, Signature, TensorSpec

RUN_S = 30.0  # no single run may take longer
SIZES = (1, 2, 4, 8, 16, 32, 224)  # of dynamic dimensions, tried in this order
ELEMENTS = 2**24  # of a tensor that is made up
ATTEMPTS_S = 5.0  # after it, no new one is made
SEED = 20261122
KEPT_BYTES = 64 * 1024  # of a sample in the serving bucket, as JSON

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Sample:
    """A request and, unless it is made up, what has to come of it. `origin` is what the manifest says."""

    inputs: Arrays
    expected: Arrays
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
    expected: dict[str, np.ndarray] = {}
    for entry in entries:
        name, array = _expected(what, entry, declared)
        if name in expected:
            raise _bad(f"{what}: its response has the output {shown(name)} twice")
        expected[name] = array
    return Sample(request.inputs, expected, origin)


def _expected(what: str, entry: object, declared: Mapping[str, TensorSpec]) -> tuple[str, np.ndarray]:
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
        return name, tensors.from_json(free, tensors.read_shape(free, shape), entry.get("data"), base64=base64)
    except InvalidRequest as error:
        raise _bad(f"{what}: its response: {str(error).replace('input', 'output', 1)}") from error


def _bad(message: str) -> InvalidModel:
    return InvalidModel(message, code="BAD_SAMPLE")


# --- running and comparing --------------------------------------------------------------------------------------------


def answer(session: OnnxSession, inputs: Arrays, signature: Signature) -> dict[str, np.ndarray]:
    """All outputs.

    Raises:
        InvalidRequest, ExecutionFailed, TimedOut, MemoryError: as `OnnxSession.run` does.
    """
    return session.run(inputs, [spec.name for spec in signature.outputs], RUN_S)


def try_answer(session: OnnxSession, inputs: Arrays, signature: Signature) -> dict[str, np.ndarray] | None:
    """All outputs, or None where the model refuses these values."""
    try:
        return answer(session, inputs, signature)
    except (InvalidRequest, ExecutionFailed, TimedOut):
        return None


def same_bits(one: Arrays | None, other: Arrays | None) -> bool:
    """Whether two answers are the same in every bit; two refusals are."""
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(_same_bits(array, other[name]) for name, array in one.items())


def _same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype == np.object_:
        return bool(one.tolist() == other.tolist())
    return one.tobytes() == other.tobytes()


def check(what: str, expected: Arrays, outputs: Arrays, signature: Signature, rtol: float, atol: float) -> None:
    """Raises:
    InvalidModel: `SAMPLE_MISMATCH`: |output - expected| > atol + rtol * |expected| somewhere, or, where the
        values are no floats, they differ at all. The element that is furthest off is named.
    """
    datatypes = {spec.name: spec.datatype for spec in signature.outputs}
    for name, wanted in expected.items():
        got = outputs[name]
        if got.shape != wanted.shape:
            raise _mismatch(f"{what}: output {shown(name)} has shape {list(got.shape)}, expected {list(wanted.shape)}")
        datatype = datatypes[name]
        if datatype in ("FP16", "BF16", "FP32", "FP64"):
            _check_floats(f"{what}: output {shown(name)}", datatype, wanted, got, rtol, atol)
            continue
        differing = np.flatnonzero(wanted.ravel() != got.ravel())
        if differing.size:
            index = np.unravel_index(differing[0], wanted.shape)
            raise _mismatch(
                f"{what}: output {shown(name)}{_element(index)} is {_spelled(got[index])}, "
                f"expected {_spelled(wanted[index])}; {differing.size} of {wanted.size} elements differ"
            )


def _check_floats(what: str, datatype: str, wanted: np.ndarray, got: np.ndarray, rtol: float, atol: float) -> None:
    want, have = (tensors.numeric(datatype, array).astype(np.float64) for array in (wanted, got))
    with np.errstate(invalid="ignore"):
        off = np.abs(have - want)
        allowed = atol + rtol * np.abs(want)
        excess = np.where(np.isnan(off), np.inf, off - allowed)
        fits = (off <= allowed) & np.isfinite(want) | (have == want) | (np.isnan(have) & np.isnan(want))
    if fits.all():
        return
    index = np.unravel_index(int(np.argmax(np.where(fits, -np.inf, excess))), want.shape)
    differing = f"{np.count_nonzero(~fits)} of {want.size} elements differ"
    raise _mismatch(
        f"{what}{_element(index)} is {have[index]:.9g}, expected {want[index]:.9g}: off by {off[index]:.3g}, "
        f"allowed {allowed[index]:.3g} (rtol {rtol:g}, atol {atol:g}); {differing}"
    )


def _element(index: Sequence[Any]) -> str:
    return f"[{', '.join(str(int(at)) for at in index)}]" if len(index) else ""


def _spelled(value: Any) -> str:
    return shown(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def _mismatch(message: str) -> InvalidModel:
    return InvalidModel(message, code="SAMPLE_MISMATCH")


# --- making up and keeping --------------------------------------------------------------------------------------------


def synthesise(session: OnnxSession, signature: Signature) -> tuple[Sample | None, Arrays | None]:
    """A request made up from the signature, and the model's answer; two None where it refuses all that were tried."""
    until = time.monotonic() + ATTEMPTS_S
    for inputs in _attempts(signature):
        if time.monotonic() > until:
            break
        outputs = try_answer(session, inputs, signature)
        if outputs is not None:
            return Sample(inputs, {}), outputs
    return None, None


def _attempts(signature: Signature) -> Iterator[dict[str, np.ndarray]]:
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
                if all(np.prod(shape, dtype=float) <= ELEMENTS for shape in shapes):
                    random = np.random.default_rng(SEED)
                    yield {
                        spec.name: _values(spec, shape, integer, random)
                        for spec, shape in zip(signature.inputs, shapes, strict=True)
                    }


def _sized(shape: tuple[int, ...], size: int, first_too: bool) -> tuple[int, ...]:
    return tuple(
        have if have != DYNAMIC else size if at or first_too else 1  # the first dimension is the batch
        for at, have in enumerate(shape)
    )


def _values(spec: TensorSpec, shape: tuple[int, ...], integer: int, random: np.random.Generator) -> np.ndarray:
    """Floats are eighths from 0 to 1: exact in every datatype, and short in JSON."""
    dtype = tensors.DTYPES[spec.datatype]
    if spec.datatype == "BYTES":
        array = np.empty(shape, dtype)
        array.fill(b"a")
        return array
    if spec.datatype in ("FP16", "BF16", "FP32", "FP64"):
        eighths = np.asarray(random.integers(0, 9, shape) / 8, np.float32)
        if spec.datatype == "BF16":  # the upper half of a float32
            return np.asarray(eighths.view(np.uint32) >> 16, dtype)
        return eighths.astype(dtype)
    return np.full(shape, integer, dtype)


def has_rows(inputs: Arrays, signature: Signature) -> bool:
    """Whether `inputs` are a batch of several rows."""
    return signature.batches and any(len(array) > 1 for array in inputs.values())


def rows(inputs: Arrays, count: int) -> dict[str, np.ndarray] | None:
    """`inputs` with their rows repeated to make `count`; None where they have none."""
    if any(not array.shape or not array.shape[0] for array in inputs.values()) or not inputs:
        return None
    return {name: np.ascontiguousarray(array[np.arange(count) % array.shape[0]]) for name, array in inputs.items()}


def first_row(sample: Sample, session: OnnxSession, signature: Signature) -> dict[str, Any] | None:
    """What is kept of a sample of many rows that is too large: the first of them, and what the model makes of it."""
    one = rows(sample.inputs, 1)
    outputs = try_answer(session, one, signature) if one else None
    document = kept(Sample(one, {}), outputs, signature) if one and outputs else None
    return document and document | {"synthetic": sample.synthetic}


def kept(sample: Sample, outputs: Arrays, signature: Signature) -> dict[str, Any] | None:
    """The sample as it is stored, shown and used to warm up; None where it is too large for that."""
    if sample.origin is not None:
        document = {"request": sample.origin["request"], "response": sample.origin["response"], "synthetic": False}
    else:
        if sum(array.size for array in (*sample.inputs.values(), *outputs.values())) * 2 > KEPT_BYTES:
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


def _tensors(arrays: Arrays, specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    found = []
    for spec in specs:
        array = arrays[spec.name]
        data, base64 = tensors.to_json(spec.datatype, array)
        entry: dict[str, Any] = {
            "name": spec.name, "datatype": spec.datatype, "shape": list(array.shape), "data": data,
        }  # fmt: skip
        if base64:
            entry["parameters"] = {"content_type": "base64"}
        found.append(entry)
    return found
