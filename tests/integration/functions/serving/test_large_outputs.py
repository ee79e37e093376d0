"""Tests that outputs too large for a reply are refused without copying."""

import mmap
from ctypes import addressof, c_char
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx import helper

from functions.adapters.onnx import runs
from functions.adapters.onnx.sessions import OnnxRuntime, OnnxSession
from functions.core.errors import PayloadTooLarge
from functions.core.protocol.infer_reply import REPLY_BYTES_MAX
from tests.arrays import to_tensor

FILL = "fill (int64[1] n) => (float[] y) { y = ConstantOfShape(n) }"
TEXTS = """texts (int64[1] n) => (string[] y)
    { s = Cast <to = 8> (n) y = Expand(s, n) }"""


def load(directory: Path, text: str) -> OnnxSession:
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(onnx.parser.parse_graph(text), opset_imports=opset, ir_version=10)
    path = directory / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return OnnxRuntime().load(path)


def size(n: int) -> dict[str, Any]:
    return {"n": to_tensor(np.int64([n]))}


@pytest.fixture
def no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(*_: object) -> None:
        raise AssertionError("the output was copied")

    monkeypatch.setattr(runs, "_copy", copy)
    monkeypatch.setattr(runs.Run, "_read_strings", copy)


@pytest.mark.usefixtures("no_copy")
@pytest.mark.parametrize(
    ("model", "n", "bytes_"),
    [
        (FILL, REPLY_BYTES_MAX + 1, 4 * (REPLY_BYTES_MAX + 1)),
        pytest.param(FILL, 2**29, 2**31, marks=pytest.mark.slow),  # more than a C int holds
        (TEXTS, 1_000_000, 10_000_000),
    ],
)
def test_an_output_too_large_for_a_reply_is_not_copied(
    tmp_path: Path, model: str, n: int, bytes_: int
) -> None:
    session = load(tmp_path, model)

    with pytest.raises(PayloadTooLarge) as refused:
        session.run(size(n), ["y"], 60, REPLY_BYTES_MAX)

    text = f"output 'y' of shape [{n}] takes {bytes_} bytes and a reply at most {REPLY_BYTES_MAX}"
    assert text in str(refused.value)


@pytest.mark.parametrize(("model", "n"), [(FILL, REPLY_BYTES_MAX), (TEXTS, 100_000)])
def test_an_output_that_may_fit_is_copied(tmp_path: Path, model: str, n: int) -> None:
    session = load(tmp_path, model)

    assert session.run(size(n), ["y"], 60, REPLY_BYTES_MAX)["y"].shape == (n,)
    assert session.run(size(n + 1), ["y"], 60)["y"].shape == (n + 1,)  # as at registration


@pytest.mark.slow
def test_two_gigabytes_are_copied() -> None:
    count = 2**31 + 1
    with mmap.mmap(-1, count) as memory:
        memory[-1] = 7
        first = c_char.from_buffer(memory)

        copied = runs._copy(addressof(first), count)

        del first
    assert (len(copied), copied[-1]) == (count, 7)
