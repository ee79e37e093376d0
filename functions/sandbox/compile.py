"""Compile an ONNX model to an optimised graph and a weights file.

The runtime maps the weights instead of reading them.

The optimisation level is EXTENDED and not ALL: the layout optimisations of ALL fit the processor
that compiles, and a graph with them gave wrong answers on another one. ONNX Runtime says so, too:
https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html

A compiled model is served only if it answers as ONNX Runtime does by default with the uploaded one
(docs/decisions/0028-the-default-is-the-truth.md).
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from functions.adapters.onnx.sessions import OnnxRuntime, OnnxSession
from functions.core.errors import InvalidModel, one_line
from functions.core.package.onnx_wire import WireReader
from functions.core.package.safety.guards import add_guards
from functions.sandbox.plans import has_layouts, has_quantised

MODEL, WEIGHTS = "model.onnx", "weights.bin"
ONE_FILE_BYTES = 4 * 1024 * 1024  # below, fetching a second file takes longer than it saves
GROWTH = 1.25  # accepted growth of the files: folded constants may exceed their operands
GROWTH_BYTES = 1024 * 1024
GUESS_BYTES = 1024 * 1024  # searched for operators' names before there is a file without weights
_METADATA_PROPS = 14  # field number in ModelProto
_PROBLEM_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class Compiled:
    """Compilation result: files or the problem, and the source model's session."""

    session: OnnxSession
    is_default: bool  # the session computes what ONNX Runtime's default one does
    is_quantised: bool
    seconds: float
    files: tuple[str, ...] = ()
    problem: str = ""
    guarded: tuple[str, ...] = ()  # operators that got guards


def compile_model(
    runtime: OnnxRuntime, model: Path, size_bytes: int, serving: Path, *, external: bool
) -> Compiled:
    """Optimise an ONNX model and write the files into directory `serving`.

    `size_bytes` counts its weights, too; `external` says that some are in other files.

    Raises:
        InvalidModel: `NOT_LOADABLE`, or `UNSAFE_OPERATOR`: it needs guards and can have none.
        MemoryError: it does not fit.
    """
    most_bytes = GROWTH * size_bytes + GROWTH_BYTES
    # External weights would stay in their old files unless a new one is named.
    weights = WEIGHTS if external or size_bytes >= ONE_FILE_BYTES else None
    began = time.perf_counter()
    try:
        if shutil.disk_usage(serving).free < most_bytes:
            raise InvalidModel("the temporary storage has no room for it")
        session, is_default = _optimise(runtime, model, serving / MODEL, weights)
    except (InvalidModel, MemoryError) as error:
        clear(serving)
        problem = one_line(str(error), _PROBLEM_CHARACTERS) or "there was no memory for it"
        session = runtime.load(model)  # raises if the model is at fault, and not the optimiser
        return Compiled(session, True, has_quantised(model), 0.0, problem=problem)
    _drop_metadata(serving / MODEL)
    guarded = tuple(add_guards(serving / MODEL))
    seconds = time.perf_counter() - began
    is_quantised = has_quantised(serving / MODEL)
    sizes, problem = _sizes(serving), ""
    grown_bytes = sum(sizes.values())
    if grown_bytes > most_bytes:
        clear(serving)
        sizes, problem = {}, f"it would grow from {size_bytes} to {grown_bytes} bytes"
    files = tuple(sizes)
    return Compiled(session, is_default, is_quantised, seconds, files, problem, guarded)


def _optimise(
    runtime: OnnxRuntime, model: Path, target: Path, weights: str | None
) -> tuple[OnnxSession, bool]:
    """Write the optimised graph; return (session, has ONNX Runtime's default kernels).

    By default the runtime packs weights and optimises to the level ALL, which differs from EXTENDED
    in the layout of convolutions and pooling alone. So the session of a model without them has the
    default's kernels if its weights are packed. That takes time, and pays only if they are
    quantised: then answers would differ, and the default session would have to be loaded.
    """
    packed = has_quantised(model, GUESS_BYTES) and not has_layouts(model, GUESS_BYTES)
    try:
        session = runtime.compile(model, target, weights, prepacking=packed)
    except MemoryError:
        if not packed:
            raise
        packed, session = False, runtime.compile(model, target, weights)
    return session, packed and not has_layouts(target)


def _sizes(serving: Path) -> dict[str, int]:
    """Return the compiled files' sizes in bytes by name, without empty ones."""
    paths = [serving / MODEL, serving / WEIGHTS]
    sizes = {path.name: path.stat().st_size for path in paths if path.exists()}
    return {name: size for name, size in sizes.items() if size}


def _drop_metadata(model: Path) -> None:
    """Remove the metadata properties from an ONNX file.

    The runtime would copy it, and the manifest in it is stored in a file of its own.
    """
    raw = model.read_bytes()
    kept, start = [], 0
    for number, _, _, end in WireReader(raw).fields(0, len(raw)):
        if number != _METADATA_PROPS:
            kept.append(raw[start:end])
        start = end
    model.write_bytes(b"".join(kept))


def clear(serving: Path) -> None:
    """Delete the compiled files from a directory."""
    for name in (MODEL, WEIGHTS):
        (serving / name).unlink(missing_ok=True)
