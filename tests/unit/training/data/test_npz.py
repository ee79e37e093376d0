"""Arrays of .npz files: tensors, or one sentence about the mistake."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.training.data.user_files import npz
from training.data import files
from training.errors import (
    InvalidData,
    InvalidValue,
    MissingColumn,
    NoRows,
    UnknownLabel,
    WrongShape,
)

pytestmark = pytest.mark.train


def test_arrays_are_inputs_by_their_name(tmp_path: Path) -> None:
    data = files.arrays(
        npz(tmp_path, speaker=np.arange(60) // 5, tokens=np.ones((60, 2), np.int16)),
        target="y",
        groups="speaker",
    )

    assert {
        name: (values.shape[1:], values.dtype) for name, values in data.train.inputs.items()
    } == {
        "image": ((4, 4), np.float32),
        "tokens": ((2,), np.int64),
    }
    assert data.labels == ("0", "1", "2")
    assert not set(data.train.groups) & set(data.test.groups)


def test_array_targets_are_class_names_or_values(tmp_path: Path) -> None:
    named = files.arrays(
        npz(tmp_path / "a", y=np.array(list("cab"))[np.arange(60) % 3]), target="y"
    )
    valued = files.arrays(npz(tmp_path / "b", y=np.linspace(0, 1, 60)), target="y")

    assert named.labels == ("a", "b", "c")
    assert (valued.train.target.dtype, valued.labels) == (np.float32, ())


@pytest.mark.parametrize("unit", ["number", "datetime64[s]"])
def test_arrays_are_split_by_time(tmp_path: Path, unit: str) -> None:
    seconds = 1_700_000_000 + np.random.default_rng(0).permutation(60)
    times = seconds.astype(float) if unit == "number" else seconds.astype(unit)

    data = files.arrays(npz(tmp_path, when=times), target="y", time="when")

    assert list(data.train.inputs) == ["image"]
    assert data.split["by"] == "time"
    assert sorted(data.test.times) == sorted(times)[-12:]
    assert max(data.train.times) < min(data.validation.times)


@pytest.mark.parametrize(
    ("more", "options", "error", "message"),
    [
        (
            {"when": np.where(np.arange(60) == 7, np.nan, 1.0)},
            {"time": "when"},
            InvalidValue,
            "a.npz, row 8: 'when' is no time",
        ),
        (
            {"when": np.array(["NaT"] * 60, "datetime64[s]")},
            {"time": "when"},
            InvalidValue,
            "a.npz, row 1: 'when' is no time",
        ),
        (
            {"when": np.array(["May"] * 60)},
            {"time": "when"},
            InvalidValue,
            "a.npz: times 'when' are str96 of shape [60]; give one number or datetime64 a row",
        ),
        (
            {"when": np.arange(60)},
            {"time": "when", "groups": "when"},
            InvalidData,
            "split by groups or by time",
        ),
        ({}, {"target": "label"}, MissingColumn, "a.npz has no array 'label'; it has 'image', 'y'"),
        ({}, {"inputs": ["sound"]}, MissingColumn, "a.npz has no array 'sound'"),
        ({"y": np.arange(59)}, {}, WrongShape, "a.npz: 'image' has 60 rows and 'y' has 59"),
        (
            {"image": np.where(np.arange(60) == 7, np.nan, 1.0)},
            {},
            InvalidValue,
            "a.npz, row 8: 'image' holds a NaN",
        ),
        (
            {"y": np.arange(60) % 3 - 1},
            {},
            UnknownLabel,
            "a.npz, row 1, 'y': '-1' is none of the labels '0', '1'",
        ),
        (
            {},
            {"labels": ["a", "b"]},
            UnknownLabel,
            "a.npz, row 3, 'y': '2' is none of the labels '0', '1'",
        ),
        ({"image": np.zeros((0, 4)), "y": np.zeros(0)}, {}, NoRows, "a.npz: 'y' has no rows"),
        ({"image": np.zeros(60, complex)}, {}, InvalidValue, "a.npz: 'image' holds complex128"),
        (
            {"image": np.array([{}] * 60)},
            {},
            InvalidData,
            "a.npz holds pickled objects, which are refused",
        ),
    ],
    ids=[
        "time nan",
        "time missing",
        "time text",
        "groups and time",
        "no target",
        "no input",
        "rows",
        "nan",
        "negative class",
        "unknown class",
        "no rows",
        "complex",
        "pickle",
    ],
)
def test_a_mistake_in_arrays_is_one_sentence(
    tmp_path: Path, more: Any, options: Any, error: type, message: str
) -> None:
    with pytest.raises(InvalidData) as caught:
        files.arrays(npz(tmp_path, **more), **{"target": "y"} | options)

    assert message in str(caught.value)
    assert type(caught.value) is error


def test_arrays_of_other_shapes_and_other_formats_are_errors(tmp_path: Path) -> None:
    npz(tmp_path / "a", "1.npz")
    npz(tmp_path / "a", "2.npz", image=np.zeros((60, 5, 4)))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.npz").write_bytes(b"PK\x03\x04 torn")
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "b.npy").rename(tmp_path / "y.npz")

    with pytest.raises(
        WrongShape,
        match=r"^2.npz: a row of 'image' has shape \[5, 4\], those before have \[4, 4\]$",
    ):
        files.arrays(tmp_path / "a", target="y")
    for where, name in [(tmp_path / "b", "x"), (tmp_path / "y.npz", "y")]:
        with pytest.raises(InvalidData, match=f"^{name}.npz is no .npz file, or is damaged$"):
            files.arrays(where, target="y")
