"""torch → ONNX with proof: a graph counts only if ONNX Runtime computes what torch computes, at sizes never traced.

Exporters fail in silence: torch 2.13's unrolls a vanilla nn.RNN to the traced length and still declares the dimension
dynamic. So a ladder of exporters is tried, and the first graph that proves itself is taken.
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
from training.export import graphs
from training.export.graphs import ATOL, OPSET, RTOL, first_line
from training.export.quiet import quiet

Sizes = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Dim:
    """A dimension whose size each request chooses, within the sizes that are proven.

    With `low=0` the empty case has to work, as a decoder's past has to at the first token. Where `low` is higher, an
    empty dimension may be refused by the runtime, but what it answers has to be right all the same.
    """

    low: int = 1
    high: int = 257


@dataclass(frozen=True)
class Spec:
    """What to export. `sample` makes the inputs, in order, of any type, for given sizes of the dynamic dimensions."""

    model: nn.Module
    inputs: Mapping[str, Mapping[int, str]]  # input name → axis → name of its dynamic dimension
    outputs: Sequence[str]
    dims: Mapping[str, Dim]
    sample: Callable[[Sizes], tuple[Tensor, ...]]
    rtol: float = RTOL
    atol: float = ATOL


def traced_sizes(dims: Mapping[str, Dim]) -> dict[str, int]:
    """Sizes to trace with: neither 0 nor 1, which exporters take for constants, and different for each dimension.

    Neither are they bounds, which are left for the proof.

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
    """Sets of sizes, none of them traced: all dimensions at their smallest, then each once at its smallest, its
    largest and in between while the others are elsewhere.

    >>> proof_sizes({"batch": Dim(1, 257)})
    [{'batch': 1}, {'batch': 2}, {'batch': 129}, {'batch': 257}]
    """
    traced = traced_sizes(dims)
    choices = {}
    for name, dim in dims.items():
        middle = (dim.low + dim.high) // 2
        choices[name] = [
            size for size in (dim.low, dim.low + 1, middle, dim.high) if size != traced[name]
        ]
        if len(set(choices[name])) < 3:
            raise _too_few(name, dim)
    turns = [
        {
            name: sizes[(turn + position) % len(sizes)]
            for position, (name, sizes) in enumerate(choices.items())
        }
        for turn in range(4)
    ]
    smallest = {name: dim.low for name, dim in dims.items()}
    return [smallest, *(sizes for sizes in turns if sizes != smallest)]


def empty_sizes(dims: Mapping[str, Dim]) -> list[dict[str, int]]:
    """Sets of sizes with one dimension empty that need not be.

    >>> empty_sizes({"batch": Dim(1, 257), "past": Dim(0, 24)})
    [{'batch': 0, 'past': 1}]
    """
    return [
        {other: 0 if other == name else bounds.low + 1 for other, bounds in dims.items()}
        for name, dim in dims.items()
        if dim.low > 0
    ]


def _too_few(name: str, dim: Dim) -> ExportFailed:
    return ExportFailed(
        f"dimension {name!r}: {dim.low} to {dim.high} leaves too few sizes for a proof"
    )


def export(
    spec: Spec, ladder: Sequence[Callable[[Spec], onnx.ModelProto]] | None = None
) -> onnx.ModelProto:
    """The first graph of the ladder that proves itself, stripped of what it tells about the machine it was made on.

    Raises:
        ExportFailed: no exporter made a graph that agrees with torch; says what each came to.
    """
    spec.model.eval()
    size = sum(
        tensor.numel() * tensor.element_size() for tensor in spec.model.state_dict().values()
    )
    if size > graphs.LIMIT_BYTES:
        raise ExportFailed(
            f"the network has {size / 1e9:.1f} GB of weights, and one ONNX file holds 2.1 GB: make it smaller, or "
            "export it in parts yourself"
        )
    reasons = []
    for rung in ladder or LADDER:
        name = rung.__name__.strip("_")
        try:
            with _silent():
                graph = graphs.clean(rung(spec))
            graphs.name_dims(graph, spec.inputs)
            graphs.guard_recurrences(graph)
        except (
            Exception
        ) as error:  # exporters raise anything, their own bugs included; the next is tried
            reasons.append(f"{name}: {first_line(error)}")
            continue
        problem = disagreement(graph, spec)
        if problem is None:
            return graph
        reasons.append(f"{name}: {problem}")
    raise ExportFailed(
        "no exporter made a graph that computes what the network computes. " + "; ".join(reasons)
    )


def disagreement(graph: onnx.ModelProto, spec: Spec) -> str | None:
    """What ONNX Runtime does differently from torch at any of the proof sizes, or None."""
    problem = graphs.unfit(graph)
    if problem is not None:
        return problem
    try:
        session = graphs.runtime(graph)
    except Exception as error:  # native errors of any kind: that it does not load is the answer
        return f"does not load: {first_line(error)}"
    for sizes in proof_sizes(spec.dims):
        feeds, expected = _ask_torch(spec, sizes)
        try:
            got = session.run(list(spec.outputs), feeds)
        except Exception as error:  # as above
            return f"fails at {_spelled(sizes)}: {first_line(error)}"
        problem = _compare(spec, sizes, got, expected) or graphs.misdeclared(session, got)
        if problem is not None:
            return problem
    return _empty_disagreement(graph, spec)


def _empty_disagreement(graph: onnx.ModelProto, spec: Spec) -> str | None:
    """What is wrong where a dimension is empty that need not be: an answer that is not torch's, or a dead process."""
    asked = []
    for sizes in empty_sizes(spec.dims):
        try:
            asked.append((sizes, *_ask_torch(spec, sizes)))
        except Exception:  # noqa: S112  # torch refuses it, or there are no such inputs: nothing to compare with
            continue
    if not asked:
        return None
    answers = graphs.risky_answers(graph, [feeds for _, feeds, _ in asked])
    if answers is None:
        return f"ends the process at {' or '.join(_spelled(sizes) for sizes, _, _ in asked)}"
    for (sizes, _, expected), got in zip(asked, answers, strict=True):
        if got is not None and all(np.isfinite(theirs).all() for theirs in expected):
            problem = _compare(spec, sizes, [got[name] for name in spec.outputs], expected)
            if problem is not None:
                return problem
    return None


def _ask_torch(spec: Spec, sizes: Sizes) -> tuple[graphs.Feeds, list[NDArray[Any]]]:
    """Inputs of these sizes, and the network's answer."""
    tensors = spec.sample(sizes)
    with torch.no_grad():
        answer = spec.model(*tensors)
    expected = [
        tensor.numpy() for tensor in (answer if isinstance(answer, tuple | list) else (answer,))
    ]
    return dict(zip(spec.inputs, (tensor.numpy() for tensor in tensors), strict=True)), expected


def _compare(
    spec: Spec, sizes: Sizes, got: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]
) -> str | None:
    for name, ours, theirs in zip(spec.outputs, got, expected, strict=True):
        problem = graphs.difference(ours, theirs, spec.rtol, spec.atol)
        if problem is not None:
            return f"{name} {problem} at {_spelled(sizes)}"
    return None


def _spelled(sizes: Sizes) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


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
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise ExportFailed("the exporter returned nothing")
    _name_outputs(program.model.graph, spec.outputs)
    proto: onnx.ModelProto = program.model_proto
    return proto


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """The exporter would give an output's name without looking whether a value inside has it, e.g. `embedding`."""
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in names:
                value.name = f"{value.name}_inside"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


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


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress the exporters' warnings, log records and progress on the terminal."""
    with (
        quiet(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield
