"""Export a trained model and its preprocessor as one checked ONNX graph.

Models are torch modules or scikit-learn estimators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from training.errors import ExportFailed
from training.evaluation import calibration
from training.export import graph_editing, graphs, sklearn_exporter, torch_exporter
from training.fitting.trained import Trained


def export(trained: Trained) -> onnx.ModelProto:
    """Export a trained model, without preprocessor, to a checked ONNX graph.

    The graph takes preprocessed inputs.

    Raises:
        ExportFailed: no exporter made a graph that computes what the model computes.
    """
    if isinstance(trained.model, nn.Module):
        return torch_exporter.export(torch_spec(trained))
    inputs, output = trained.encoded.test.inputs, next(iter(trained.recipe.output_kinds))
    graph = sklearn_exporter.export(trained.model, inputs, output).graph
    if trained.temperature == 1:
        return graph
    return _at_temperature(graph, output, trained.temperature, inputs)


def _at_temperature(
    graph: onnx.ModelProto, output: str, temperature: float, inputs: graphs.Feeds
) -> onnx.ModelProto:
    """Return `graph` with its output probabilities rescaled to a softmax temperature.

    Raises:
        ExportFailed: on `inputs`, ONNX Runtime computes something else.
    """
    model = _with_softmax(graph, output, temperature)
    before, after = graphs.open_session(graph), graphs.open_session(model)
    for rows in (1, 2, None):
        feeds = {name: values[:rows] for name, values in inputs.items()}
        expected = calibration.scaled(before.run([output], feeds)[0], temperature)
        problem = graphs.difference(after.run([output], feeds)[0], expected)
        if problem is not None:
            raise ExportFailed(f"at temperature {temperature}, {output} {problem}")
    return model


def _with_softmax(graph: onnx.ModelProto, output: str, temperature: float) -> onnx.ModelProto:
    """Append ONNX nodes that rescale probabilities p: softmax(log(p) / temperature)."""
    model = graph_editing.copy(graph)
    raw = f"{output}_raw"
    graph_editing.rename_value(model.graph, output, raw)
    values = {"tiny": calibration.TINY, "coldness": 1 / temperature}
    model.graph.initializer.extend(graph_editing.constants(f"{output}_", np.float32, values))
    model.graph.node.extend([
        helper.make_node("Max", [raw, f"{output}_tiny"], [f"{output}_positive"]),
        helper.make_node("Log", [f"{output}_positive"], [f"{output}_logs"]),
        helper.make_node("Mul", [f"{output}_logs", f"{output}_coldness"], [f"{output}_logits"]),
        helper.make_node("Softmax", [f"{output}_logits"], [output], axis=-1),
    ])  # fmt: skip
    return model


def attach_preprocessor(trained: Trained, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Prepend the preprocessor's nodes to an ONNX graph; check for equal outputs.

    Raises:
        ExportFailed: the answers for raw inputs differ from those for preprocessed ones.
    """
    if trained.preprocessor is None:
        return graph
    whole = trained.preprocessor.attach(graph)
    run_model, run_whole = graphs.runner(graph), graphs.runner(whole)
    for rows in (slice(0, 1), slice(0, 2), slice(0, graphs.CHUNK)):
        raw = trained.request(trained.data.test.take(rows))
        expected, answers = run_model(trained.encode(raw)), run_whole(raw)
        for name, values in expected.items():
            problem = graphs.difference(answers[name], values, *trained.recipe.tolerance)
            if problem is not None:
                raise ExportFailed(f"with its preprocessor, {name} {problem}")
    return whole


def torch_spec(trained: Trained) -> torch_exporter.Spec:
    """Return the torch exporter's specification of a network: inputs, dimensions, samples."""
    recipe = trained.recipe
    inputs = trained.encode(trained.request(trained.data.test))
    served = trained.served_model.cpu()
    # A served module may have inputs that the data lack, e.g. a decoder's cache.
    dynamic = trained.dynamic
    has_own_inputs = bool(set(dynamic) - set(inputs))
    names = list(dynamic if has_own_inputs else inputs)
    axes = {name: _with_batch(dynamic.get(name, {})) for name in names}

    def sample(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        if has_own_inputs or recipe.sample is not None:
            return recipe.make_sample(sizes, served)
        return tuple(torch.from_numpy(_resized(inputs[name], axes[name], sizes)) for name in names)

    rtol, atol = recipe.tolerance
    return torch_exporter.Spec(
        model=served,
        inputs=axes,
        outputs=list(recipe.output_kinds),
        dims=_dims(axes, trained.sizes),
        sample=sample,
        rtol=rtol,
        atol=atol,
    )


def _with_batch(axes: Mapping[int, str]) -> dict[int, str]:
    """Return `axes` with axis 0 named batch, unless another axis is."""
    return dict(axes) if "batch" in axes.values() else {**axes, 0: "batch"}


def _dims(
    axes: Mapping[str, Mapping[int, str]], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, torch_exporter.Dim]:
    names = dict.fromkeys(
        ["batch", *(name for by_axis in axes.values() for name in by_axis.values())]
    )
    dims = {name: torch_exporter.Dim() for name in names}
    return dims | {name: torch_exporter.Dim(*bounds) for name, bounds in sizes.items()}


def _resized(
    values: NDArray[Any], axes: Mapping[int, str], sizes: Mapping[str, int]
) -> NDArray[Any]:
    """Cut or repeat an array along its dynamic axes to given sizes."""
    for axis, name in axes.items():
        values = values.take(range(sizes[name]), axis=axis, mode="wrap")
    return np.ascontiguousarray(values)
