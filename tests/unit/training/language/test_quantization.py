"""Blocks of 4 and 8 bits: exact where they can be, near otherwise."""

import numpy as np
import pytest

from training.language.graph.quantization import QuantisedMatrix, to_int4, to_int8


def matrix(rows: int = 12, columns: int = 96, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize(("fit", "limit"), [(to_int4, 0.085), (to_int8, 0.007)])
def test_error_is_that_of_the_bits(fit: object, limit: float) -> None:
    values = matrix()

    rounded = fit(values).dequantise()  # type: ignore[operator]

    assert np.linalg.norm(rounded - values) / np.linalg.norm(values) < limit


def test_one_sided_blocks_keep_their_range() -> None:
    values = np.abs(matrix()) + 0.1

    rounded = to_int4(values).dequantise()

    assert np.linalg.norm(rounded - values) / np.linalg.norm(values) < 0.085


@pytest.mark.parametrize("value", [0.0, 1.5, -3.0, 1e-30])
def test_constant_blocks_keep_their_value(value: float) -> None:
    values = np.full((3, 64), value, np.float32)

    for fit in (to_int4, to_int8):
        np.testing.assert_allclose(fit(values).dequantise(), values, rtol=1e-6, atol=1e-37)


def test_rows_in_parts_give_the_same_as_all_at_once() -> None:
    values = matrix(rows=50)

    parts, whole = to_int4(values, rows_at_once=7), to_int4(values)

    for name in ("packed", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_odd_number_of_blocks_has_a_padded_zero() -> None:
    quantised: QuantisedMatrix = to_int4(matrix(columns=96))

    assert quantised.zeros is not None
    assert quantised.packed.shape == (12, 3, 16)
    assert quantised.zeros.shape == (12, 2)
    assert (quantised.rows, quantised.columns) == (12, 96)
