"""Agreement of a shadow's answer with the answer that the caller got."""

import numpy as np
import pytest

from functions.core.protocol.signature import TensorSpec
from functions.core.protocol.tensors import Tensor
from functions.core.traffic import agreement
from functions.core.traffic.agreement import Tolerance, agrees
from tests.arrays import to_tensor

CLASSES = TensorSpec("y", "FP32", (-1, 2), labels=("no", "yes"))
VALUES = TensorSpec("y", "FP32", (-1, 2))


def floats(*rows: tuple[float, ...]) -> Tensor:
    return to_tensor(np.array(rows, np.float32))


def agree(answer: Tensor, copy: Tensor, spec: TensorSpec = VALUES) -> bool:
    return agrees({"y": answer}, {"y": copy}, [spec], Tolerance(rtol=0.1, atol=0.01))


def test_of_labelled_scores_the_classes_are_compared() -> None:
    answer = floats((0.1, 0.9), (0.8, 0.2))

    assert agree(answer, floats((-7, 3), (0.51, 0.5)), CLASSES)
    assert not agree(answer, floats((-7, 3), (0.5, 0.51)), CLASSES)


def test_floats_may_differ_by_the_tolerance_of_the_manifest() -> None:
    answer = floats((1.0, 100.0))

    assert agree(answer, floats((1.09, 109.0)))
    assert not agree(answer, floats((1.12, 100.0)))
    assert not agree(answer, floats((1.0, np.nan)))
    assert agree(floats((np.nan, np.inf)), floats((np.nan, np.inf)))
    assert not agree(floats((1.0, np.inf)), floats((1.0, -np.inf)))
    assert not agree(floats((1.0, np.inf)), floats((1.0, 5.0)))


@pytest.mark.parametrize(
    ("answer", "copy"),
    [
        (floats((1, 2)), floats((1, 2), (1, 2))),
        (floats((1, 2)), Tensor("FP64", (1, 2), np.array([1.0, 2.0]).tobytes())),
        (to_tensor(np.array([1, 2])), to_tensor(np.array([1, 3]))),
        (Tensor("BYTES", (1,), [b"a"]), Tensor("BYTES", (1,), [b"b"])),
        (to_tensor(np.array([True])), to_tensor(np.array([False]))),
    ],
    ids=["shape", "datatype", "integers", "texts", "booleans"],
)
def test_all_else_has_to_be_equal(answer: Tensor, copy: Tensor) -> None:
    assert not agree(answer, copy)
    assert not agree(answer, copy, CLASSES)
    assert agree(answer, answer)


def test_outputs_without_values_agree() -> None:
    for spec in (VALUES, CLASSES):
        assert agree(floats(), floats(), spec)
        assert agree(Tensor("FP32", (2, 0), b""), Tensor("FP32", (2, 0), bytearray()), spec)


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_a_large_output_is_compared_in_its_first_part(
    datatype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "ELEMENTS_MAX", 4)
    size = {"FP16": 2, "FP32": 4, "FP64": 8, "BF16": 2}[datatype]
    answer = Tensor(datatype, (4, 2), bytes(8 * size))
    late = Tensor(datatype, (4, 2), bytes(7 * size) + b"\x11" * (size - 1) + b"\x44")
    soon = Tensor(datatype, (4, 2), b"\x11" * (size - 1) + b"\x44" + bytes(7 * size))

    assert agree(answer, late)
    assert not agree(answer, soon)
    assert agree(answer, late, CLASSES)


def test_only_the_outputs_of_the_reply_are_compared() -> None:
    specs = [VALUES, TensorSpec("z", "FP32", (-1,))]

    assert agrees({"y": floats((1, 2))}, {"y": floats((1, 2))}, specs, Tolerance())
