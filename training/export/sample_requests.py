"""Sample requests for the model card, and batches for calibrating quantization."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import onnx

from training.data import Examples, lazy
from training.export.model_exporter import torch_spec
from training.fitting.trained import Trained
from training.recipe import Arrays

SHOWN_LIMIT = 64 * 1024  # bytes of a sample as JSON; the registry keeps no larger ones


def sample_requests(trained: Trained, graph: onnx.ModelProto) -> list[Arrays]:
    """Return the model card's sample inputs, from test data or recipe.

    One row of the test part and, if it is small, a batch of two more. Inputs that the data lack are
    made by the recipe's `sample`, at the smallest sizes and one above.
    """
    rows = (slice(0, 1), slice(1, 3))
    single, *more = batches(trained, graph, trained.data.test, rows)
    if {value.name for value in graph.graph.input} != set(single):
        return _made_by_recipe(trained)
    small = [inputs for inputs in (single, *more) if _json_bytes(inputs) <= SHOWN_LIMIT]
    return small or [single]


def batches(
    trained: Trained, graph: onnx.ModelProto, examples: Examples, rows: Sequence[slice]
) -> list[Arrays]:
    """Return one batch of model inputs for each slice of `examples`.

    They are preprocessed where `graph` is the model alone, without its preprocessor.
    """
    requests: list[Arrays] = [lazy.read(trained.request(examples.take(part))) for part in rows]
    names = {value.name for value in graph.graph.input}
    if set(requests[0]) <= names:
        return requests
    return [trained.encode(inputs) for inputs in requests]


def _made_by_recipe(trained: Trained) -> list[Arrays]:
    spec = torch_spec(trained)
    requests: list[Arrays] = []
    for extra in (0, 1):
        sizes = {name: dim.low + extra for name, dim in spec.dims.items()}
        tensors = (tensor.numpy() for tensor in spec.sample(sizes))
        requests.append(dict(zip(spec.inputs, tensors, strict=True)))
    return requests


def _json_bytes(inputs: Arrays) -> int:
    total = 0
    for values in inputs.values():
        rounded = np.asarray(values).round(4) if values.dtype.kind == "f" else values
        total += len(json.dumps(rounded.tolist()))
    return total
