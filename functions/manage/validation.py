"""Validation errors of pydantic as errors of the API."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from functions.core.errors import InvalidRequest, one_line

LISTED_MAX = 20  # wrong fields in one reply
PLACES = ("body", "query", "path")  # first parts of a location, added by Powertools


class InvalidFields(InvalidRequest):
    """Request with wrong fields, each with its problem (400)."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {message}" for path, message in problems))
        self._problems = problems[:LISTED_MAX]

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the error's document besides text and code."""
        details = [{"path": path, "message": message} for path, message in self._problems]
        return {"details": details}


def invalid(errors: Iterable[Mapping[str, Any]]) -> InvalidRequest:
    """Return a request's error, with the problem of each wrong field.

    >>> print(invalid([{"loc": ("body", "scopes", 0), "msg": "Field required"}]))
    scopes[0]: Field required
    """
    return InvalidFields([(one_line(_field(e["loc"])), one_line(e["msg"])) for e in errors])


def _field(location: Sequence[str | int]) -> str:
    """Return a field's name, "body" for a body that is no object."""
    if len(location) > 1 and location[0] in PLACES:
        location = location[1:]
    first, *rest = location
    if isinstance(first, int):  # position of an error in the body's JSON
        return "body"
    return first + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
