"""Selection of tokens by ONNX Runtime equals numpy's."""

from typing import Any

import numpy as np
import pytest

from functions.adapters.language.logits import LogitsKernels, NativeLogits
from functions.adapters.onnx.sessions import OnnxRuntime

RUNTIME = OnnxRuntime()


def make(width: int, values: Any) -> NativeLogits:
    logits = NativeLogits(LogitsKernels(RUNTIME, width))
    np.frombuffer(logits.values, np.float32)[:] = values
    return logits


@pytest.mark.parametrize("width", [1, 7, 8, 300, 5003])
def test_the_likeliest_tokens_are_numpys(width: int) -> None:
    values = np.random.default_rng(width).standard_normal(width).astype(np.float32)
    logits = make(width, values)
    count = min(256, width)
    order = np.argsort(-values, kind="stable")[:count]

    candidates = logits.top(count, 0.5)

    assert logits.best() == order[0]
    assert candidates.tokens == order.tolist()
    assert candidates.logits == (values[order] / 2).tolist()
    assert candidates.normaliser == pytest.approx(np.logaddexp.reduce(values / 2.0), abs=1e-5)


@pytest.mark.parametrize("width", [1, 9, 300])
def test_a_mask_of_any_length_leaves_its_tokens(width: int) -> None:
    random = np.random.default_rng(width)
    values = random.standard_normal(width).astype(np.float32)
    allowed = random.random(width) < 0.3
    allowed[random.integers(width)] = True
    logits = make(width, values)
    mask = np.packbits(allowed, bitorder="little").tobytes()
    masked = np.where(allowed, values, -np.inf)

    for data in (mask, mask + bytes(8)):  # llguidance's masks are of whole words
        logits.restrict(data)
        assert logits.best() == masked.argmax()
        top = logits.top(int(allowed.sum()))
        assert top.tokens == np.argsort(-masked, kind="stable")[: allowed.sum()].tolist()
        assert top.normaliser == pytest.approx(np.logaddexp.reduce(values[allowed]), abs=1e-5)
    assert np.array_equal(logits.values, values)  # log probabilities read them
    logits.renew()
    assert logits.best() == values.argmax()


def test_a_mask_shorter_than_the_vocabulary_forbids_the_rest() -> None:
    logits = make(20, range(20))

    logits.restrict(b"\x0c")

    assert logits.best() == 3


def test_changes_of_single_logits_count() -> None:
    logits = make(10, range(10))

    logits.values[2] += 100.0

    assert logits.best() == 2
    assert logits.top(2).logits == [102.0, 9.0]


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", np.float16), ("FP32", np.float32)])
def test_logits_of_other_types_are_taken_over(datatype: str, dtype: Any) -> None:
    values = np.random.default_rng(5).standard_normal(11).astype(dtype)
    logits = make(11, 0)

    logits.copy(values.ctypes.data, datatype)

    assert np.array_equal(logits.values, values.astype(np.float32))


def test_bfloat16_logits_are_taken_over() -> None:
    values = np.random.default_rng(5).standard_normal(11).astype(np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    logits = make(11, 0)

    logits.copy(halves.ctypes.data, "BF16")

    assert np.array_equal(logits.values, (halves.astype(np.uint32) << 16).view(np.float32))
