"""Events from JSON and results to JSON, as awslambdaric converts them."""

import json
from codecs import BOM_UTF8
from json.encoder import encode_basestring
from typing import Any

from functions.runtime.errors import MARSHAL_ERROR, UNMARSHAL_ERROR, Fault

JSON_TYPE = "application/json"


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no value of JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)  # awslambdaric refuses NaN, too


def parse(event: bytes, content_type: str | None) -> Any:
    """Parse an event; one that is not labelled JSON stays bytes.

    Raises:
        Fault: it is no JSON.
    """
    if content_type != JSON_TYPE:
        return event
    try:
        return _DECODER.decode(event.removeprefix(BOM_UTF8).decode())
    except (ValueError, RecursionError) as error:
        raise Fault(UNMARSHAL_ERROR, f"Unable to unmarshal input: {error}") from None


def serialize(result: object) -> bytes:
    """Serialize a handler's result: a Decimal is a number, bytes are text.

    A named tuple is an object with its fields.

    Raises:
        Fault: a value cannot be serialized.
    """
    try:
        try:
            text = json.dumps(result, ensure_ascii=False)
            if _has_named_tuple(result):  # for `json` it is a list
                text = _text(result)
        except TypeError:  # rare types, which `json` does not know
            text = _text(result)
        return text.encode()
    except Exception as error:  # the edge: the function's own types may raise anything
        raise Fault(MARSHAL_ERROR, f"Unable to marshal response: {error}") from None


def _has_named_tuple(value: object) -> bool:
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list | tuple):
            if hasattr(value, "_asdict"):
                return True
            pending += value
    return False


def _text(value: Any) -> str:
    """Return JSON as simplejson writes it, which awslambdaric uses.

    >>> from decimal import Decimal
    >>> _text({"a": [Decimal("1.10"), b"text", None], b"b": 2})
    '{"a": [1.10, "text", null], "b": 2}'
    """
    from decimal import Decimal  # not at the top: it takes time, and few results hold any

    if isinstance(value, Decimal):
        return "NaN" if value.is_nan() else str(value)
    if isinstance(value, bytes):
        return encode_basestring(value.decode())
    if hasattr(value, "_asdict"):
        return _text(value._asdict())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        members = (f"{_key(name)}: {_text(member)}" for name, member in value.items())
        return f"{{{', '.join(members)}}}"
    return json.dumps(value, ensure_ascii=False)


def _key(name: Any) -> str:
    if isinstance(name, bytes):
        return encode_basestring(name.decode())
    return json.dumps({name: 0}, ensure_ascii=False)[1:-4]
