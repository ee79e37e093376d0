"""A finished ONNX graph, whatever made it: cleaned, compared, asked for samples, and written in one step. No torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: it phones home otherwise

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnxruntime
from numpy.typing import NDArray

from training.errors import ExportFailed
from training.manifest import Sample

OPSET, IR = (
    20,
    10,
)  # what torch 2.13 emits; opset 23 and later breaks masked attention in ONNX Runtime 1.31
RTOL, ATOL = 1e-3, 1e-5
CHUNK = 256  # rows that `runner` computes at a time
LIMIT_BYTES = 2**31 - 1  # of one protobuf message
LOCALE = "C"  # the only one that every machine has; with it, only A to Z have lower-case forms

# The Open Inference Protocol's datatype for each of ONNX Runtime's element types.
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

Feeds = Mapping[str, NDArray[Any]]  # by name of the input; text is an object array of str


def runtime(model: onnx.ModelProto | bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """A quiet CPU session; 0 threads are as many as there are cores."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    raw = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


def begun(model: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """`feeds` and, empty, the inputs of `model` that they lack: a decoder's past, before anything has passed."""
    known = {"batch": len(next(iter(feeds.values())))}
    missing = {}
    for value in model.graph.input:
        if value.name not in feeds:
            kind = value.type.tensor_type
            shape = [
                known.get(dim.dim_param, 0) if dim.dim_param else dim.dim_value
                for dim in kind.shape.dim
            ]
            missing[value.name] = np.zeros(
                shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            )
    return {**feeds, **missing}


def runner(model: onnx.ModelProto) -> Callable[[Feeds], dict[str, NDArray[Any]]]:
    """Return a function that runs `model` in ONNX Runtime, CHUNK rows at a time.

    Inputs with different numbers of rows are run at once; a decoder's missing `past` starts empty.
    """
    session = runtime(model)
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, NDArray[Any]]:
        feeds = begun(model, feeds)
        rows = {len(values) for values in feeds.values()}
        chunk = CHUNK if len(rows) == 1 else max(rows)
        parts = []
        for start in range(0, max(rows), chunk):
            part = {name: values[start : start + chunk] for name, values in feeds.items()}
            parts.append(session.run(names, part))
        answers = (np.concatenate(values) for values in zip(*parts, strict=True))
        return dict(zip(names, answers, strict=True))

    return run


def first_line(error: BaseException) -> str:
    """What an exception, or rather the first cause of it, says: one line of at most 200 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return (lines or [type(error).__name__])[0].strip()[:200]


# --- cleaning ---------------------------------------------------------------------------------------------------------


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` for one opset and IR version, without what it tells about the machine and the classes it came from.

    Local functions are inlined, inferred shapes dropped (a third of a small file, and in the way of quantisation),
    and text is handled in a locale that exists everywhere.

    Raises:
        ExportFailed: its operators are of a later opset.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    imports: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        imports[domain] = max(entry.version, imports.get(domain, 0))
    if imports.get("", OPSET) > OPSET:
        raise ExportFailed(
            f"the graph has operators of opset {imports['']}; export it for opset {OPSET}"
        )
    if imports.get("", OPSET) < OPSET:
        model = onnx.version_converter.convert_version(model, OPSET)
    used = _domains(model.graph)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    for domain, version in sorted(imports.items()):
        if domain and domain in used:
            model.opset_import.append(onnx.helper.make_opsetid(domain, version))
    model.ir_version = IR
    model.doc_string = ""
    del model.metadata_props[:]
    _clean(model.graph)
    model.graph.name = "model"
    return model


def _clean(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for item in [*graph.input, *graph.output, *graph.initializer]:
        item.doc_string = ""
        del item.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        if node.domain == "ai.onnx":
            node.domain = ""
        if node.op_type == "StringNormalizer":
            _set_locale(node)
        for inner in _inner(node):
            _clean(inner)


def _set_locale(node: onnx.NodeProto) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != "locale"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("locale", LOCALE)])


def _inner(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in a node's attributes: branches and loop bodies."""
    return [
        graph
        for attribute in node.attribute
        for graph in ([attribute.g] if attribute.HasField("g") else [])
    ]


def nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """All nodes, those of branches and loop bodies included."""
    return [
        one
        for node in graph.node
        for one in (node, *(n for inner in _inner(node) for n in nodes(inner)))
    ]


def _domains(graph: onnx.GraphProto) -> set[str]:
    return {node.domain for node in nodes(graph)}


def guard_recurrences(model: onnx.ModelProto) -> None:
    """Make LSTM and GRU refuse an empty batch or sequence.

    ONNX Runtime 1.31.1 ends the whole process there. Before each of them its input is now reshaped to its own shape,
    which is looked up in a way that fails cleanly where a dimension is 0.
    """
    graph = model.graph
    guarded = [node for node in graph.node if node.op_type in ("LSTM", "GRU")]
    if not guarded:
        return
    integers = {"guard_good": [0, 1, 2], "guard_bad": [3, 3, 3], "guard_zero": 0}
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in integers.items()
    )
    wired: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type in ("LSTM", "GRU"):
            at, x = f"guard_{len(wired)}", node.input[0]
            wired += [
                onnx.helper.make_node("Shape", [x], [f"{at}_shape"]),
                onnx.helper.make_node("ReduceMin", [f"{at}_shape"], [f"{at}_smallest"], keepdims=0),
                onnx.helper.make_node("Equal", [f"{at}_smallest", "guard_zero"], [f"{at}_empty"]),
                onnx.helper.make_node(
                    "Where", [f"{at}_empty", "guard_bad", "guard_good"], [f"{at}_axes"]
                ),
                onnx.helper.make_node("Gather", [f"{at}_shape", f"{at}_axes"], [f"{at}_same"]),
                onnx.helper.make_node("Reshape", [x, f"{at}_same"], [f"{at}_x"]),
            ]
            node.input[0] = f"{at}_x"
        wired.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del graph.node[:]
    graph.node.extend(wired)


def name_dims(model: onnx.ModelProto, dims: Mapping[str, Mapping[int, str]]) -> None:
    """Call the dynamic dimensions of each input as `dims` says (input → axis → name), and those of outputs alike."""
    names = {}
    for value in model.graph.input:
        for axis, name in dims.get(value.name, {}).items():
            dim = value.type.tensor_type.shape.dim[axis]
            if dim.dim_param:
                names[dim.dim_param] = name
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:  # possibly a sum, e.g. "s0 + s1"
                dim.dim_param = re.sub(
                    r"\w+", lambda found: names.get(found[0], found[0]), dim.dim_param
                )


# --- comparing --------------------------------------------------------------------------------------------------------


def unfit(model: onnx.ModelProto) -> str | None:
    """Why `model` would not load on every machine that serves, though perhaps on this one; or None."""
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # the checker raises its own error, protobuf's and plain ones
        return f"does not load: {first_line(error)}"
    for node in nodes(model.graph):
        told = [attribute.s.decode() for attribute in node.attribute if attribute.name == "locale"]
        if node.op_type == "StringNormalizer" and told != [LOCALE]:
            return f"needs the locale {''.join(told) or 'en_US'}, which a slim machine lacks"
    return None


def difference(
    ours: NDArray[Any], theirs: NDArray[Any], rtol: float = RTOL, atol: float = ATOL
) -> str | None:
    """How `ours` differs from the original `theirs`, or None. What is no float has to be equal."""
    if ours.shape != theirs.shape:
        return f"has shape {list(ours.shape)}, the original's has {list(theirs.shape)}"
    if ours.dtype != theirs.dtype and not ours.dtype == theirs.dtype == np.object_:
        return f"is {ours.dtype}, the original's is {theirs.dtype}"
    if not np.issubdtype(theirs.dtype, np.floating):
        wrong = int(np.count_nonzero(ours != theirs))
        return f"differs in {wrong} of {theirs.size} values" if wrong else None
    if not np.isfinite(theirs).all():
        return "is not finite"
    if not np.allclose(ours, theirs, rtol=rtol, atol=atol):
        return f"is off by {np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max():.1e}"
    return None


