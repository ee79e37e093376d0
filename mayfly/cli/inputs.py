"""Inputs of a call: JSON, CSV, images, sounds, zeros."""

import csv
import io
import json
import sys
import wave
from array import array
from pathlib import Path
from typing import Any

from mayfly.client.errors import InvalidInput, NotConfigured
from mayfly.client.tensors.nesting import named, nested
from mayfly.client.tensors.signature import Signature, TensorSpec

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")


def read(source: str, signature: Signature) -> Any:
    """Return inputs from a file, standard input, or JSON itself.

    Raises:
        InvalidInput: there is no such file, or it cannot be read.
    """
    if source == "-":
        return from_json(sys.stdin.read(), "standard input")
    if source[:1] in "[{" or _is_number(source):
        return from_json(source, "the input")
    path = Path(source)
    if not path.is_file():
        raise InvalidInput(f"there is no file {source}: name a .json, .csv, image or .wav, or - ")
    kind = path.suffix.lower()
    if kind in IMAGES:
        return from_image(path, signature)
    if kind == ".wav":
        return from_wav(path, signature)
    if kind == ".csv":
        return from_csv(path.read_text(encoding="utf-8-sig"), signature)
    return from_json(path.read_text(), path.name)


def from_json(text: str, name: str) -> Any:
    """Return values from JSON: lists, a dict, or a protocol request.

    >>> from_json('{"inputs": [{"name": "x", "shape": [1, 2], "data": [1, 2]}]}', "the input")
    {'x': [[1, 2]]}
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{name} is no JSON: {error}") from None
    tensors = document.get("inputs") if isinstance(document, dict) else None
    if isinstance(tensors, list) and all(isinstance(row, dict) for row in tensors):
        try:
            return named(tensors)
        except (KeyError, TypeError, IndexError) as error:
            raise InvalidInput(f"{name}: inputs need name, shape and data: {error}") from None
    return document


def from_csv(text: str, signature: Signature) -> Any:
    """Return rows of a table, whose first row may name the columns."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if rows and not any(map(_is_number, rows[0])):
        heads, rows = rows[0], rows[1:]
        by_name = {spec.name: spec for spec in signature.inputs}
        if set(heads) >= set(by_name) and len(by_name) > 1:
            return {
                name: [[_cell(spec, row[heads.index(name)])] for row in rows]
                for name, spec in by_name.items()
            }
        rows = _in_order(heads, rows, signature)
    spec = signature.inputs[0]
    return [[_cell(spec, cell) for cell in row] for row in rows]


def _in_order(heads: list[str], rows: list[list[str]], signature: Signature) -> list[list[str]]:
    """Put the columns in the model's order, where it names them."""
    names = signature.properties.get(f"columns.{signature.inputs[0].name}")
    if not names:
        return rows
    columns = json.loads(names)
    missing = [name for name in columns if name not in heads]
    if missing:
        raise InvalidInput(f"the table lacks the column {missing[0]!r} of {signature.model}")
    return [[row[heads.index(name)] for name in columns] for row in rows]


def _cell(spec: TensorSpec, cell: str) -> Any:
    if spec.datatype == "BYTES":
        return cell
    if not cell.strip():
        return float("nan")
    if not _is_number(cell):
        raise InvalidInput(f"input {spec.name!r}: {cell!r} is no number", input=spec.name)
    return float(cell) if spec.kind.kind == "f" else int(float(cell))


def from_image(path: Path, signature: Signature) -> Any:
    """Return an image in the input's shape, values 0 to 1.

    Integer inputs get 0 to 255."""
    try:
        from PIL import Image
    except ImportError:
        raise NotConfigured("images need Pillow: pip install pillow") from None
    spec = signature.inputs[0]
    *_, channels, height, width = _with_image_shape(spec)
    mode = "L" if channels == 1 else "RGB"
    with Image.open(path) as picture:
        pixels = picture.convert(mode).resize((width, height)).tobytes()
    values = list(pixels) if spec.kind.kind == "i" else [byte / 255 for byte in pixels]
    planes = [values[channel::channels] for channel in range(channels)]
    flat = [value for plane in planes for value in plane]
    return nested(flat, [1] * (len(spec.shape) - 3) + [channels, height, width][-len(spec.shape) :])


def _with_image_shape(spec: TensorSpec) -> list[int]:
    shape = list(spec.shape)
    if len(shape) < 2 or -1 in shape[-2:]:
        raise InvalidInput(f"input {spec.name!r} {shape} has no fixed height and width")
    if len(shape) == 2:
        return [1, *shape]
    if len(shape) == 3:  # a batch of grey pictures, or planes of one
        return [shape[0] if shape[0] == 3 else 1, *shape[1:]]
    return [shape[-3] if shape[-3] in (1, 3) else 1, *shape[-2:]]


def from_wav(path: Path, signature: Signature) -> Any:
    """Return a 16-bit sound as mono samples from -1 to 1.

    It is cut or filled with silence to the length that the input declares."""
    try:
        with wave.open(str(path)) as sound:
            channels, width = sound.getnchannels(), sound.getsampwidth()
            frames = sound.readframes(sound.getnframes())
    except (wave.Error, EOFError) as error:
        raise InvalidInput(f"{path.name} is no WAV: {error}") from None
    if width != 2:
        raise InvalidInput(f"{path.name} has {8 * width} bits: save it with 16")
    samples = array("h", frames)
    if sys.byteorder == "big":
        samples.byteswap()
    mono = [
        sum(samples[at : at + channels]) / channels / 32768
        for at in range(0, len(samples), channels)
    ]
    length = signature.inputs[0].shape[-1]
    return mono if length < 0 else (mono + [0.0] * length)[:length]


def made(signature: Signature) -> dict[str, Any]:
    """Return zeros in the declared shapes; free dimensions are 1."""
    inputs = {}
    for spec in signature.inputs:
        shape = [max(size, 1) for size in spec.shape]
        size = 1
        for dimension in shape:
            size *= dimension
        values: list[Any] = ["text" if spec.datatype == "BYTES" else 0] * size
        inputs[spec.name] = nested(values, shape)
    return inputs


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
