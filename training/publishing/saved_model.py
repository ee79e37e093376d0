"""Convert a TensorFlow SavedModel to ONNX by tf2onnx."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from training.errors import InvalidArtifact
from training.export import graph_editing, graphs
from training.export.graphs import first_line
from training.export.quiet import quiet
from training.publishing.conversion import Conversion, prove
from training.publishing.requests import made_up
from training.recipe import Arrays, Run

PACKAGES = ("tensorflow", "tf2onnx")
DEFAULT = "serving_default"  # signature that serving takes, if there is one
OPSET = 18  # the latest that tf2onnx writes
TIMEOUT_S = 1800  # on a busy machine, a large model


def convert(folder: Path, signature: str | None) -> Conversion:
    """Convert a signature of a SavedModel to ONNX, with free batch.

    A fixed batch becomes free if the graph computes every row on its own; or else it stays.

    Raises:
        InvalidArtifact: TensorFlow or tf2onnx is missing, or cannot read or convert it.
    """
    command = f"python -m tf2onnx.convert --saved-model {folder} --output model.onnx"
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        raise InvalidArtifact(
            f"{folder} is a TensorFlow SavedModel: pip install tensorflow-cpu tf2onnx and publish "
            f"it again; or, where they are installed, run {command} and publish model.onnx"
        )
    function, name = _signature(folder, signature)
    graph = _convert(folder, name)
    original = _runner(function)
    _check_names(graph, function)
    fixed = _fixed_batch(function)
    if fixed is None:
        inputs = {value.name: {0: "batch"} for value in graph.graph.input}
        graph_editing.name_dims(graph, inputs)
        return Conversion(graph, original)
    by_row = Conversion(_with_free_batch(graph, fixed), _in_batches(original, fixed))
    if _is_proven(by_row):
        print(f"its batch of {fixed} is made free: the graph computes each row alone", flush=True)
        return by_row
    print(f"its batch stays {fixed}: the graph is not proven to compute each row alone", flush=True)
    return Conversion(graph, original)


def _signature(folder: Path, chosen: str | None) -> tuple[Any, str]:
    """Load a SavedModel; return its signature's function and name."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read while TensorFlow is imported
    os.environ.setdefault(
        "TF_ENABLE_ONEDNN_OPTS", "0"
    )  # rounds differently from machine to machine
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    with quiet():
        import tensorflow

        try:
            loaded = tensorflow.saved_model.load(str(folder))
        except Exception as error:  # TensorFlow raises errors of many kinds
            reason = first_line(error)
            raise InvalidArtifact(f"TensorFlow does not load {folder}: {reason}") from error
    names = sorted(loaded.signatures)
    name = chosen or (DEFAULT if DEFAULT in names or len(names) != 1 else names[0])
    if not names:
        raise InvalidArtifact(
            f"{folder} has no signature: save it with tf.saved_model.save(..., signatures=...)"
        )
    if name not in names:
        problem = f"no signature {chosen!r}" if chosen else "several signatures"
        raise InvalidArtifact(
            f"{folder} has {problem}: {', '.join(names)}; choose one by --signature"
        )
    function = loaded.signatures[name]
    function.owner = loaded  # keeps the variables alive
    return function, name


def _convert(folder: Path, signature: str) -> onnx.ModelProto:
    """Run tf2onnx in its own process; return the ONNX graph.

    Raises:
        InvalidArtifact: it fails; the message is its own.
    """
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.onnx"
        command = [
            sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(folder), "--output",
            str(path), "--signature_def", signature, "--tag", "serve", "--opset", str(OPSET),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise InvalidArtifact(
                f"tf2onnx does not convert {folder} within {TIMEOUT_S} s: convert it on a faster "
                "machine (python -m tf2onnx.convert), and publish the ONNX file"
            ) from error
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        errors = [line.split(" - ERROR - ")[-1] for line in lines if " - ERROR - " in line]
        if not path.is_file() or errors:
            reason = (errors or lines or ["no message"])[-1 if not errors else 0].strip()
            raise InvalidArtifact(f"tf2onnx does not convert {folder}: {reason[:300]}")
        return onnx.load(path)


def _runner(function: Any) -> Run:
    """Return a function that runs a signature on arrays."""
    import tensorflow

    specs = function.structured_input_signature[1]

    def run(request: Arrays) -> Arrays:
        tensors = {
            name: tensorflow.constant(values, dtype=specs[name].dtype)
            for name, values in request.items()
        }
        return {name: _array(tensor) for name, tensor in function(**tensors).items()}

    return run


def _array(tensor: Any) -> NDArray[Any]:
    values: NDArray[Any] = tensor.numpy()
    if values.dtype != object:
        return values
    texts: NDArray[Any] = np.vectorize(bytes.decode, otypes=[object])(values)
    return texts


def _check_names(graph: onnx.ModelProto, function: Any) -> None:
    """Raise InvalidArtifact unless graph and signature name inputs and outputs alike."""
    for own, theirs in (
        (graph.graph.input, function.structured_input_signature[1]),
        (graph.graph.output, function.structured_outputs),
    ):
        if {value.name for value in own} != set(theirs):
            raise InvalidArtifact(
                f"tf2onnx names {', '.join(value.name for value in own)} what the signature names "
                f"{', '.join(theirs)}: convert it with --rename-inputs and --rename-outputs, and "
                "publish the ONNX file"
            )


# --- a fixed batch


def _fixed_batch(function: Any) -> int | None:
    """Return the batch that all inputs and outputs declare alike, or None."""
    specs = [
        *function.structured_input_signature[1].values(),
        *function.structured_outputs.values(),
    ]
    sizes = {spec.shape[0] if spec.shape.rank else None for spec in specs}
    [size] = sizes if len(sizes) == 1 else [None]
    return size


def _with_free_batch(graph: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Return a copy of a graph whose batch is free."""
    free = graph_editing.copy(graph)
    del free.graph.value_info[:]
    for value in (*free.graph.input, *free.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        if dim.dim_value == batch:
            dim.dim_param = "batch"
    return free


def _in_batches(run: Run, batch: int) -> Run:
    """Return a function that runs rows `batch` at a time."""

    def answer(request: Arrays) -> Arrays:
        rows = len(next(iter(request.values())))
        parts = [run(_batch(request, start, batch)) for start in range(0, rows, batch)]
        return {name: np.concatenate([part[name] for part in parts])[:rows] for name in parts[0]}

    return answer


def _batch(request: Mapping[str, NDArray[Any]], start: int, batch: int) -> Arrays:
    return {
        name: values.take(range(start, start + batch), axis=0, mode="wrap")
        for name, values in request.items()
    }


def _is_proven(conversion: Conversion) -> bool:
    """Return whether a graph loads and answers like the original."""
    try:
        session = graphs.open_session(conversion.graph)
        requests: Sequence[Arrays] = made_up(session)
        prove(conversion, session, requests)
    except Exception:  # the runtime raises native errors of any kind
        return False
    return True
