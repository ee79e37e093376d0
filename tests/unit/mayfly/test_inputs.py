"""Inputs of `mayfly call`, and the forms of its output."""

import io
import json
import sys
import wave
from array import array
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mayfly.cli import inputs, output
from mayfly.client.errors import InvalidInput
from mayfly.client.tensors.numpy_codec import encode
from mayfly.client.tensors.signature import Signature, TensorSpec


def signature(*specs: TensorSpec, **properties: str) -> Signature:
    return Signature("m", 1, specs, (), properties)


def spec(*shape: int, name: str = "x", datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name, datatype, shape)


ONE = signature(spec(-1, 3))


@pytest.mark.parametrize("text", ["[[1, 2, 3]]", '{"x": [[1, 2, 3]]}', "1.5"])
def test_json_is_given_itself_or_in_a_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "input.json"
    path.write_text(text)

    assert inputs.read(str(path), ONE) == inputs.read(text, ONE) == json.loads(text)


def test_standard_input_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1]"))

    assert inputs.read("-", ONE) == [1]


def test_a_request_of_the_protocol_is_read() -> None:
    tensor = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [[1, 2, 3], [4, 5, 6]]}

    assert inputs.read(json.dumps({"inputs": [tensor]}), ONE) == {"x": [[1, 2, 3], [4, 5, 6]]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,3\n4,5,6\n", [[1, 2, 3], [4, 5, 6]]),
        ("a,b,c\n1,2,3\n", [[1, 2, 3]]),
        ("c,a,b\n3,1,2\n", [[1, 2, 3]]),  # by the columns' names
        ("\ufeffid,a,b,c\n9,1,2,3\n", [[1, 2, 3]]),
    ],
)
def test_a_table_is_read_by_its_columns(
    text: str, expected: list[list[float]], tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    columns = signature(spec(-1, 3), **{"columns.x": json.dumps(["a", "b", "c"])})

    assert inputs.read(str(path), columns) == expected


def test_a_table_fills_the_inputs_of_its_heads() -> None:
    two = signature(
        spec(-1, 1, name="age", datatype="INT64"), spec(-1, 1, name="town", datatype="BYTES")
    )

    assert inputs.from_csv("town,age\nBern,7\n", two) == {"age": [[7]], "town": [["Bern"]]}


def test_an_image_has_the_shape_of_the_input(tmp_path: Path) -> None:
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 5
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    colour = spec(-1, 3, 4, 4)
    shape, content = encode(colour, inputs.read(str(path), signature(colour)))

    assert shape == (1, 3, 4, 4)
    expected = (pixels / 255).astype(np.float32).transpose(2, 0, 1)
    np.testing.assert_array_equal(np.frombuffer(content, "<f4").reshape(3, 4, 4), expected)
    grey = spec(-1, 2, 2, datatype="UINT8")
    assert encode(grey, inputs.read(str(path), signature(grey)))[0] == (1, 2, 2)


@pytest.mark.parametrize(("length", "expected"), [(-1, 3), (2, 2), (5, 5)])
def test_a_sound_is_mono_and_as_long_as_the_input(
    length: int, expected: int, tmp_path: Path
) -> None:
    path = tmp_path / "sound.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(array("h", [16384, 0, -32768, -32768, 0, 0]).tobytes())

    samples = inputs.read(str(path), signature(spec(-1, length)))
    assert len(samples) == expected
    assert samples[:2] == [0.25, -1.0]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("none.json", "there is no file none.json"),
        ("[1, 2", "is no JSON"),
        ('{"inputs": [{"name": "x"}]}', "inputs need name, shape and data"),
    ],
)
def test_an_input_that_cannot_be_read_says_why(source: str, text: str) -> None:
    with pytest.raises(InvalidInput, match=text.replace("[", r"\[")):
        inputs.read(source, ONE)


@pytest.mark.parametrize(
    ("text", "error"), [("a,b\n1,2\n", "lacks the column 'c'"), ("1,x,3\n", "'x' is no number")]
)
def test_a_table_that_does_not_fit_says_why(text: str, error: str) -> None:
    columns = signature(spec(-1, 3), **{"columns.x": json.dumps(["a", "b", "c"])})
    with pytest.raises(InvalidInput, match=error):
        inputs.from_csv(text, columns)


def test_a_sample_has_the_declared_shapes() -> None:
    both = signature(spec(-1, 2), spec(-1, name="text", datatype="BYTES"))

    assert inputs.made(both) == {"x": [[0, 0]], "text": ["text"]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([[1.5, 2]], [[1.5, 2]]), (np.array([[1.5, 2]]), [[1.5, 2]]), ([[b"a"]], [["a"]]), (3, 3)],
)
def test_values_become_json_with_numpy_and_without(values: Any, expected: Any) -> None:
    assert output.plain(values) == expected


def test_tables_are_as_wide_as_their_cells() -> None:
    rows: list[list[Any]] = [["digits", 7, None], ["日本", 12, "x"]]

    assert output.table(["MODEL", "PROD", "NOTE"], rows) == (
        "MODEL   PROD  NOTE\ndigits     7\n日本      12  x"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "just now"), (61, "1 minute ago"), (7300, "2 hours ago"), (-90_000, "1 day from now")],
)
def test_times_are_relative(seconds: int, text: str) -> None:
    now = datetime(2026, 11, 30, 12, tzinfo=UTC)
    moment = datetime.fromtimestamp(now.timestamp() - seconds, UTC).isoformat()

    assert output.age(moment, now) == text
