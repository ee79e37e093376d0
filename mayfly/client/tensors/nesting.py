"""Nested lists of the protocol's JSON tensors."""

from collections.abc import Iterable, Mapping
from typing import Any


def named(tensors: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return tensors as nested lists by name, whatever form their data has.

    >>> named([{"name": "x", "shape": [1, 2], "data": [1, 2]}])
    {'x': [[1, 2]]}

    Raises:
        KeyError, TypeError, IndexError: a tensor lacks name, shape or data.
    """
    return {row["name"]: nested(flat(row["data"]), row["shape"]) for row in tensors}


def flat(value: Any) -> list[Any]:
    """Return the leaves of nested lists."""
    if not isinstance(value, list):
        return [value]
    return [leaf for part in value for leaf in flat(part)]


def nested(values: list[Any], shape: list[int]) -> Any:
    """Return flat values as nested lists of a shape."""
    if not shape:
        return values[0]
    if len(shape) == 1:
        return values
    step = len(values) // shape[0] if shape[0] else 0
    return [nested(values[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])]