def risky_answers(
    model: onnx.ModelProto, questions: Sequence[Feeds]
) -> list[dict[str, NDArray[Any]] | None] | None:
    """The answers to questions that could end a process, from one of its own: None where the runtime refuses one.

    Returns None, and no list, where they did end it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        for at, feeds in enumerate(questions):
            plain = {
                key: array.astype(str) if array.dtype == object else array
                for key, array in feeds.items()
            }
            np.savez(folder / f"{at}.npz", **plain)  # type: ignore[arg-type]  # numpy means its own option
        command = [sys.executable, str(Path(__file__).with_name("probe.py")), name]
        ended = subprocess.run(command, capture_output=True, timeout=300, check=False)
        if ended.returncode:
            return None
        answers: list[dict[str, NDArray[Any]] | None] = []
        for at in range(len(questions)):
            path = folder / f"{at}.answer.npz"
            answers.append(dict(np.load(path)) if path.exists() else None)
        return answers


def misdeclared(
    session: onnxruntime.InferenceSession, answers: Sequence[NDArray[Any]]
) -> str | None:
    """Which output has a size that its declaration excludes, or None."""
    for output, answer in zip(session.get_outputs(), answers, strict=True):
        declared = [size if isinstance(size, int) else -1 for size in output.shape]
        if len(declared) != answer.ndim or any(
            want not in (-1, got) for want, got in zip(declared, answer.shape, strict=True)
        ):
            return f"{output.name} is declared as {declared} and comes as {list(answer.shape)}"
    return None


# --- samples and the file ---------------------------------------------------------------------------------------------


def samples(model: onnx.ModelProto, requests: Sequence[Feeds]) -> list[Sample]:
    """`requests` as the Open Inference Protocol spells them, each with the answer of ONNX Runtime.

    Floats are rounded to 4 decimals first, so that a request is short and says exactly what was computed.
    """
    session = runtime(model)
    kinds = {
        node.name: DATATYPES[node.type] for node in (*session.get_inputs(), *session.get_outputs())
    }
    pairs: list[Sample] = []
    for request in requests:
        feeds = {name: _rounded(values) for name, values in request.items()}
        names = [output.name for output in session.get_outputs()]
        answers = zip(names, session.run(names, feeds), strict=True)
        pairs.append(
            {
                "request": {
                    "inputs": [_tensor(name, kinds[name], values) for name, values in feeds.items()]
                },
                "response": {
                    "outputs": [_tensor(name, kinds[name], values) for name, values in answers]
                },
            }
        )
    return pairs


def _rounded(values: NDArray[Any]) -> NDArray[Any]:
    return values.round(4) if np.issubdtype(values.dtype, np.floating) else values


def _tensor(name: str, datatype: str, values: NDArray[Any]) -> dict[str, Any]:
    if datatype in ("FP16", "FP32", "FP64"):
        data = [_shortest(value) for value in values.flat]
    else:
        data = values.ravel().tolist()
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": data}


def _shortest(value: Any) -> float | int | str:
    """A number as short as it can be and still be the same in its own precision; JSON has no NaN, so it is a word."""
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return float(np.format_float_positional(value)) if value % 1 else int(value)


def save(model: onnx.ModelProto, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """One self-contained file, written in one step.

    Raises:
        ExportFailed: it is larger than one file can be.
    """
    size = model.ByteSize()
    if size > limit_bytes:
        raise ExportFailed(
            f"the model has {size / 1e9:.2f} GB, and one ONNX file holds {limit_bytes / 1e9:.2f} GB: make it smaller, "
            "compress it (int8, int4, fp16), or upload it in parts yourself"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        file.write(model.SerializeToString())
    Path(part).chmod(0o644)  # mkstemp's 0600 would hide it from others
    Path(part).replace(path)


def put_before(
    graph: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto],
    taken: str,
    given: onnx.ValueInfoProto,
) -> onnx.ModelProto:
    """`graph` with `nodes`, which compute its input `taken` from the new input `given`, before its own."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    del model.graph.input[:], model.graph.node[:]
    model.graph.input.extend(given if value.name == taken else value for value in graph.graph.input)
    model.graph.node.extend([*nodes, *graph.graph.node])
    model.graph.initializer.extend(constants)
    if all(entry.domain != "ai.onnx.ml" for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 4))
    return model
