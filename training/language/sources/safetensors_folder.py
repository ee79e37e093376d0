"""Tensors and configuration in folders that Hugging Face's tools write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches numpy the type bfloat16
import numpy as np
from safetensors import safe_open

from training.errors import InvalidModelFile
from training.export.graphs import first_line
from training.language import assets
from training.language.checkpoint import Array, check_positive

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Tensors:
    """Tensors of a folder's safetensors files, by name."""

    places: Mapping[str, Path]

    def __call__(self, name: str) -> Array:
        path = self.places[name]
        with safe_open(path, "numpy") as file:
            values = file.get_tensor(name)
        if values.dtype.name not in FLOATS:
            raise InvalidModelFile(
                f"tensor {name} is of type {values.dtype.name}; those that can be imported are "
                f"{', '.join(FLOATS)}: import the model that was not quantised"
            )
        return np.asarray(values, np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading it."""
        with safe_open(self.places[name], "numpy") as file:
            return tuple(file.get_slice(name).get_shape())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InvalidModelFile: it is missing, or no JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidModelFile(f"{path.parent} has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModelFile(f"{path} is not readable: {error}") from error
    if not isinstance(document, dict):
        raise InvalidModelFile(f"{path} holds no JSON object")
    return document


def open_tensors(folder: Path) -> Tensors:
    """Open a folder's safetensors files, those of its index if any.

    Raises:
        InvalidModelFile: there is none, or one is missing or not readable.
    """
    places: dict[str, Path] = {}
    for path in _files(folder):
        try:
            with safe_open(path, "numpy") as file:
                places.update(dict.fromkeys(file.keys(), path))
        except FileNotFoundError as error:
            raise InvalidModelFile(f"{folder} has no {path.name}, which {INDEX} names") from error
        except Exception as error:  # the library's own error, and those of the system
            raise InvalidModelFile(f"{path} is not readable: {first_line(error)}") from error
    return Tensors(places)


def _files(folder: Path) -> list[Path]:
    """Return a model's files; others may lie beside them, e.g. consolidated.safetensors."""
    if (folder / INDEX).is_file():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(
            isinstance(name, str) for name in shards.values()
        ):
            raise InvalidModelFile(f"{folder / INDEX} has no weight_map of file names")
        return [folder / Path(name).name for name in sorted(set(shards.values()))]
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise InvalidModelFile(
            f"{folder} has no .safetensors file: save the model with transformers' save_pretrained"
        )
    return paths


def integer(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Return a whole number of config.json.

    Raises:
        InvalidModelFile: it is missing without a default, or no whole number.
    """
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidModelFile(f"config.json: {name!r} is {value!r}, and has to be a whole number")
    return value


def number(config: Mapping[str, Any], name: str, default: float) -> float:
    """Return a positive number of config.json; raise InvalidModelFile otherwise."""
    value = config.get(name)
    return check_positive(f"config.json: {name!r}", default if value is None else value)


def check_tensors(
    tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], ignored: tuple[str, ...]
) -> None:
    """Compare a folder's tensors with those that its architecture has.

    Raises:
        InvalidModelFile: some are missing, have other shapes, or are not known.
    """
    missing = [name for name in shapes if name not in tensors.places]
    if missing:
        raise InvalidModelFile(f"tensors are missing: {assets.listed(missing)}")
    unknown = [name for name in tensors.places if name not in shapes and not name.endswith(ignored)]
    if unknown:
        raise InvalidModelFile(
            f"tensors that this architecture does not have: {assets.listed(sorted(unknown))}; "
            "another one goes by the same name"
        )
    for name, expected in shapes.items():
        shape = tensors.shape(name)
        if shape != expected:
            raise InvalidModelFile(
                f"tensor {name} has the shape {list(shape)}, and config.json says {list(expected)}"
            )
