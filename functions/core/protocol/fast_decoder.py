"""Fast decoder of inference requests that caches parsed JSON without its values.

A body is cut into a template, which the requests of one client usually share, and its values:

    body      {"id":"7","inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[0.5,1]}]}
    values           7                                                             [0.5,1]
    template  {"id":"","inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[]}]}

A template is parsed and checked once, by the rules of `decode_infer`. A later body with the same
template needs only its lists of numbers read, in bulk, or its tensors copied from the binary part.
If only its numbers differ from those of the body before, the template need not even be looked up.
Unusual bodies, and all refusals, are left to `decode_infer`; a property test compares the two.
Measurements: docs/decisions/0014-one-line-a-request.md.
"""

import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import orjson

from functions.core.errors import InvalidRequest
from functions.core.protocol import tensors
from functions.core.protocol.effort import (
    CONTAINERS_MAX,
    NO_DEADLINE,
    check_deadline,
    check_room,
    reading_bytes,
)
from functions.core.protocol.infer_request import (
    InferRequest,
    Location,
    check_complete,
    decode_infer,
    json_length,
    locate,
    make_request,
    named_entries,
    parse_document,
)
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.protocol.tensors import STRUCT_CODES, Tensor, round_to_bf16
from functions.core.records import mutable_record

PACKERS = 256  # cached functions that pack a number of values
TEMPLATES_MAX = 32  # cached by a decoder; one more empties the cache first
TEMPLATE_BYTES_MAX = 2048  # longer templates are not cached
PIECE_BYTES = 2**14  # a long list is parsed in pieces of this size
PIECES_AT_ONCE = 64  # read between two looks at the memory there is
PIECES_BYTES = 2**23  # the most that so many pieces take: 64 KB of FP64 each, and one as a list

# An id that comes first and has no escapes: printable ASCII without quote and backslash.
_ID_FIRST = re.compile(rb'[ \t\n\r]*\{[ \t\n\r]*"id"[ \t\n\r]*:[ \t\n\r]*"([ !#-\[\]-~]*)"')
_DATA = re.compile(rb'"data"[ \t\n\r]*:[ \t\n\r]*\[')


@mutable_record
class _Template:
    """Parsed request without tensor values, and each input's location in the body.

    `locations` are in the model's order. The number beside a location in the JSON is the index of
    its list in the text. `all_binary`: no location is in the JSON.
    """

    request: InferRequest
    locations: list[tuple[Location, int]]
    all_binary: bool


@mutable_record
class _Frame:
    """Text around the only list of a body, with its template."""

    before: bytes  # includes the list's opening bracket
    after: bytes  # begins with its closing bracket
    template: _Template
    request_id: str | None


