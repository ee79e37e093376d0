"""Validation errors of pydantic as errors of the API."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from functions.core.errors import InvalidRequest

PLACES = ("body", "query", "path")  # first parts of a location, added by Powertools


def invalid(errors: Iterable[Mapping[str, Any]]) -> InvalidRequest:
    """Return a request's error, with the problem of each wrong field.

    >>> print(invalid([{"loc": ("body", "scopes", 0), "msg": "Field required"}]))
    scopes[0]: Field required
    """
    return InvalidRequest("; ".join(f"{_field(e['loc'])}: {e['msg']}" for e in errors))


def _field(location: Sequence[str | int]) -> str:
    """Return a field's name, "body" for a body that is no object."""
    if len(location) > 1 and location[0] in PLACES:
        location = location[1:]
    first, *rest = location
    if isinstance(first, int):  # position of an error in the body's JSON
        return "body"
    return first + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
