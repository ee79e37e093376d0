"""The uploaded model as a graph that is optimised already, beside one file of weights that the runtime maps.

EXTENDED and not ALL: a model optimised with ALL on one processor answered wrongly on another (field notes). What comes
out is served only if it gives the same bits as what came in.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from functions.adapters.onnx.sessions import OnnxRuntime, OnnxSession
from functions.core.errors import InvalidModel, one_line
from functions.core.protocol.signature import Signature
from functions.sandbox.samples import Tensors, same_bits, try_answer

MODEL, WEIGHTS = "model.onnx", "weights.bin"
ONE_FILE_BYTES = 4 * 1024 * 1024  # below, a second file costs more to fetch than it saves to read
_LENGTH, _METADATA_PROPS = 2, 14  # of protobuf's wire format, and of ModelProto in onnx/onnx.proto
_FIXED = {1: 8, 5: 4}  # wire type -> bytes
GROWTH = 1.25  # of the files: folded constants may take more room than what they are made of
GROWTH_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Compiled:
    """The files of the compiled form, or why there are none; and the uploaded model, loaded and optimised alike."""

    session: OnnxSession
    seconds: float
    files: tuple[str, ...] = ()
    problem: str = ""


def compile_model(
    runtime: OnnxRuntime, model: Path, size_bytes: int, serving: Path, *, outside: bool
) -> Compiled:
    """Compile `model`, which has `size_bytes` with its weights, some of them perhaps outside, into `serving`.

    Raises:
        InvalidModel: `NOT_LOADABLE`.
        MemoryError: it does not fit.
    """
    weights = (
        WEIGHTS if outside or size_bytes >= ONE_FILE_BYTES else None
    )  # those outside would stay where they were
    began = time.perf_counter()
    try:
        if shutil.disk_usage(serving).free < GROWTH * size_bytes + GROWTH_BYTES:
            raise InvalidModel("the temporary storage has no room for it")
        session = runtime.compile(model, serving / MODEL, weights)
    except (InvalidModel, MemoryError) as error:  # of the model or only of the optimiser?
        clear(serving)
        plain = runtime.load(model)
        return Compiled(
            plain, 0.0, problem=one_line(str(error), 160) or "there was no memory for it"
        )
    _strip(serving / MODEL)
    seconds = time.perf_counter() - began
    files = tuple(
        name
        for name in (MODEL, WEIGHTS)
        if (serving / name).exists() and (serving / name).stat().st_size
    )
    grown = sum((serving / name).stat().st_size for name in files)
    if grown > GROWTH * size_bytes + GROWTH_BYTES:
        clear(serving)
        return Compiled(
            session, seconds, problem=f"it would grow from {size_bytes} to {grown} bytes"
        )
    return Compiled(session, seconds, files)


def _strip(model: Path) -> None:
    """Drop the metadata, which the runtime copies: the manifest with its samples is a blob of its own."""
    raw = model.read_bytes()
    parts, at = [], 0
    while at < len(raw):
        start = at
        tag, at = _varint(raw, at)
        if tag & 7 == _LENGTH:
            length, at = _varint(raw, at)
            at += length
        elif tag & 7 in _FIXED:  # only in fields that nobody knows, which the runtime keeps
            at += _FIXED[tag & 7]
        else:
            _, at = _varint(raw, at)
        if tag >> 3 != _METADATA_PROPS:
            parts.append(raw[start:at])
    model.write_bytes(b"".join(parts))


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number of protobuf at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def clear(serving: Path) -> None:
    """Leave no half of a compiled form behind."""
    for name in (MODEL, WEIGHTS):
        (serving / name).unlink(missing_ok=True)


def answers(
    session: OnnxSession,
    questions: Sequence[Tensors],
    signature: Signature,
    first: Tensors | None = None,
) -> list[Tensors | None]:
    """To each question the outputs, or None where the model refuses it. `first`, to the first, may be known already."""
    known = [first] if questions and first is not None else []
    return [*known, *(try_answer(session, inputs, signature) for inputs in questions[len(known) :])]


def differs(one: Sequence[Tensors | None], other: Sequence[Tensors | None]) -> bool:
    """Whether two lists of answers differ in any bit."""
    return not all(same_bits(mine, yours) for mine, yours in zip(one, other, strict=True))
