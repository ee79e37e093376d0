"""torch → ONNX with proof: a graph counts only if ONNX Runtime computes what torch computes, at sizes never traced.

Exporters fail in silence: torch 2.13's unrolls a vanilla nn.RNN to the traced length and still declares the dimension
dynamic. So a ladder of exporters is tried, and the first graph that proves itself is taken.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import: it phones home otherwise

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.errors import ExportFailed
from training.manifest import Sample

OPSET, IR = 20, 10  # what torch 2.13 emits; opset 23 and later breaks masked attention in ONNX Runtime 1.31
RTOL, ATOL = 1e-3, 1e-5


Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension whose size each request chooses, within the sizes that are proven."""

    low: int = 1
    high: int = 257


@dataclass(frozen=True)
class Spec:
    """What to export. `sample` makes the inputs, in order, for given sizes of the dynamic dimensions."""

    model: nn.Module
    inputs: Mapping[str, Mapping[int, str]]  # input name → axis → name of its dynamic dimension
    outputs: Sequence[str]
    dims: Mapping[str, Dim]
    sample: Callable[[Sizes], tuple[Tensor, ...]]


def traced_sizes(dims: Mapping[str, Dim]) -> dict[str, int]:
    """Sizes to trace with: neither 0 nor 1, which exporters take for constants, and different for each dimension."""
    return {name: dim.low + 2 + position for position, (name, dim) in enumerate(dims.items())}


def proof_sizes(dims: Mapping[str, Dim]) -> list[dict[str, int]]:
    """Four sets of sizes, none of them traced, each dimension at its smallest and its largest once.

    >>> proof_sizes({"batch": Dim(1, 257)})
    [{'batch': 1}, {'batch': 2}, {'batch': 129}, {'batch': 257}]
    """
    traced = traced_sizes(dims)
    choices = {}
    for name, dim in dims.items():
        middle = (dim.low + dim.high) // 2
        choices[name] = [size for size in (dim.low, dim.low + 1, middle, dim.high) if size != traced[name]]
        if len(set(choices[name])) < 3:
            raise ExportFailed(f"dimension {name!r}: {dim.low} to {dim.high} leaves too few sizes for a proof")
    return [
        {name: sizes[(turn + position) % len(sizes)] for position, (name, sizes) in enumerate(choices.items())}
        for turn in range(4)
    ]


def export(spec: Spec, ladder: Sequence[Callable[[Spec], onnx.ModelProto]] | None = None) -> onnx.ModelProto:
    """The first graph of the ladder that proves itself, stripped of what it tells about the machine it was made on.

    Raises:
        ExportFailed: no exporter made a graph that agrees with torch; says what each came to.
    """
    spec.model.eval()
    reasons = []
    for rung in ladder or LADDER:
        name = rung.__name__.strip("_")
        try:
            with _quiet():
                graph = strip(rung(spec), spec)
        except Exception as error:  # exporters raise anything, their own bugs included; the next is tried
            reasons.append(f"{name}: {_first_line(error)}")
            continue
        problem = disagreement(graph, spec)
        if problem is None:
            return graph
        reasons.append(f"{name}: {problem}")
    raise ExportFailed("no exporter made a graph that computes what the network computes. " + "; ".join(reasons))


def disagreement(graph: onnx.ModelProto, spec: Spec) -> str | None:
    """What ONNX Runtime does differently from torch at any of the proof sizes, or None."""
    try:
        onnx.checker.check_model(graph)
        session = runtime(graph.SerializeToString())
    except Exception as error:  # native errors of any kind: that it does not load is the answer
        return f"does not load: {_first_line(error)}"
    for sizes in proof_sizes(spec.dims):
        at = ", ".join(f"{name}={size}" for name, size in sizes.items())
        feeds = spec.sample(sizes)
        with torch.no_grad():
            answer = spec.model(*feeds)
        expected = [tensor.numpy() for tensor in (answer if isinstance(answer, tuple) else (answer,))]
        try:
            got = session.run(list(spec.outputs), dict(zip(spec.inputs, (feed.numpy() for feed in feeds), strict=True)))
        except Exception as error:  # as above
            return f"fails at {at}: {_first_line(error)}"
        for name, ours, theirs in zip(spec.outputs, got, expected, strict=True):
            if ours.shape != theirs.shape:
                return f"{name} has shape {list(ours.shape)} at {at}, torch's has {list(theirs.shape)}"
            if not np.isfinite(theirs).all():
                return f"{name} is not finite at {at}"
            if not np.allclose(ours, theirs, rtol=RTOL, atol=ATOL):
                return f"{name} is off by {np.abs(ours - theirs).max():.1e} at {at}"
    return None


