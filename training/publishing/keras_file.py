"""Convert a .keras or .h5 file to ONNX by Keras's torch backend."""

from __future__ import annotations

import importlib.util
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.errors import ExportFailed, InvalidArtifact, InvalidRecipe
from training.export import torch_exporter
from training.export.graphs import first_line
from training.fitting import loop
from training.fitting.keras import backend
from training.fitting.keras.network import KerasNetwork, Wiring
from training.publishing.conversion import Conversion
from training.recipe import Arrays

TEXT = "string"  # Keras's datatype that no tensor of torch has
ELSEWHERE = "export it where it was trained: model.export('model.onnx', format='onnx')"
# Sizes at which a free dimension is proven: of pictures and sounds, and of other inputs.
LARGE, SMALL = (32, 70), (1, 24)
# A damaged archive or description; RuntimeError: it is encrypted, or nested too deeply.
UNREADABLE = (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error, RuntimeError)


def convert(path: Path) -> Conversion:
    """Convert a saved Keras model to a proven ONNX graph.

    Python code inside the file is not run: it is loaded in Keras's safe mode.

    Raises:
        InvalidArtifact: Keras is missing or does not load the file, or it has a Lambda layer.
    """
    if importlib.util.find_spec("keras") is None:
        raise InvalidArtifact(
            f"{path.name} is Keras's format: pip install keras, which runs on the torch that is "
            f"here, and publish it again; or {ELSEWHERE}"
        )
    _check_lambdas(path)
    model = _load(path)
    try:
        names = tuple(_plain(tensor.name) for tensor in model.inputs)
    except (AttributeError, ValueError) as error:
        raise InvalidArtifact(f"{path.name} does not declare its inputs: {ELSEWHERE}") from error
    text = [tensor.name for tensor in model.inputs if tensor.dtype == TEXT]
    if text:
        raise InvalidArtifact(f"{path.name}: its input {text[0]} is text: {ELSEWHERE}")
    network = KerasNetwork(
        model, Wiring(names, tuple(range(len(names))), (None,) * len(names))
    ).eval()
    if any(size is None for tensor in model.inputs for size in tensor.shape[1:]):
        _check_lengths(path, network)
    spec = _spec(network, model, names)
    try:
        graph = torch_exporter.export(spec)
    except ExportFailed as error:
        raise InvalidArtifact(f"{path.name}: {error}") from error

    def original(request: Arrays) -> Arrays:
        answers = loop.predict(network, request, torch.device("cpu"))
        return dict(zip(spec.outputs, answers, strict=True))

    return Conversion(graph, original, spec.rtol, spec.atol)


def _check_lengths(path: Path, network: KerasNetwork) -> None:
    """Raise InvalidArtifact if a recurrent layer has a free length."""
    try:
        network.check_free_lengths()
    except InvalidRecipe as error:
        raise InvalidArtifact(
            f"{path.name}: {error}; or save it in TensorFlow by model.export('folder'), and "
            "publish the folder"
        ) from error


def _load(path: Path) -> Any:
    """Load a Keras file in safe mode.

    Raises:
        InvalidArtifact: Keras does not; the message is its own.
    """
    try:
        keras = backend.load()
    except InvalidRecipe as error:
        raise InvalidArtifact(str(error)) from error
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # files from anywhere: Keras raises errors of any kind
        inner = str(error).rpartition("Exception encountered: ")[
            2
        ]  # the message about the layer at fault
        reason = first_line(ValueError(inner))
        raise InvalidArtifact(f"Keras does not load {path.name} ({reason}): {ELSEWHERE}") from error


def _check_lambdas(path: Path) -> None:
    """Raise InvalidArtifact if a file has Lambda layers, which are Python code."""
    names = list(_lambdas(_config(path)))
    if names:
        raise InvalidArtifact(
            f"{path.name}: its Lambda layer {names[0]!r} is Python code, which is not run: write "
            f"it as a layer of keras.layers or keras.ops and save the model again, or {ELSEWHERE}"
        )


def _config(path: Path) -> Any:
    """Return the JSON that describes a saved model's layers.

    Raises:
        InvalidArtifact: the file has none, e.g. holds weights alone.
    """
    try:
        if path.suffix.lower() == ".keras":
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("config.json"))
        import h5py  # comes with Keras

        with h5py.File(path) as file:
            if "model_config" not in file.attrs:
                raise InvalidArtifact(
                    f"{path.name} holds weights without a network: load them into the model with "
                    "model.load_weights(FILE), then model.save('model.keras'), and publish that"
                )
            return json.loads(file.attrs["model_config"])
    except UNREADABLE as error:
        raise InvalidArtifact(f"{path.name} is no file that Keras saved") from error


def _lambdas(config: Any) -> Iterator[str]:
    """Yield the names of Lambda layers anywhere in a configuration."""
    if isinstance(config, Mapping):
        if config.get("class_name") == "Lambda":
            own = config.get("config")
            yield str(own.get("name") if isinstance(own, Mapping) else config.get("name"))
        for value in config.values():
            yield from _lambdas(value)
    elif isinstance(config, list):
        for value in config:
            yield from _lambdas(value)


def _spec(network: KerasNetwork, model: Any, names: tuple[str, ...]) -> torch_exporter.Spec:
    """Return the exporter's specification: free axes are those without a size."""
    axes = {
        name: {0: "batch"}
        | {
            axis: f"{name}_{axis}"
            for axis, size in enumerate(tensor.shape)
            if axis and size is None
        }
        for name, tensor in zip(names, model.inputs, strict=True)
    }
    dims = {"batch": torch_exporter.Dim(1, 17)}
    for name, tensor in zip(names, model.inputs, strict=True):
        bounds = LARGE if len(tensor.shape) > 2 and "float" in tensor.dtype else SMALL
        dims |= {dim: torch_exporter.Dim(*bounds) for axis, dim in axes[name].items() if axis}

    def sample(sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        return tuple(
            _values(
                [sizes[axes[name][at]] if at in axes[name] else int(size)
                 for at, size in enumerate(tensor.shape)],
                tensor.dtype,
            )
            for name, tensor in zip(names, model.inputs, strict=True)
        )  # fmt: skip

    return torch_exporter.Spec(network, axes, _output_names(model, names), dims, sample)


def _values(shape: list[int], dtype: str) -> Tensor:
    """Return random numbers from 0 to 1, whole ones for integers."""
    random = np.random.default_rng(sum(shape))
    if "float" in dtype:
        return torch.from_numpy(random.random(shape, np.float32)).to(getattr(torch, dtype))
    return torch.from_numpy(random.integers(0, 2, shape)).to(getattr(torch, dtype))


def _output_names(model: Any, inputs: tuple[str, ...]) -> list[str]:
    """Return the names of the layers that make a model's outputs."""
    names = list(getattr(model, "output_names", ())) or [model.layers[-1].name]
    plain: list[str] = []
    for name in map(_plain, names):
        used = {*inputs, *plain}
        plain.append(name if name not in used else f"{name}_{len(used)}")
    return plain


def _plain(name: str) -> str:
    return name.replace("/", "_").replace(":", "_")
