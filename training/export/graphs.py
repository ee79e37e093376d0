"""Run ONNX graphs in ONNX Runtime, compare outputs, record samples, save files.

This module imports no torch.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read while onnxruntime is imported

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from training.data import lazy
from training.data.spill import Collected
from training.errors import ExportFailed
from training.manifest import Sample

# Versions that torch 2.13 writes. Opset 23 and later breaks masked attention in ONNX Runtime 1.31.
OPSET, IR = 20, 10
RTOL, ATOL = 1e-3, 1e-5
CHUNK = 256  # rows that `runner` computes at a time
LIMIT_BYTES = 2**31 - 1  # largest protobuf message, so largest ONNX file
LOCALE = "C"  # a locale of every machine; it lower-cases A to Z only
UNICODE_LOCALE = "C.UTF-8"  # a locale of every Linux; it changes the case of all letters
PROBE = Path(__file__).with_name("probe.py")
PROBE_TIMEOUT_S = 300

# Element type of ONNX Runtime → datatype of the Open Inference Protocol.
DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

Answers = dict[str, NDArray[Any]]  # by name of the output
Feeds = Mapping[str, NDArray[Any]]  # by name of the input; text is an object array of str


# --- running


def open_session(model: onnx.ModelProto | bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open an ONNX Runtime session on the CPU, without log output.

    With 0 `threads` there are as many as cores.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    raw = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


def with_empty_inputs(model: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """Return `feeds` plus an empty array for each missing model input.

    A decoder's past is such an input: it is empty before the first token.
    """
    batch = len(next(iter(feeds.values())))
    missing = [value for value in model.graph.input if value.name not in feeds]
    return {**feeds, **{value.name: _empty(value, batch) for value in missing}}


def _empty(value: onnx.ValueInfoProto, batch: int) -> NDArray[Any]:
    """Return an empty input array: dynamic dimensions other than batch are 0."""
    tensor = value.type.tensor_type
    sizes = {"batch": batch}
    shape = [
        sizes.get(dim.dim_param, 0) if dim.dim_param else dim.dim_value for dim in tensor.shape.dim
    ]
    return np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))


def runner(model: onnx.ModelProto) -> Callable[[Feeds], Answers]:
    """Return a function that runs an ONNX model on input arrays.

    It computes CHUNK rows at a time, fewer of large ones, to limit memory. Inputs with different
    numbers of rows are run at once; a decoder's missing `past` starts empty.
    """
    session = open_session(model)
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> Answers:
        feeds = with_empty_inputs(model, feeds)
        rows = {len(values) for values in feeds.values()}
        whole = [slice(0, max(rows))]
        parts = lazy.chunks(*feeds.values(), most=CHUNK) if len(rows) == 1 else whole
        answers = Collected(max(rows))
        for part in parts:
            chunk = {name: values[part] for name, values in feeds.items()}
            answers.put(part, session.run(names, chunk))
        return dict(zip(names, answers.arrays, strict=True))

    return run


def run_in_subprocess(
    model: onnx.ModelProto, requests: Sequence[Feeds]
) -> list[Answers | None] | None:
    """Run model requests that may crash ONNX Runtime in a subprocess.

    There are at most ten requests. A request that the runtime refuses has None in the list. If the
    process dies, there is no list.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        for position, feeds in enumerate(requests):
            _write_arrays(folder / f"{position}.npz", feeds)
        command = [sys.executable, str(PROBE), name]
        process = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
        if process.returncode:
            return None
        paths = [folder / f"{position}.answer.npz" for position in range(len(requests))]
        return [dict(np.load(path)) if path.exists() else None for path in paths]


def _write_arrays(path: Path, arrays: Feeds) -> None:
    plain = {
        name: values.astype(str) if values.dtype == object else values
        for name, values in arrays.items()
    }
    np.savez(path, **plain)  # type: ignore[arg-type]  # arrays, not options of savez


def first_line(error: BaseException) -> str:
    """Return the first message line of an exception's root cause, shortened.

    It has at most 200 characters, and no colors.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return (lines or [type(error).__name__])[0].strip()[:200]


# --- comparing


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the subgraphs of an ONNX node: branches or loop body."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return all nodes of an ONNX graph, including those in subgraphs."""
    result = []
    for node in graph.node:
        result.append(node)
        for inner in subgraphs(node):
            result += nodes(inner)
    return result


def load_problem(model: onnx.ModelProto) -> str | None:
    """Return why serving machines could not load an ONNX model, or None."""
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises its own error, protobuf's and plain ones
        return f"does not load: {first_line(error)}"
    return locale_problem(model)


