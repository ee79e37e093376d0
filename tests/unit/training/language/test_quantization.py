"""Blocks of 4 and 8 bits: exact where they can be, near otherwise."""

import numpy as np
import pytest

from training.language.graph.quantization import QuantisedMatrix, block_sums, to_int4, to_int8


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


def test_nearly_constant_blocks_keep_their_values_beside_others() -> None:
    """A line of least squares over equal numbers has no scale, which would lose the values."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((64, 4, 1)) * 10 ** random.uniform(-4, 2, (64, 4, 1))
    spreads = np.abs(centres) * 10 ** random.uniform(-6, 1, (64, 4, 1))
    values = (centres + spreads * random.standard_normal((64, 4, 32))).astype(np.float32)

    quantised = to_int4(values.reshape(64, 128))

    ranges = np.maximum(values.max(-1), 0) - np.minimum(values.min(-1), 0)
    errors = np.abs(quantised.dequantise().reshape(values.shape) - values).max(-1)
    assert (quantised.scales[:, :4] > 0).all()
    assert (errors / ranges).max() < 1.2 / 15  # a step, half of it for the number


def test_rows_in_parts_give_the_same_as_all_at_once() -> None:
    values = matrix(rows=50)

    parts, whole = to_int4(values, rows_at_once=7), to_int4(values)

    for name in ("packed", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_odd_number_of_blocks_has_a_padded_zero() -> None:
    quantised: QuantisedMatrix = to_int4(grid(columns=96, offset=0))

    assert quantised.zeros is not None
    assert quantised.packed.shape == (12, 3, 16)
    assert quantised.zeros.shape == (12, 2)
    assert (quantised.rows, quantised.columns, quantised.inputs) == (12, 96, 96)


def grid(columns: int, offset: float, levels: int = 16) -> np.ndarray:
    """Make a matrix with 4-bit numbers times a scale of each block, and an offset in steps."""
    random = np.random.default_rng(0)
    numbers = random.integers(0, levels, (12, columns // 32, 32))
    numbers[..., :2] = 0, levels - 1
    scales = random.uniform(0.5, 1.5, (12, columns // 32, 1))
    values = (numbers - levels // 2 + offset) * scales
    return values.reshape(12, columns).astype(np.float32)


@pytest.mark.parametrize("levels", [16, 15, 11, 8, 5, 3])
def test_symmetric_grids_keep_their_values_without_offsets(levels: int) -> None:
    values = grid(64, 0, levels)

    quantised = to_int4(values)

    assert not quantised.offset
    np.testing.assert_allclose(quantised.dequantise(), values, atol=1e-5)


@pytest.mark.parametrize("columns", [64, 96, 32 * 40])
@pytest.mark.parametrize("levels", [16, 13, 6])
def test_grids_with_an_offset_keep_their_numbers(columns: int, levels: int) -> None:
    values = grid(columns, 0.4, levels)

    quantised = to_int4(values)
    errors = quantised.dequantise() - values

    assert quantised.offset
    assert quantised.inputs == columns + columns // 32
    # The same for all values of a block: its offset's, of 4 bits, not that of the numbers.
    blocks = errors.reshape(12, -1, 32)
    np.testing.assert_allclose(blocks, blocks[..., :1].repeat(32, axis=-1), atol=1e-5)
    assert np.abs(errors).max() < 1.5 / 20


def test_offsets_of_zero_change_nothing() -> None:
    quantised = to_int4(grid(96, 0))

    widened = quantised.with_offsets()

    assert widened.offset
    np.testing.assert_array_equal(widened.dequantise(), quantised.dequantise())
    assert widened.with_offsets() is widened


@pytest.mark.parametrize("columns", [32, 96, 32 * 40])
def test_sums_of_blocks_are_exact(columns: int) -> None:
    x = matrix(columns=columns)

    sums = x @ block_sums(columns).dequantise().T

    np.testing.assert_allclose(sums, x.reshape(12, -1, 32).sum(axis=-1), atol=1e-4)
