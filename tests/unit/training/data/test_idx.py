"""IDX files: images and labels, or one sentence about the mistake."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data import files
from training.errors import (
    InvalidData,
    MissingColumn,
    UnknownLabel,
    WrongShape,
)

pytestmark = pytest.mark.train


def idx_file(path: Path, values: Any, kind: int = 0x08) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def mnist(folder: Path, ending: str = "") -> Path:
    generator = np.random.default_rng(0)
    for name, rows in (("train", 100), ("t10k", 20)):
        images = generator.integers(0, 256, (rows, 28, 28)).astype(np.uint8)
        images[0, 0, :2] = 0, 255
        idx_file(folder / f"{name}-images-idx3-ubyte{ending}", images)
        idx_file(
            folder / f"{name}-labels-idx1-ubyte{ending}", (np.arange(rows) % 10).astype(np.uint8)
        )
    return folder


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnists_files_are_read_with_their_own_test_part(tmp_path: Path, ending: str) -> None:
    data = files.idx(mnist(tmp_path, ending))

    assert [len(part) for part in (data.train, data.validation, data.test)] == [90, 10, 20]
    assert data.test.inputs["image"].shape == (20, 1, 28, 28)
    assert data.test.inputs["image"][0, 0, 0, :2].tolist() == [0, 1]
    assert data.test.target.tolist() == [number % 10 for number in range(20)]
    assert data.labels == tuple("0123456789")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda folder: (folder / "t10k-labels-idx1-ubyte").unlink(),
            MissingColumn,
            "has no file of labels beside it",
        ),
        (
            lambda folder: idx_file(folder / "train-labels-idx1-ubyte", np.zeros(99, np.uint8)),
            WrongShape,
            "train-images-idx3-ubyte has 100 images and train-labels-idx1-ubyte 99 labels",
        ),
        (
            lambda folder: idx_file(
                folder / "t10k-images-idx3-ubyte", np.zeros((20, 8, 8), np.uint8)
            ),
            WrongShape,
            "have shapes [20, 8, 8] and [20], not [n, 28, 28] and [n]",
        ),
        (
            lambda folder: idx_file(folder / "t10k-labels-idx1-ubyte", np.full(20, 11, np.uint8)),
            UnknownLabel,
            "t10k-labels-idx1-ubyte, row 1: '11' is none of the labels '0', '1'",
        ),
        (
            lambda folder: (folder / "train-images-idx3-ubyte").write_bytes(b"PNG..."),
            InvalidData,
            "no IDX file: it",
        ),
        (
            lambda folder: (folder / "train-images-idx3-ubyte").write_bytes(b"\0"),
            InvalidData,
            "no IDX file, or is cut",
        ),
        (
            lambda folder: (folder / "train-labels-idx1-ubyte").write_bytes(
                struct.pack(">HBBI", 0, 8, 1, 2**31)
            ),
            WrongShape,
            "has fewer bytes than its shape [2147483648] takes",
        ),
    ],
    ids=["no labels", "counts", "sizes", "class", "magic", "cut", "claims"],
)
def test_a_mistake_in_mnists_files_is_one_sentence(
    tmp_path: Path, change: Callable[[Path], None], error: type, message: str
) -> None:
    change(mnist(tmp_path))

    with pytest.raises(InvalidData) as caught:
        files.idx(tmp_path)

    assert message in str(caught.value)
    assert type(caught.value) is error