def runtime(model: bytes) -> onnxruntime.InferenceSession:
    """A quiet CPU session."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _named_dims(spec: Spec) -> onnx.ModelProto:
    return _dynamo(spec, tuple(dict(axes) for axes in spec.inputs.values()))


def _automatic_dims(spec: Spec) -> onnx.ModelProto:
    auto = torch.export.Dim.AUTO
    return _dynamo(spec, tuple(dict.fromkeys(axes, auto) for axes in spec.inputs.values()))


def _dynamo(spec: Spec, shapes: tuple[dict[int, Any], ...]) -> onnx.ModelProto:
    program = torch.onnx.export(
        spec.model,
        spec.sample(traced_sizes(spec.dims)),
        dynamo=True,
        dynamic_shapes=shapes,
        opset_version=OPSET,
        input_names=list(spec.inputs),
        output_names=list(spec.outputs),
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise ExportFailed("the exporter returned nothing")
    proto: onnx.ModelProto = program.model_proto
    return proto


def _torchscript(spec: Spec) -> onnx.ModelProto:
    buffer = io.BytesIO()
    torch.onnx.export(
        spec.model,
        spec.sample(traced_sizes(spec.dims)),
        buffer,  # type: ignore[arg-type]  # torch takes a file object and does not say so
        dynamo=False,
        opset_version=OPSET,
        input_names=list(spec.inputs),
        output_names=list(spec.outputs),
        dynamic_axes={name: dict(axes) for name, axes in spec.inputs.items()},
    )
    return onnx.load_model_from_string(buffer.getvalue())


LADDER = (_named_dims, _automatic_dims, _torchscript)


def strip(model: onnx.ModelProto, spec: Spec) -> onnx.ModelProto:
    """Drop class names, file names and inferred shapes; give dynamic dimensions the names of the spec."""
    model.ir_version = IR
    model.doc_string = ""
    del model.metadata_props[:]
    names = {}
    for value in model.graph.input:
        for axis, dim in spec.inputs[value.name].items():
            names[value.type.tensor_type.shape.dim[axis].dim_param] = dim
    for value in [*model.graph.input, *model.graph.output]:
        for dim_proto in value.type.tensor_type.shape.dim:
            if dim_proto.dim_param in names:
                dim_proto.dim_param = names[dim_proto.dim_param]
    _strip_graph(model.graph)
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        _strip_nodes(function.node)
    return model


def _strip_graph(graph: onnx.GraphProto) -> None:
    graph.name, graph.doc_string = "model", ""
    del graph.metadata_props[:]
    del graph.value_info[:]  # 30 % of a small file, and in the way of quantisation
    for item in [*graph.input, *graph.output, *graph.initializer]:
        item.doc_string = ""
        del item.metadata_props[:]
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Sequence[onnx.NodeProto]) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            for graph in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                _strip_graph(graph)


def save(model: onnx.ModelProto, path: Path) -> None:
    """One self-contained file, written in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        file.write(model.SerializeToString())
    Path(part).chmod(0o644)  # mkstemp's 0600 would hide it from others
    Path(part).replace(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters print: progress, deprecations and advice that say nothing about the model."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def samples(model: onnx.ModelProto, input_name: str, batches: Sequence[NDArray[np.float32]]) -> list[Sample]:
    """Open Inference Protocol requests of `batches` and the answers of ONNX Runtime.

    Inputs are rounded to 4 decimals first, so that the request is short and says exactly what was computed.
    """
    session = runtime(model.SerializeToString())
    pairs: list[Sample] = []
    for batch in batches:
        rounded = batch.round(4)
        answers = zip(
            (output.name for output in session.get_outputs()), session.run(None, {input_name: rounded}), strict=True
        )
        pairs.append(
            {
                "request": {"inputs": [_tensor(input_name, rounded)]},
                "response": {"outputs": [_tensor(name, answer) for name, answer in answers]},
            }
        )
    return pairs


def _tensor(name: str, values: NDArray[np.float32]) -> dict[str, Any]:
    """FP32 as the protocol's JSON spells it; each number as short as it can be and still be the same float32."""
    return {
        "name": name,
        "datatype": "FP32",
        "shape": list(values.shape),
        "data": [float(np.format_float_positional(value)) if value % 1 else int(value) for value in values.flat],
    }
