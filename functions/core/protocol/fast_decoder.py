"""Decode infer requests by cached templates of earlier ones."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from functions.core.errors import InvalidRequest
from functions.core.protocol import tensors
from functions.core.protocol.infer_body import (
    InferRequest,
    Location,
    check_all_given,
    decode_infer,
    json_length,
    locate,
    make_request,
    named_entries,
    parse_document,
)
from functions.core.protocol.signature import Signature
from functions.core.protocol.tensors import Tensor

FORMS_LIMIT, FORM_BYTES = (
    32,
    2048,
)  # how many forms of a request a decoder remembers, and how long one may be
_ID_FIRST = re.compile(rb'[ \t\n\r]*\{[ \t\n\r]*"id"[ \t\n\r]*:[ \t\n\r]*"([ !#-\[\]-~]*)"')
_DATA = re.compile(rb'"data"[ \t\n\r]*:[ \t\n\r]*\[')


@dataclass(slots=True)
class _Template:
    """A request without the values of its inputs. `places` are in the model's order.

    A place in the JSON is the list of the number beside it; `all_behind`: there is none.
    """

    request: InferRequest
    places: list[tuple[Location, int]]
    all_behind: bool


class Decoder:
    """`decode_infer` for one signature: the same answers, and sooner for a body whose form it has seen.

    The form of a body is its JSON without the numbers of its inputs, and without the id where that comes first. It is
    read and checked as any JSON is, once; the numbers are cut out of the text before and read in bulk. Whatever is
    unusual about a body, and every refusal, is left to `decode_infer`.
    """

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.batches = signature.batches
        self._forms: dict[tuple[bytes, int | None], _Template] = {}

    def decode(self, body: bytes | memoryview, header_length: str | None) -> InferRequest:
        """Raises:
        InvalidRequest: as `decode_infer` does.
        """
        try:
            length = json_length(header_length, len(body))
            request = self._from_json(body) if length is None else self._from_both(body, length)
        except InvalidRequest:
            request = None
        return request or decode_infer(body, header_length, self.signature)

    def _from_both(self, body: bytes | memoryview, length: int) -> InferRequest | None:
        """JSON and what follows it. One that names no id and holds no list is its own form."""
        text, behind = bytes(body[:length]), len(body) - length
        form = self._forms.get((text, behind)) if length <= FORM_BYTES else None
        if form is not None and form.all_behind:
            return _fill(form, form.request.id, body, text, ())
        return self._from_text(body, text, behind)

    def _from_json(self, body: bytes | memoryview) -> InferRequest | None:
        text = bytes(body)
        return self._from_text(text, text, None)

    def _from_text(
        self, body: bytes | memoryview, text: bytes, behind: int | None
    ) -> InferRequest | None:
        begin = _ID_FIRST.match(text)
        rest, at = (b'{"id":""', begin.end()) if begin else (b"", 0)
        lists: list[tuple[int, int]] = []
        while found := _DATA.search(text, at):
            start = found.end() - 1
            end = _list_end(text, start)
            if end is None or len(lists) == len(self.signature.inputs):
                return None
            lists.append((start, end))
            rest += text[at : start + 1]
            at = end - 1
        if len(rest) + len(text) - at > FORM_BYTES:
            return None
        rest += text[at:]
        form = self._forms.get((rest, behind)) or self._learn(rest, behind, len(lists))
        return (
            _fill(form, begin[1].decode() if begin else form.request.id, body, text, lists)
            if form
            else None
        )

    def _learn(self, text: bytes, behind: int | None, lists: int) -> _Template | None:
        """The form whose JSON is `text`, in which `lists` empty lists stand for the data of inputs.

        Raises:
            InvalidRequest: something is wrong with it.
        """
        if lists and b"\\" in text:
            return None
        document = parse_document(memoryview(text))
        declared = {spec.name: spec for spec in self.signature.inputs}
        places: dict[str, tuple[Location, int]] = {}
        at = seen = 0
        for spec, entry in named_entries(document, "input", declared):
            place = locate(spec, entry, at, behind)
            places[spec.name] = place, seen
            if place.end is None:
                if type(entry["data"]) is not list:
                    return None
                seen += 1
            at = place.end or at
        check_all_given(declared, places, behind, at)
        if seen != lists:  # another "data" than those of the inputs
            return None
        form = _Template(
            make_request(document, {}, self.signature),
            [places[name] for name in declared],
            not seen,
        )
        if len(self._forms) >= FORMS_LIMIT:
            self._forms.clear()
        self._forms[text, behind] = form
        return form


def _list_end(text: bytes, start: int) -> int | None:
    """Where the list at `start` ends, if it holds no string and no object: at the last bracket before the next one.

    In valid JSON without a backslash, `"data":[` is a key and the beginning of its value wherever it stands.
    """
    brace = text.find(b"}", start)
    quote = text.find(b'"', start, max(brace, 0))
    end = text.rfind(b"]", start, brace if quote < 0 else quote)
    return None if end < 0 else end + 1


def _fill(
    form: _Template,
    name: str | None,
    body: bytes | memoryview,
    text: bytes,
    lists: Sequence[tuple[int, int]],
) -> InferRequest | None:
    """The request of this form with the values in `body`, whose JSON is `text`; None if one needs a closer look.

    Raises:
        InvalidRequest: as `tensors.from_bytes`.
    """
    inputs: dict[str, Tensor] = {}
    for place, number in form.places:
        tensor: Tensor | None
        if place.end is None:
            tensor = tensors.from_text(place.spec, place.shape, text, *lists[number])
        else:
            behind = memoryview(body)[len(text) + place.start : len(text) + place.end]
            tensor = tensors.from_bytes(place.spec, place.shape, behind)
        if tensor is None:
            return None
        inputs[place.spec.name] = tensor
    known = form.request
    return InferRequest(name, inputs, known.outputs, known.timeout_us, known.parameters)
