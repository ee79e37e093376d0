"""Export PyTorch networks to ONNX, and check the graph at untraced sizes.

Network and graph are compared at sizes that the exporter never traced, because exporters fail
silently: torch 2.13 unrolls a vanilla nn.RNN to the traced length and still declares the dimension
dynamic. Therefore several exporters are tried, until a graph is right.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.errors import ExportFailed
from training.export import graph_editing, graphs
from training.export.graphs import ATOL, OPSET, RTOL, first_line
from training.export.quiet import quiet

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Dim:
    """Dynamic dimension of a model, with smallest and largest size to check.

    With `low=0` the empty case has to work, e.g. a decoder's past at the first token. With a higher
    `low` the runtime may refuse an empty dimension, but must not answer it wrongly.
    """

    low: int = 1
    high: int = 257


@dataclass(frozen=True)
class Spec:
    """PyTorch network to export, with its inputs, outputs and dynamic dimensions.

    `sample` makes the inputs, in order, for given sizes of the dynamic dimensions.
    """

    model: nn.Module
    inputs: Mapping[str, Mapping[int, str]]  # input name → axis → name of its dynamic dimension
    outputs: Sequence[str]
    dims: Mapping[str, Dim]
    sample: Callable[[Sizes], tuple[Tensor, ...]]
    rtol: float = RTOL
    atol: float = ATOL


Exporter = Callable[[Spec], onnx.ModelProto]


# --- sizes


def traced_sizes(dims: Mapping[str, Dim]) -> dict[str, int]:
    """Choose a distinct size of each dynamic dimension for tracing the network.

    Exporters take 0 and 1 for constants, and the bounds are left for the check.

    >>> traced_sizes({"batch": Dim(), "past": Dim(0, 24)})
    {'batch': 3, 'past': 2}
    """
    traced: dict[str, int] = {}
    for name, dim in dims.items():
        inside = range(max(2, dim.low + 1), dim.high)
        free = [size for size in inside if size not in traced.values()]
        preferred = [size for size in free if size > dim.low + 1]
        if not free:
            raise _too_few(name, dim)
        traced[name] = (preferred or free)[0]
    return traced


def proof_sizes(dims: Mapping[str, Dim]) -> list[dict[str, int]]:
    """Choose untraced dimension sizes at which to compare graph and network.

    First all dimensions are smallest. Then each is in turn smallest, largest and in between, while
    the others have different turns.

    >>> proof_sizes({"batch": Dim(1, 257)})
    [{'batch': 1}, {'batch': 2}, {'batch': 129}, {'batch': 257}]
    """
    traced = traced_sizes(dims)
    choices = {name: _untraced(name, dim, traced[name]) for name, dim in dims.items()}
    smallest = {name: dim.low for name, dim in dims.items()}
    turns = [
        {
            name: sizes[(turn + position) % len(sizes)]
            for position, (name, sizes) in enumerate(choices.items())
        }
        for turn in range(4)
    ]
    return [smallest, *(sizes for sizes in turns if sizes != smallest)]


def _untraced(name: str, dim: Dim, traced: int) -> list[int]:
    middle = (dim.low + dim.high) // 2
    sizes = [size for size in (dim.low, dim.low + 1, middle, dim.high) if size != traced]
    if len(set(sizes)) < 3:
        raise _too_few(name, dim)
    return sizes


def empty_sizes(dims: Mapping[str, Dim]) -> list[dict[str, int]]:
    """Choose dimension sizes for checks with one empty dimension each.

    >>> empty_sizes({"batch": Dim(1, 257), "past": Dim(0, 24)})
    [{'batch': 0, 'past': 1}]
    """
    usual = {name: dim.low + 1 for name, dim in dims.items()}
    return [{**usual, name: 0} for name, dim in dims.items() if dim.low > 0]


def _too_few(name: str, dim: Dim) -> ExportFailed:
    return ExportFailed(
        f"dimension {name!r}: {dim.low} to {dim.high} leaves too few sizes for a proof"
    )


# --- export and check


def export(spec: Spec, exporters: Sequence[Exporter] | None = None) -> onnx.ModelProto:
    """Export a network with the first exporter whose ONNX graph matches torch.

    Raises:
        ExportFailed: no exporter made such a graph; the message has each one's reason.
    """
    spec.model.eval()
    _check_size(spec.model)
    reasons = []
    for exporter in exporters or EXPORTERS:
        try:
            graph = _export_clean(exporter, spec)
        except Exception as error:  # exporters raise anything, their own bugs included
            problem: str | None = first_line(error)
        else:
            problem = disagreement(graph, spec)
            if problem is None:
                return graph
        reasons.append(f"{exporter.__name__}: {problem}")
    raise ExportFailed(
        "no exporter made a graph that computes what the network computes. " + "; ".join(reasons)
    )


def _check_size(model: nn.Module) -> None:
    tensors = model.state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > graphs.LIMIT_BYTES:
        raise ExportFailed(
            f"the network has {size / 1e9:.1f} GB of weights, and one ONNX file holds 2.1 GB: make "
            "it smaller, or export it in parts yourself"
        )


def _export_clean(exporter: Exporter, spec: Spec) -> onnx.ModelProto:
    with _silent():
        graph = graph_editing.clean(exporter(spec))
    graph_editing.name_dims(graph, spec.inputs)
    graph_editing.guard_recurrences(graph)
    return graph


def disagreement(graph: onnx.ModelProto, spec: Spec) -> str | None:
    """Describe how an ONNX graph differs from its torch network, or None."""
    problem = graphs.load_problem(graph)
    if problem is not None:
        return problem
    try:
        session = graphs.open_session(graph)
    except Exception as error:  # native errors of any kind
        return f"does not load: {first_line(error)}"
    for sizes in proof_sizes(spec.dims):
        feeds, expected = _run_torch(spec, sizes)
        try:
            answers = session.run(list(spec.outputs), feeds)
        except Exception as error:  # native errors of any kind
            return f"fails at {_format(sizes)}: {first_line(error)}"
        problem = _compare(spec, sizes, answers, expected) or graphs.shape_problem(session, answers)
        if problem is not None:
            return problem
    return _empty_disagreement(graph, spec)


def _empty_disagreement(graph: onnx.ModelProto, spec: Spec) -> str | None:
    """Describe how an ONNX graph fails on empty dimensions, or return None.

    It may differ from torch, or end the process. A refusal by the runtime is no failure.
    """
    cases = []
    for sizes in empty_sizes(spec.dims):
        try:
            cases.append((sizes, *_run_torch(spec, sizes)))
        except Exception:  # noqa: S112  # torch refuses it, or there are no such inputs
            continue
    if not cases:
        return None
    answers = graphs.run_in_subprocess(graph, [feeds for _, feeds, _ in cases])
    if answers is None:
        return f"ends the process at {' or '.join(_format(sizes) for sizes, _, _ in cases)}"
    for (sizes, _, expected), answer in zip(cases, answers, strict=True):
        if answer is not None and all(np.isfinite(values).all() for values in expected):
            problem = _compare(spec, sizes, [answer[name] for name in spec.outputs], expected)
            if problem is not None:
                return problem
    return None


def _run_torch(spec: Spec, sizes: Sizes) -> tuple[graphs.Feeds, list[NDArray[Any]]]:
    """Run the torch network at given sizes; return inputs and outputs."""
    tensors = spec.sample(sizes)
    with torch.no_grad():
        answer = spec.model(*tensors)
    answers = answer if isinstance(answer, tuple | list) else (answer,)
    feeds = dict(zip(spec.inputs, (tensor.numpy() for tensor in tensors), strict=True))
    return feeds, [tensor.numpy() for tensor in answers]


def _compare(
    spec: Spec, sizes: Sizes, answers: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]
) -> str | None:
    for name, answer, original in zip(spec.outputs, answers, expected, strict=True):
        problem = graphs.difference(answer, original, spec.rtol, spec.atol)
        if problem is not None:
            return f"{name} {problem} at {_format(sizes)}"
    return None


def _format(sizes: Sizes) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


# --- exporters


def named_dims(spec: Spec) -> onnx.ModelProto:
    """Export a network to ONNX by torch.export with named dynamic dimensions."""
    return _dynamo(spec, tuple(dict(axes) for axes in spec.inputs.values()))


def automatic_dims(spec: Spec) -> onnx.ModelProto:
    """Export a network to ONNX by torch.export with automatic dynamic dimensions."""
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
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise ExportFailed("the exporter returned nothing")
    _name_outputs(program.model.graph, spec.outputs)
    proto: onnx.ModelProto = program.model_proto
    return proto


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Set an ONNX graph's output names; rename inner values with equal names.

    The exporter itself would name an output `embedding` beside an inner value of that name.
    """
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in names:
                value.name = f"{value.name}_inside"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def torchscript(spec: Spec) -> onnx.ModelProto:
    """Export a network to ONNX by TorchScript, tracing a single run."""
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


EXPORTERS: Sequence[Exporter] = (named_dims, automatic_dims, torchscript)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress ONNX exporters' warnings, log records and terminal output."""
    with (
        quiet(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield
