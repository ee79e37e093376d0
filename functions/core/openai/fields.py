"""Fields of a JSON request, with errors that name them.

Written by hand: importing pydantic takes longer than reading thousands of requests.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from functions.core.errors import InvalidRequest, shown
from functions.core.openai.errors import InvalidParameter, unsupported
from functions.core.protocol.effort import check_effort, check_room, reading_bytes

DEPTH_MAX = 100  # lists and objects within each other; orjson writes at most 254
OBJECT_BYTES = 128  # an object takes them besides its text and values


class Fields:
    """JSON object of a request; null stands for a missing field."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values = values
        self._path = path

    def param(self, name: str) -> str:
        """Return a field's name with the path to it."""
        return f"{self._path}.{name}" if self._path else name

    def get(self, name: str) -> Any:
        """Return a field's value; None if missing."""
        return self._values.get(name)

    def required(self, name: str) -> Any:
        """Return a field's value.

        Raises:
            InvalidParameter: it is missing.
        """
        if (value := self.get(name)) is None:
            raise InvalidParameter(
                self.param(name), "missing; send it", code="MISSING_REQUIRED_PARAMETER"
            )
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Return a number between two bounds, which it may equal.

        Raises:
            InvalidParameter: it is no number, or beyond a bound.
        """
        value = self.get(name)
        if value is None:
            return default
        if type(value) not in (int, float):
            raise self.wrong(name, "a number")
        if not low <= value <= high:
            raise self.wrong(name, f"between {low:g} and {high:g}")
        return float(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """Return an integer between two bounds, which it may equal.

        Raises:
            InvalidParameter: it is no integer, or beyond a bound.
        """
        value = self.get(name)
        return default if value is None else self._integer(name, value, low, high)

    def optional_integer(self, name: str, low: int, high: int) -> int | None:
        """Return an integer between two bounds, None if missing.

        Raises:
            InvalidParameter: it is no integer, or beyond a bound.
        """
        value = self.get(name)
        return None if value is None else self._integer(name, value, low, high)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a boolean, `default` if missing.

        Raises:
            InvalidParameter: it is neither.
        """
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """Return a text, None if missing.

        Raises:
            InvalidParameter: it is no string.
        """
        value = self.get(name)
        if value is not None and type(value) is not str:
            raise self.wrong(name, "a string")
        return value

    def object(self, name: str) -> "Fields | None":
        """Return an object's fields, None if missing.

        Raises:
            InvalidParameter: it is no object.
        """
        value = self.get(name)
        if value is None:
            return None
        if type(value) is not dict:
            raise self.wrong(name, "an object")
        return Fields(value, self.param(name))

    def with_inner(self, name: str) -> "Fields":
        """Return these fields and those of an inner object, which win.

        Raises:
            InvalidParameter: it is no object.
        """
        inner = self.object(name)
        if inner is None:
            return self
        values = {name: value for name, value in inner._values.items() if value is not None}
        return Fields({**self._values, **values}, self._path)

    def objects(self, name: str) -> "Iterator[Fields]":
        """Yield the fields of each object in an array.

        Raises:
            InvalidParameter: it is missing, no array, or has something else than objects.
        """
        values = self.required(name)
        if type(values) is not list:
            raise self.wrong(name, "an array")
        for at, value in enumerate(values):
            path = f"{self.param(name)}[{at}]"
            if type(value) is not dict:
                raise InvalidParameter(path, f"an object is needed, not {_kind(value)}")
            yield Fields(value, path)

    def refuse(self, neutral: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuse known fields that are not supported.

        `neutral` has the values that change nothing; null never does.

        Raises:
            InvalidParameter: a field has another value.
        """
        for name, values in neutral.items():
            value = self.get(name)
            if value is not None and not any(_same(value, each) for each in values):
                raise unsupported(self.param(name))

    def wrong(self, name: str, need: str) -> InvalidParameter:
        """Return the error for a field's wrong value."""
        value = self.get(name)
        seen = shown(value) if isinstance(value, str | int | float) else _kind(value)
        return InvalidParameter(self.param(name), f"must be {need}, not {seen}")

    def _integer(self, name: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int:
            raise self.wrong(name, "an integer")
        if not low <= value <= high:
            raise self.wrong(name, f"between {low} and {high}")
        return int(value)


def parse_body(body: bytes) -> Fields:
    """Parse a request's body.

    Raises:
        InvalidRequest: it is no JSON object.
        PayloadTooLarge: it has too many values, lists or objects.
        MemoryError: there is not enough to read it.
    """
    try:
        document = load_json(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is no JSON: {error}", code="INVALID_JSON") from None
    if type(document) is not dict:
        raise InvalidRequest(
            f"the body must be a JSON object, not {_kind(document)}", code="INVALID_JSON"
        )
    return Fields(document)


def load_json(text: bytes) -> Any:
    """Parse JSON of a caller, after a look at its size.

    Raises:
        orjson.JSONDecodeError: it is no JSON.
        InvalidRequest: it is nested more than DEPTH_MAX levels deep.
        PayloadTooLarge: it has too many values, lists or objects.
        MemoryError: there is not enough to read it.
    """
    check_effort(memoryview(text))
    check_room(reading_bytes(text, 0, len(text)) + OBJECT_BYTES * text.count(b"{"))
    document = orjson.loads(text)
    level = [document]
    for _ in range(DEPTH_MAX):
        if not (level := [value for each in level for value in _containers(each)]):
            return document
    raise InvalidRequest(
        f"the JSON is nested too deeply; send at most {DEPTH_MAX} levels", code="INVALID_JSON"
    )


def to_json(document: object) -> bytes:
    """Return a document as JSON."""
    return orjson.dumps(document)


def _containers(value: object) -> list[Any]:
    """Return the lists and objects among the values of another one."""
    if type(value) is not list and type(value) is not dict:
        return []
    values = value.values() if type(value) is dict else value
    return [each for each in values if type(each) is dict or type(each) is list]


def _same(first: Any, second: Any) -> bool:
    """Compare two values as JSON does, where true is not 1."""
    return (type(first) is bool) is (type(second) is bool) and bool(first == second)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
