"""Model card: inputs, outputs and training origin, embedded in the ONNX file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from training import manifest
from training.export import graphs
from training.manifest import Input, Output

SUM_TOLERANCE = 1e-2  # probabilities may be in half precision
COLUMNS_LIMIT = 32 * 1024  # bytes of an input's column names as JSON; the registry keeps no more


def inputs(
    graph: onnx.ModelProto,
    preprocessing: str | Mapping[str, str],
    columns: Mapping[str, Sequence[str]] | None = None,
) -> list[Input]:
    """Return model card entries of an ONNX graph's inputs.

    `preprocessing` is one sentence for all inputs, or one for each. `columns` are the column names
    of inputs (batch, columns); names beyond COLUMNS_LIMIT are left out.
    """
    described: list[Input] = []
    for name, datatype, shape in _tensors(graphs.open_session(graph).get_inputs()):
        sentence = preprocessing if isinstance(preprocessing, str) else preprocessing.get(name, "")
        entry: Input = {
            "name": name, "datatype": datatype, "shape": shape, "preprocessing": sentence,
        }  # fmt: skip
        names = list((columns or {}).get(name, ()))
        if names and shape[-1:] == [len(names)] and len(json.dumps(names)) <= COLUMNS_LIMIT:
            entry["columns"] = names
        described.append(entry)
    return described


def outputs(
    graph: onnx.ModelProto,
    kinds: Mapping[str, str],
    labels: Sequence[str],
    answer: Mapping[str, NDArray[Any]] | None = None,
) -> list[Output]:
    """Return model card entries of an ONNX graph's outputs.

    Outputs get the `labels` if they have one value for each in the last dimension, as declared or
    in an `answer` of the model.
    """
    described: list[Output] = []
    for name, datatype, shape in _tensors(graphs.open_session(graph).get_outputs()):
        kind = kinds.get(name, "tensor")
        entry: Output = {"name": name, "datatype": datatype, "shape": shape, "kind": kind}
        sizes = shape if answer is None else answer[name].shape
        if labels and kind != "label" and len(sizes) > 0 and sizes[-1] == len(labels):
            entry["labels"] = list(labels)
        described.append(entry)
    return described


def output_kinds(task: str, answers: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, str]:
    """Return the kind of each output, from answers to requests.

    Decides by datatype, shape and values: numbers are probabilities only where each row sums to
    one, or a single number is between 0 and 1 in all answers.
    """
    arrays = {name: [answer[name] for answer in answers] for name in answers[0]}
    floats = [name for name, values in arrays.items() if values[0].dtype.kind == "f"]
    kinds = dict.fromkeys(arrays, "tensor")
    if task in ("classification", "multilabel", "segmentation"):
        return kinds | {name: _class_kind(task, values) for name, values in arrays.items()}
    if task == "ranking":
        whole = [name for name, values in arrays.items() if values[0].dtype.kind in "iu"]
        return kinds | dict.fromkeys(whole[:1], "ids") | dict.fromkeys(floats[:1], "scores")
    rank, kind = {"generation": (3, "logits"), "embedding": (2, "embedding")}.get(
        task, (0, "value")
    )
    fitting = [name for name in floats if arrays[name][0].ndim == rank] or floats or list(arrays)
    return kinds | dict.fromkeys(fitting[:1], kind)


def _class_kind(task: str, answers: Sequence[NDArray[Any]]) -> str:
    """Return the kind of a classifier's output: label, probabilities, logits or tensor."""
    if answers[0].dtype.kind != "f":
        return "tensor" if answers[0].dtype.kind == "b" else "label"
    answers = [values for values in answers if np.isfinite(values).all()] or answers[:1]
    within = all(bool(((values >= 0) & (values <= 1)).all()) for values in answers)
    is_single = answers[0].ndim < 2 or answers[0].shape[-1] == 1
    adds_up = all(map(_sums_to_one, answers)) or task == "multilabel"
    if task == "segmentation" and answers[0].ndim > 2:  # classes before height and width
        adds_up = adds_up or all(_sums_to_one(np.moveaxis(each, 1, -1)) for each in answers)
    if within and (is_single or adds_up):
        return "probabilities"
    return "logits"


def _sums_to_one(values: NDArray[Any]) -> bool:
    return np.allclose(values.astype(np.float64).sum(axis=-1), 1, atol=SUM_TOLERANCE)


def _tensors(values: Sequence[Any]) -> list[tuple[str, str, list[int]]]:
    """Return name, datatype and shape of each tensor, -1 for dynamic dimensions."""
    tensors = []
    for value in values:
        shape = [size if isinstance(size, int) and size >= 0 else -1 for size in value.shape]
        tensors.append((value.name, graphs.DATATYPES[value.type], shape))
    return tensors


def origin(environ: Mapping[str, str], device: str, duration_s: float) -> manifest.Training:
    """Return a model's origin: training job, machine, commit and library versions."""
    return {
        "job": environ.get("TRAINING_JOB_NAME"),
        "image": environ.get("MAYFLY_TRAINING_IMAGE"),
        "instance_type": environ.get("SM_CURRENT_INSTANCE_TYPE"),
        "code_revision": manifest.code_revision(environ),
        "libraries": manifest.libraries(),
        "device": device,
        "duration_s": round(duration_s, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def embed(graph: onnx.ModelProto, card: Mapping[str, Any]) -> None:
    """Store a model card in the ONNX metadata, replacing an earlier card."""
    kept = [prop for prop in graph.metadata_props if prop.key != manifest.KEY]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    graph.metadata_props.add(key=manifest.KEY, value=manifest.dumps(card))
