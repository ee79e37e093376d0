"""Model card: inputs, outputs and training origin, embedded in the ONNX file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import onnx

from training import manifest
from training.export import graphs
from training.manifest import Input, Output

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
    graph: onnx.ModelProto, kinds: Mapping[str, str], labels: Sequence[str]
) -> list[Output]:
    """Return model card entries of an ONNX graph's outputs.

    Outputs get the `labels` if they have one value for each in the last dimension.
    """
    described: list[Output] = []
    for name, datatype, shape in _tensors(graphs.open_session(graph).get_outputs()):
        kind = kinds.get(name, "tensor")
        entry: Output = {"name": name, "datatype": datatype, "shape": shape, "kind": kind}
        if labels and shape and shape[-1] == len(labels):
            entry["labels"] = list(labels)
        described.append(entry)
    return described


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
