"""Blockwise quantisation of matrices to 4 or 8 bits for MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.language.checkpoint import BLOCK, Array

Numbers = NDArray[np.uint8]

LEVELS = 15  # steps between the least and the largest number of 4 bits
EXACT = 1e-3  # steps; an offset below it is a rounding error of float32
TINY = 1e-9  # square error of a block that was 4-bit before, over the square of its range
BETTER = 0.999  # a fit that is better by less is not: the first one is exact, or as good


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """Matrix (rows, columns) quantised in blocks to 4 or 8 bits.

    A value is (number - zero) x scale, with zero and scale of its block.
    `packed` is (rows, blocks, bytes), of 4 bits with the even columns in the lower halves.
    `scales` is (rows, blocks). `zeros` is (rows, bytes), packed likewise; None: half the range.

    Zeros are whole numbers. What they leave of a block's true offset may stand in more columns
    behind the others, one for each block: it is added to all values of its block. Such a matrix
    multiplies x and, behind it, the sums of x's blocks.
    """

    packed: Numbers
    scales: Array
    zeros: Numbers | None
    bits: int
    columns: int

    @property
    def rows(self) -> int:
        rows: int = self.packed.shape[0]
        return rows

    @property
    def offset(self) -> bool:
        """Blocks have offsets."""
        blocks: int = self.scales.shape[1]
        return blocks * BLOCK > self.columns

    @property
    def inputs(self) -> int:
        """Count the numbers that multiply a row: x and sums of blocks."""
        return self.columns + (self.columns // BLOCK if self.offset else 0)

    def dequantise(self) -> Array:
        """Return the matrix as float32."""
        rows, blocks = self.scales.shape
        numbers = _unpack(self.packed) if self.bits == 4 else self.packed
        zeros: Array = np.full((rows, blocks), 2 ** (self.bits - 1), np.float32)
        if self.zeros is not None:
            zeros = _unpack(self.zeros)[:, :blocks].astype(np.float32)
        values: Array = numbers.reshape(rows, blocks, BLOCK) - zeros[..., None]
        values *= self.scales[..., None]
        values = values.reshape(rows, -1)
        if not self.offset:
            return values
        offsets = values[:, self.columns : self.inputs]
        return values[:, : self.columns] + offsets.repeat(BLOCK, axis=1)

    def with_offsets(self) -> QuantisedMatrix:
        """Return the same matrix with offsets, of zero if it had none."""
        if self.offset or self.zeros is None:
            return self
        rows, blocks = self.scales.shape
        zeros = _unpack(self.zeros)[:, :blocks]
        return _matrix4(_unpack(self.packed), self.scales, zeros, np.zeros((rows, blocks)))


def _unpack(packed: Numbers) -> Numbers:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def _pack(numbers: Numbers) -> Numbers:
    """Pack pairs of 4-bit numbers of the last axis into bytes.

    >>> _pack(np.array([[1, 2, 3]], np.uint8))
    array([[33,  3]], dtype=uint8)
    """
    if numbers.shape[-1] % 2:
        numbers = np.concatenate([numbers, np.zeros_like(numbers[..., :1])], axis=-1)
    return np.bitwise_or(numbers[..., ::2], np.left_shift(numbers[..., 1::2], 4, dtype=np.uint8))


def block_sums(columns: int) -> QuantisedMatrix:
    """Return the matrix that sums each block of x.

    >>> block_sums(64).dequantise() @ np.arange(64)
    array([ 496., 1520.])
    """
    blocks = columns // BLOCK
    numbers = np.full((blocks, blocks, BLOCK), 8, np.uint8)
    numbers[np.arange(blocks), np.arange(blocks)] = 9
    scales = np.ones((blocks, blocks), np.float32)
    return QuantisedMatrix(_pack(numbers), scales, None, bits=4, columns=columns)


def to_int8(matrix: Array) -> QuantisedMatrix:
    """Quantise a matrix to 8 bits with symmetric blocks.

    Weights that were 8-bit blocks of 32 before (GGUF's Q8_0) keep their values.
    """
    blocks = matrix.reshape(len(matrix), -1, BLOCK)
    scales = np.maximum(blocks.max(axis=-1), -blocks.min(axis=-1)) / np.float32(127)
    steps = blocks / np.where(scales > 0, scales, 1)[..., None]
    np.rint(steps, out=steps)  # in place: an embedding takes hundreds of megabytes
    steps += 128
    columns = matrix.shape[1]
    packed = steps.astype(np.uint8)
    return QuantisedMatrix(packed, scales.astype(np.float32), None, bits=8, columns=columns)


def to_int4(matrix: Array, rows_at_once: int = 4096) -> QuantisedMatrix:
    """Quantise a matrix to 4 bits with the best-fitting blocks.

    Weights that were 4-bit blocks of 32 before (GGUF's Q4_0, Q4_1, Q4_K) keep their numbers.
    """
    parts = [
        _fit(matrix[start : start + rows_at_once].reshape(-1, BLOCK))
        for start in range(0, len(matrix), rows_at_once)
    ]
    numbers, scales, lows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    steps = np.divide(-lows, scales, out=np.zeros_like(lows), where=scales > 0)
    zeros = np.clip(np.rint(steps), 0, LEVELS)
    offsets = np.where(np.abs(steps - zeros) > EXACT, lows + zeros * scales, 0)
    shape = len(matrix), matrix.shape[1] // BLOCK
    return _matrix4(
        numbers.reshape(*shape, BLOCK),
        scales.reshape(shape),
        zeros.astype(np.uint8).reshape(shape),
        offsets.reshape(shape) if offsets.any() else None,
    )


def _matrix4(
    numbers: Numbers, scales: Array, zeros: Numbers, offsets: Array | None
) -> QuantisedMatrix:
    """Pack numbers (rows, blocks, 32) and offsets (rows, blocks)."""
    rows, blocks = scales.shape
    if offsets is not None:
        columns = np.pad(offsets, ((0, 0), (0, -blocks % BLOCK))).reshape(-1, BLOCK)
        more = [part.reshape(rows, -1, *part.shape[1:]) for part in _fit_symmetric(columns)]
        numbers, scales, zeros = (
            np.concatenate(pair, axis=1)
            for pair in zip((numbers, scales, zeros), more, strict=True)
        )
    return QuantisedMatrix(_pack(numbers), scales, _pack(zeros), bits=4, columns=blocks * BLOCK)


# --- the numbers of blocks


def _fit(blocks: Array) -> tuple[Numbers, Array, Array]:
    """Fit numbers (n, 32), scales (n,) and lows (n,) to blocks."""
    low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
    numbers, scales, lows, errors = _round(blocks, (high - low) / np.float32(LEVELS), low)
    # Blocks that had 4 bits before may not use all numbers; half of them or more, or a grid twice
    # as fine, they do.
    for levels in range(LEVELS - 1, LEVELS // 2, -1):
        rest = np.flatnonzero(errors > TINY * (high - low) ** 2)
        least = low[rest]
        new = _round(blocks[rest], (high[rest] - least) / np.float32(levels), least)
        better = new[-1] < errors[rest]
        for array, values in zip((numbers, scales, lows, errors), new, strict=True):
            array[rest[better]] = values[better]
    return numbers, scales, lows


def _round(blocks: Array, scales: Array, lows: Array) -> tuple[Numbers, Array, Array, Array]:
    """Return numbers of blocks, scales, lows and square errors.

    Scale and low become the line of least squares over the numbers, if that is better and has its
    zero among the numbers: what a whole zero leaves of it is then half a step at most, and the line
    of equal numbers would have no scale.
    """
    divisors = np.where(scales > 0, scales, 1)[:, None]
    numbers = np.clip(np.rint((blocks - lows[:, None]) / divisors), 0, LEVELS)
    errors = ((blocks - lows[:, None] - numbers * scales[:, None]) ** 2).sum(axis=1)
    centred = numbers - numbers.mean(axis=1, keepdims=True)
    squares = (centred**2).sum(axis=1)
    slopes = (blocks * centred).sum(axis=1) / np.where(squares > 0, squares, 1)
    starts = blocks.mean(axis=1) - slopes * numbers.mean(axis=1)
    fitted = ((blocks - starts[:, None] - numbers * slopes[:, None]) ** 2).sum(axis=1)
    inside = (slopes > 0) & (starts <= slopes / 2) & (-starts <= slopes * (LEVELS + 0.5))
    better = inside & (fitted < errors * BETTER)
    return (
        numbers.astype(np.uint8),
        np.where(better, slopes, scales).astype(np.float32),
        np.where(better, starts, lows).astype(np.float32),
        np.where(better, fitted, errors),
    )


def _fit_symmetric(blocks: Array) -> tuple[Numbers, Array, Numbers]:
    """Fit numbers (n, 32), scales (n,) and zeros of 8 to blocks."""
    furthest = np.abs(blocks).max(axis=1)
    best = np.zeros_like(blocks), np.zeros_like(furthest), np.full_like(furthest, np.inf)
    for steps in np.linspace(6.5, 8.5, 9, dtype=np.float32):  # from the largest value to 0
        scales = furthest / steps
        divisors = np.where(scales > 0, scales, 1)[:, None]
        numbers = np.clip(np.rint(blocks / divisors), -8, 7)
        errors = ((blocks - numbers * scales[:, None]) ** 2).sum(axis=1)
        better = errors < best[-1]
        for array, values in zip(best, (numbers, scales, errors), strict=True):
            array[better] = values[better]
    zeros = np.full(len(blocks), 8, np.uint8)
    return (best[0] + 8).astype(np.uint8), best[1].astype(np.float32), zeros