def locale_problem(model: onnx.ModelProto) -> str | None:
    """Return which locale serving machines lack for an ONNX model, or None."""
    for node in nodes(model.graph):
        locales = [item.s.decode() for item in node.attribute if item.name == "locale"]
        if node.op_type == "StringNormalizer" and locales not in ([LOCALE], [UNICODE_LOCALE]):
            return f"needs the locale {''.join(locales) or 'en_US'}, which a slim machine lacks"
    return None


def shape_problem(
    session: onnxruntime.InferenceSession, answers: Sequence[NDArray[Any]]
) -> str | None:
    """Return which model output contradicts its declared shape, or None."""
    for output, answer in zip(session.get_outputs(), answers, strict=True):
        declared = [size if isinstance(size, int) else -1 for size in output.shape]
        fits = len(declared) == answer.ndim and all(
            size in (-1, actual) for size, actual in zip(declared, answer.shape, strict=True)
        )
        if not fits:
            return f"{output.name} is declared as {declared} and comes as {list(answer.shape)}"
    return None


def difference(
    answer: NDArray[Any], original: NDArray[Any], rtol: float = RTOL, atol: float = ATOL
) -> str | None:
    """Describe how array `answer` differs from `original`; None if within tolerance.

    Floats may differ by the tolerance; all other types have to be equal.
    """
    if answer.shape != original.shape:
        return f"has shape {list(answer.shape)}, the original's has {list(original.shape)}"
    if answer.dtype != original.dtype:
        return f"is {answer.dtype}, the original's is {original.dtype}"
    if not np.issubdtype(original.dtype, np.floating):
        wrong = int(np.count_nonzero(answer != original))
        return f"differs in {wrong} of {original.size} values" if wrong else None
    if not np.isfinite(original).all():
        return "is not finite"
    if not np.allclose(answer, original, rtol=rtol, atol=atol):
        distance = np.abs(answer.astype(np.float64) - original.astype(np.float64)).max()
        return f"is off by {distance:.1e}"
    return None


# --- samples and the file


def samples(model: onnx.ModelProto, requests: Sequence[Feeds]) -> list[Sample]:
    """Return sample requests with expected responses, as Open Inference Protocol JSON.

    Floats are rounded to 4 decimals before the model runs, to keep requests short and exact.
    """
    session = open_session(model)
    values = [*session.get_inputs(), *session.get_outputs()]
    datatypes = {value.name: DATATYPES[value.type] for value in values}
    names = [output.name for output in session.get_outputs()]

    def tensors(arrays: Feeds) -> list[dict[str, Any]]:
        return [protocol_tensor(name, datatypes[name], array) for name, array in arrays.items()]

    pairs: list[Sample] = []
    for request in requests:
        feeds = {name: _rounded(array) for name, array in request.items()}
        answers = dict(zip(names, session.run(names, feeds), strict=True))
        pairs.append(
            {"request": {"inputs": tensors(feeds)}, "response": {"outputs": tensors(answers)}}
        )
    return pairs


def _rounded(values: NDArray[Any]) -> NDArray[Any]:
    return values.round(4) if np.issubdtype(values.dtype, np.floating) else values


def protocol_tensor(name: str, datatype: str, values: NDArray[Any]) -> dict[str, Any]:
    """Format an array as a JSON tensor of the Open Inference Protocol."""
    if datatype in ("FP16", "FP32", "FP64"):
        data = [_shortest(value) for value in values.flat]
    else:
        data = values.ravel().tolist()
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": data}


def _shortest(value: Any) -> float | int | str:
    """Return the shortest JSON value that parses back to the same float.

    NaN and the infinities, which JSON lacks, become strings.
    """
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return float(np.format_float_positional(value)) if value % 1 else int(value)


def save(model: onnx.ModelProto, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """Write an ONNX model with its weights atomically to one file.

    Raises:
        ExportFailed: the model is larger than `limit_bytes`.
    """
    size = model.ByteSize()
    if size > limit_bytes:
        raise ExportFailed(
            f"the model has {size / 1e9:.2f} GB, and one ONNX file holds {limit_bytes / 1e9:.2f} "
            "GB: make it smaller, compress it (int8, int4, fp16), or upload it in parts yourself"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        file.write(model.SerializeToString())
    Path(part).chmod(0o644)  # mkstemp's 0600 would hide it from other users
    Path(part).replace(path)