class FastDecoder:
    """Decoder of one model's inference requests that caches their JSON templates.

    Its results are those of `decode_infer`.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.batches = signature.batches
        self._templates: dict[tuple[bytes, int | None], _Template] = {}
        self._frame: _Frame | None = None  # the latest body's

    def decode(
        self, body: bytes | memoryview, header_length: str | None, deadline: float = NO_DEADLINE
    ) -> InferRequest:
        """Decode an inference request, using a cached template if one matches.

        Raises:
            InvalidRequest, TimedOut: as `decode_infer` does.
        """
        try:
            if header_length is None:
                request = self._decode_json(body, deadline)
            else:
                length = json_length(header_length, len(body))
                request = self._decode_both(body, length, deadline)
        except InvalidRequest:
            request = None
        return request or decode_infer(body, header_length, self.signature, deadline)

    def _decode_both(
        self, body: bytes | memoryview, length: int, deadline: float
    ) -> InferRequest | None:
        """Decode an inference request body of JSON followed by binary tensors.

        JSON without lists and without an id is its own template, found without cutting.
        """
        text, binary_bytes = bytes(body[:length]), len(body) - length
        if length <= TEMPLATE_BYTES_MAX:
            template = self._templates.get((text, binary_bytes))
            if template is not None and template.all_binary:
                return _fill(template, template.request.id, body, text, (), deadline)
        return self._decode_text(body, text, binary_bytes, deadline)

    def _decode_json(self, body: bytes | memoryview, deadline: float) -> InferRequest | None:
        text, frame = bytes(body), self._frame
        if frame and text.startswith(frame.before) and text.endswith(frame.after):
            # Between them may be anything: it is read as one list, or not at all.
            start, end = len(frame.before) - 1, len(text) - len(frame.after) + 1
            if start + 1 < end:
                bounds = ((start, end),)
                request = _fill(frame.template, frame.request_id, text, text, bounds, deadline)
                if request is not None:
                    return request
        return self._decode_text(text, text, None, deadline)

    def _decode_text(
        self, body: bytes | memoryview, text: bytes, binary_bytes: int | None, deadline: float
    ) -> InferRequest | None:
        """Split a request's JSON into template and value lists, and decode both.

        `text` is the JSON of `body`. Return None if `decode_infer` has to read the body.
        """
        id_first = _ID_FIRST.match(text)
        cut, at = (b'{"id":""', id_first.end()) if id_first else (b"", 0)
        lists: list[tuple[int, int]] = []
        while match := _DATA.search(text, at):
            start = match.end() - 1
            end = _list_end(text, start)
            if end is None or len(lists) == len(self.signature.inputs):
                return None
            lists.append((start, end))
            cut += text[at : start + 1]
            at = end - 1
        if len(cut) + len(text) - at > TEMPLATE_BYTES_MAX:
            return None
        cut += text[at:]
        template = self._templates.get((cut, binary_bytes))
        if template is None:
            template = self._add_template(cut, binary_bytes, len(lists))
            if template is None:
                return None
        request_id = id_first[1].decode() if id_first else template.request.id
        if len(lists) == 1 and binary_bytes is None:
            [(start, end)] = lists
            self._frame = _Frame(text[: start + 1], text[end - 1 :], template, request_id)
        return _fill(template, request_id, body, text, lists, deadline)

    def _add_template(self, text: bytes, binary_bytes: int | None, lists: int) -> _Template | None:
        """Parse, check and cache a request template: JSON with emptied data lists.

        `lists` is the number of emptied lists. Return None if an empty list is not the data of an
        input.

        Raises:
            InvalidRequest: the template is malformed or does not fit the model.
        """
        if lists and b"\\" in text:
            return None
        document = parse_document(memoryview(text))
        declared = {spec.name: spec for spec in self.signature.inputs}
        locations: dict[str, tuple[Location, int]] = {}
        offset = in_json = 0
        for spec, entry in named_entries(document, "input", declared):
            location = locate(spec, entry, offset, binary_bytes)
            locations[spec.name] = location, in_json
            if location.end is None:
                if type(entry["data"]) is not list:
                    return None
                in_json += 1
            offset = location.end or offset
        check_complete(declared, locations, binary_bytes, offset)
        if in_json != lists:  # a key "data" outside the inputs was cut too
            return None
        template = _Template(
            make_request(document, {}, self.signature),
            [locations[name] for name in declared],
            all_binary=not in_json,
        )
        if len(self._templates) >= TEMPLATES_MAX:
            self._templates.clear()
        self._templates[text, binary_bytes] = template
        return template


def _list_end(text: bytes, start: int) -> int | None:
    """Return the end position of the JSON list that begins at `start`.

    None if the list holds a string or an object. The end is the last bracket before the next quote
    or brace. In valid JSON without a backslash, `"data":[` is always a key and the beginning of
    its value, never part of a string.
    """
    brace = text.find(b"}", start)
    quote = text.find(b'"', start, max(brace, 0))
    end = text.rfind(b"]", start, brace if quote < 0 else quote)
    return None if end < 0 else end + 1


def _fill(
    template: _Template,
    request_id: str | None,
    body: bytes | memoryview,
    text: bytes,
    lists: Sequence[tuple[int, int]],
    deadline: float,
) -> InferRequest | None:
    """Build an inference request from a cached template and a body's values.

    `text` is the JSON of `body`, `lists` are the bounds of its value lists. Return None if
    `decode_infer` has to read a list.

    Raises:
        InvalidRequest, TimedOut: as `tensors.from_bytes`.
    """
    inputs: dict[str, Tensor] = {}
    for location, index in template.locations:
        tensor: Tensor | None
        if location.end is None:
            tensor = read_list(location.spec, location.shape, text, *lists[index], deadline)
        else:
            binary = memoryview(body)[len(text) + location.start : len(text) + location.end]
            tensor = tensors.from_bytes(location.spec, location.shape, binary, deadline)
        if tensor is None:
            return None
        inputs[location.spec.name] = tensor
    request = template.request
    return InferRequest(request_id, inputs, request.outputs, request.timeout_us, request.parameters)


# --- lists of numbers


def read_list(
    spec: TensorSpec,
    shape: tuple[int, ...],
    text: bytes,
    start: int,
    end: int,
    deadline: float = NO_DEADLINE,
) -> Tensor | None:
    """Read a JSON list of numbers in bulk into a packed tensor.

    The list is `text[start:end]`. This is 5 times as fast as `from_json`. The list holds no string.
    Return None if `from_json` has to look at it: types and ranges are checked in bulk by `struct`,
    which cannot name the value at fault.

    Raises:
        TimedOut: `deadline` is over.
        MemoryError: there is not enough to read the list.
    """
    code = STRUCT_CODES.get(spec.datatype)
    if code is None or not shape:
        return None
    # `struct` packs true and false as numbers. Each of true, false and null holds a "u" or an "a";
    # no number does.
    words = text.find(b"u", start, end) >= 0 or text.find(b"a", start, end) >= 0
    if words and code != "?":
        return None
    size = math.prod(shape)
    if end - start <= PIECE_BYTES:
        raw = _read_short(shape, text[start:end], code, size)
    else:
        raw = _read_long(shape, text, start, end, code, size, deadline)
    if raw is not None and spec.datatype == "BF16":
        raw, overflow = round_to_bf16(raw)
        if overflow:
            return None
    return None if raw is None else Tensor(spec.datatype, shape, raw)


def _read_short(shape: tuple[int, ...], text: bytes, code: str, size: int) -> bytes | None:
    """Pack a JSON list of numbers, parsed as a whole.

    Return None if it holds anything else."""
    try:
        values = orjson.loads(text)
        if len(shape) > 1 and values and type(values[0]) is list:
            values = _flatten(shape, values)
        if len(values) != size or (code == "?" and not set(map(type, values)) <= {bool}):
            return None
        return _packer(size, code)(*values)
    except (orjson.JSONDecodeError, struct.error, OverflowError):
        return None


def _read_long(
    shape: tuple[int, ...],
    text: bytes,
    start: int,
    end: int,
    code: str,
    size: int,
    deadline: float,
) -> bytes | None:
    """Pack a JSON list of numbers, parsed in pieces.

    Return None if it holds anything else."""
    pieces, count = [], 0
    try:
        for values in _pieces(shape, text, start, end):
            if code == "?" and not set(map(type, values)) <= {bool}:
                return None
            pieces.append(_packer(len(values), code)(*values))
            count += len(values)
            if count > size:
                return None
            check_deadline(deadline)
    except (orjson.JSONDecodeError, struct.error, OverflowError):
        return None
    return b"".join(pieces) if count == size else None


@lru_cache(maxsize=PACKERS)
def _packer(count: int, code: str) -> Callable[..., bytes]:
    """Return a function that packs `count` numbers; `struct.pack` copies them once more.

    Without "<", struct packs 1e39 as infinity instead of raising OverflowError.
    """
    return struct.Struct(f"<{count}{code}").pack


def _pieces(shape: tuple[int, ...], text: bytes, start: int, end: int) -> Iterator[list[Any]]:
    """Parse a JSON list of numbers; yield its values in cache-sized pieces.

    A nested list is one piece. A flat list is cut at commas into pieces of about PIECE_BYTES,
    which stay in the processor's cache; the whole list never exists as Python objects. A list of
    another structure yields [None], which `struct` refuses.
    """
    if text[start + 1 : start + 16].lstrip()[:1] == b"[":
        if text.count(b"[", start, end) > min(_list_count(shape), CONTAINERS_MAX):
            yield [None]  # before so many lists take memory
        else:
            check_room(reading_bytes(text, start, end))
            yield _flatten(shape, orjson.loads(memoryview(text)[start:end]))
        return
    at, last, number = start + 1, end - 1, 0
    while at <= last:
        if number % PIECES_AT_ONCE == 0:
            check_room(PIECES_BYTES)
        number += 1
        comma = text.find(b",", at + PIECE_BYTES, last)
        stop = last if comma < 0 else comma
        values = orjson.loads(b"[" + text[at:stop] + b"]")
        yield values or [None]  # empty: two commas in a row, or a comma at the end
        at = stop + 1


def _list_count(shape: tuple[int, ...]) -> int:
    """Return the number of nested lists in JSON data of `shape`.

    >>> _list_count((2, 3)), _list_count((2,)), _list_count((4, 0))
    (3, 1, 5)
    """
    return sum(map(math.prod, (shape[:depth] for depth in range(len(shape)))))


def _flatten(shape: tuple[int, ...], level: list[Any]) -> list[Any]:
    """Flatten a list nested like `shape`; return [None] if nested differently.

    A list nested deeper than `shape` is left to `struct`, which refuses a list as a value.
    """
    if level and type(level[0]) is list:
        for size in shape[1:]:
            if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
                return [None]
            level = list(chain.from_iterable(level))
            if not level:
                return [None]
    return level
