"""Blockwise quantisation of matrices to 4 or 8 bits for MatMulNBits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.language.checkpoint import BLOCK, Array


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """Matrix (rows, columns) quantised in blocks to 4 or 8 bits.

    A value is (number - zero) x scale, with zero and scale of its block.
    `packed` is (rows, blocks, bytes), of 4 bits with the even columns in the lower halves.
    `scales` is (rows, blocks). `zeros` is (rows, bytes), packed likewise; None: half the range.
    """

    packed: NDArray[np.uint8]
    scales: Array
    zeros: NDArray[np.uint8] | None
    bits: int

    @property
    def rows(self) -> int:
        rows: int = self.packed.shape[0]
        return rows

    @property
    def columns(self) -> int:
        blocks: int = self.scales.shape[1]
        return blocks * BLOCK

    def dequantise(self) -> Array:
        """Return the matrix as float32."""
        rows, blocks = self.scales.shape
        numbers = _unpack(self.packed) if self.bits == 4 else self.packed
        zeros: Array = np.full((rows, blocks), 2 ** (self.bits - 1), np.float32)
        if self.zeros is not None:
            zeros = _unpack(self.zeros)[:, :blocks].astype(np.float32)
        values = numbers.reshape(rows, blocks, BLOCK) - zeros[..., None]
        return (values * self.scales[..., None]).reshape(rows, -1).astype(np.float32)


def _unpack(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def _pack(numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack pairs of 4-bit numbers of the last axis into bytes.

    >>> _pack(np.array([[1, 2, 3]], np.uint8))
    array([[33,  3]], dtype=uint8)
    """
    if numbers.shape[-1] % 2:
        numbers = np.concatenate([numbers, np.zeros_like(numbers[..., :1])], axis=-1)
    return np.bitwise_or(numbers[..., ::2], np.left_shift(numbers[..., 1::2], 4, dtype=np.uint8))


def to_int8(matrix: Array) -> QuantisedMatrix:
    """Quantise a matrix to 8 bits with symmetric blocks.

    Weights that were 8-bit blocks of 32 before (GGUF's Q8_0) keep their values.
    """
    blocks = matrix.reshape(len(matrix), -1, BLOCK)
    scales = np.abs(blocks).max(axis=-1) / np.float32(127)
    divisors = np.where(scales > 0, scales, 1)[..., None]
    numbers = (np.rint(blocks / divisors) + 128).astype(np.uint8)
    return QuantisedMatrix(numbers, scales.astype(np.float32), None, bits=8)


def to_int4(matrix: Array, rows_at_once: int = 4096) -> QuantisedMatrix:
    """Quantise a matrix to 4 bits with the best fit per block.

    Weights that were symmetric 4-bit blocks of 32 before (GGUF's Q4_0) keep their values. Others
    get the scale and zero with the smallest square error.
    """
    parts = [
        _fit(matrix[start : start + rows_at_once].reshape(-1, BLOCK))
        for start in range(0, len(matrix), rows_at_once)
    ]
    numbers, scales, zeros = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    rows = len(matrix)
    return QuantisedMatrix(
        _pack(numbers.reshape(rows, -1, BLOCK)),
        scales.reshape(rows, -1),
        _pack(zeros.reshape(rows, -1)),
        bits=4,
    )


def _fit(blocks: Array) -> tuple[NDArray[np.uint8], Array, NDArray[np.uint8]]:
    """Fit numbers (n, 32), scales (n,), zeros (n,) to blocks (n, 32)."""
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    furthest = np.where(-low > high, low, high)  # gets the number 0, so that 16 levels are used
    symmetric = furthest / np.float32(-8), np.full(len(blocks), 8, np.float32)
    range_scales = (np.maximum(high, 0) - np.minimum(low, 0)) / np.float32(15)
    zeros = np.rint(-np.minimum(low, 0) / np.where(range_scales > 0, range_scales, 1))
    best: tuple[NDArray[np.uint8], Array, Array] | None = None
    errors = np.full(len(blocks), np.inf, np.float32)
    for scales, zero in (symmetric, (range_scales, zeros)):
        for _ in range(2):  # as it is, and with the scale that fits the rounded numbers best
            safe = np.where(scales == 0, 1, scales)
            numbers = np.clip(np.rint(blocks / safe[:, None]) + zero[:, None], 0, 15)
            steps = numbers - zero[:, None]
            error = ((blocks - steps * scales[:, None]) ** 2).sum(axis=1)
            better = error < errors
            candidate = numbers.astype(np.uint8), scales.astype(np.float32), zero
            best = candidate if best is None else _choose(better, candidate, best)
            errors = np.minimum(error, errors)
            squares = (steps**2).sum(axis=1)
            scales = (blocks * steps).sum(axis=1) / np.where(squares > 0, squares, 1)
    assert best is not None  # noqa: S101  # the loop has run
    return best[0], best[1], best[2].astype(np.uint8)


def _choose(
    better: NDArray[np.bool_],
    new: tuple[NDArray[np.uint8], Array, Array],
    old: tuple[NDArray[np.uint8], Array, Array],
) -> tuple[NDArray[np.uint8], Array, Array]:
    return (
        np.where(better[:, None], new[0], old[0]),
        np.where(better, new[1], old[1]),
        np.where(better, new[2], old[2]),
    )
