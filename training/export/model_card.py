"""What a model says about itself: the manifest, written from the graph, the recipe and what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import onnx

from training import manifest
from training.export import graphs
from training.manifest import Input, Output

COLUMNS_LIMIT = 32 * 1024  # bytes of an input's names, as JSON


def inputs(
    graph: onnx.ModelProto,
    preprocessing: str | Mapping[str, str],
    columns: Mapping[str, Sequence[str]] | None = None,
) -> list[Input]:
    """What `graph` takes; one sentence of preprocessing holds for all inputs, or there is one for each.

    `columns` are the names of those of an input (batch, columns), as long as the registry's record has room for them.
    """
    found: list[Input] = []
    for name, datatype, shape in _tensors(graphs.runtime(graph).get_inputs()):
        told = preprocessing if isinstance(preprocessing, str) else preprocessing.get(name, "")
        given: Input = {"name": name, "datatype": datatype, "shape": shape, "preprocessing": told}
        names = list((columns or {}).get(name, ()))
        if names and shape[-1:] == [len(names)] and len(json.dumps(names)) <= COLUMNS_LIMIT:
            given["columns"] = names
        found.append(given)
    return found


def outputs(
    graph: onnx.ModelProto, kinds: Mapping[str, str], labels: Sequence[str]
) -> list[Output]:
    """What `graph` answers; labels name the last dimension of what has one value for each."""
    found: list[Output] = []
    for name, datatype, shape in _tensors(graphs.runtime(graph).get_outputs()):
        output: Output = {
            "name": name,
            "datatype": datatype,
            "shape": shape,
            "kind": kinds.get(name, "tensor"),
        }
        if labels and shape and shape[-1] == len(labels):
            output["labels"] = list(labels)
        found.append(output)
    return found


def _tensors(values: Sequence[Any]) -> list[tuple[str, str, list[int]]]:
    """(name, datatype, shape) in the words of the Open Inference Protocol; -1 where a request chooses the size."""
    return [
        (
            value.name,
            graphs.DATATYPES[value.type],
            [size if isinstance(size, int) and size >= 0 else -1 for size in value.shape],
        )
        for value in values
    ]


def origin(environ: Mapping[str, str], device: str, duration_s: float) -> manifest.Training:
    """Where and how a model was made."""
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
    """Put `card` into the file, in the place of one that was there."""
    kept = [prop for prop in graph.metadata_props if prop.key != manifest.KEY]
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    graph.metadata_props.add(key=manifest.KEY, value=manifest.dumps(card))
