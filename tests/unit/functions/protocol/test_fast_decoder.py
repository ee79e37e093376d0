"""Both decoders agree: values bit by bit, errors word by word."""

import json
import math
import struct
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from functions.core.errors import InvalidRequest
from functions.core.protocol import fast_decoder
from functions.core.protocol.fast_decoder import TEMPLATE_BYTES_MAX, TEMPLATES_MAX, FastDecoder
from functions.core.protocol.infer_reply import encode_infer
from functions.core.protocol.infer_request import InferRequest, RequestedOutput, decode_infer
from functions.core.protocol.signature import DATATYPES, Signature, TensorSpec
from functions.core.protocol.tensors import Tensor
from tests.arrays import to_tensor

X = Signature((TensorSpec("x", "FP32", (-1,)),), ())
FLOATS = ("FP16", "BF16", "FP32", "FP64")
Body = tuple[bytes, str | None]

# --- bodies

NUMBERS = st.one_of(
    st.integers(-300, 300).map(str),
    st.integers(-(2**65), 2**65).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(
        ["-0", "-0.0", "0.1", "1E5", "1e-400", "1e400", "65520", "65519.99",
         "3.4028235677973366e38", "3.3895314e38", "340282356779733661637539395458142568447",
         "1" + "0" * 400, "9007199254740993", "01", "1.", ".5", "1e39", "-1e39",
         "3.3961775292304601e38", "1e999", "-1e999", "-" + "1" + "0" * 400,
         "1.7976931348623159e308"]
    ),
)  # fmt: skip
WORDS = st.sampled_from(
    ["true", "false", "null", "NaN", "-Infinity", '"NaN"', '"1"', "[]", "{}", '{"data":[1]}']
)
SPACES = st.sampled_from(["", "", "", " ", "\n\t", "\r", "\x0c"])
IDS = st.one_of(
    st.text(max_size=5), st.sampled_from(["7", 'a"b', "a\\b", "\ud800", "é", '"data":[', ""])
)
FRAGMENTS = st.sampled_from(
    [b'"', b"\\", b"[", b"]", b"{", b"}", b",", b":", b"1", b"-", b".", b"e5", b"null", b"true",
     b"NaN", b"\xff", b"\x00", b"\xef\xbb\xbf", b'"data":[', b'"data":[1,2]', b'"id":"x"',
     b"\\u0061", b"\\ud800", b"[" * 1100, b" ", b"\x0b"]
)  # fmt: skip


@st.composite
def signatures(draw: Any) -> Signature:
    """Draw a signature of one to three inputs of any datatype and small shape."""
    specs = []
    for name in draw(
        st.lists(st.sampled_from(["x", "y", "data", "id"]), min_size=1, max_size=3, unique=True)
    ):
        shape = tuple(draw(st.lists(st.sampled_from([-1, 1, 2, 3]), max_size=3)))
        specs.append(TensorSpec(name, draw(st.sampled_from(sorted(DATATYPES))), shape))
    return Signature(
        tuple(specs), (TensorSpec("out", "FP32", (-1,)), TensorSpec("other", "INT8", (2,)))
    )


def nested(shape: tuple[int, ...], values: list[str]) -> str:
    if len(shape) < 2:
        return "[" + ",".join(values) + "]"
    step = len(values) // shape[0] if shape[0] else 0
    return (
        "["
        + ",".join(nested(shape[1:], values[i * step : (i + 1) * step]) for i in range(shape[0]))
        + "]"
    )


@st.composite
def values(draw: Any, spec: TensorSpec, shape: tuple[int, ...]) -> str:
    """Draw the JSON of an input's data, mostly valid and sometimes similar to it."""
    kinds = {
        "BOOL": st.sampled_from(["true", "false"]),
        "BYTES": st.text(max_size=3).map(json.dumps),
    }
    right = kinds.get(
        spec.datatype, st.integers(0, 100).map(str) if "INT" in spec.datatype else NUMBERS
    )
    usual = (
        st.one_of(right, right, right, right, right, right, NUMBERS, WORDS)
        if draw(st.booleans())
        else right
    )
    count = int(np.prod(shape, dtype=int)) + (
        draw(st.integers(-1, 1)) if draw(st.integers(0, 9)) == 0 else 0
    )
    if not shape and count == 1:
        return draw(usual)
    elements = draw(st.lists(usual, min_size=max(count, 0), max_size=max(count, 0)))
    return nested(shape, elements) if draw(st.booleans()) else nested((), elements)


@st.composite
def bodies(draw: Any, signature: Signature) -> Body:
    """Draw a body as different clients write it, mostly without mistakes."""
    entries, binary = [], b""
    for spec in draw(st.permutations(signature.inputs)):
        shape = tuple(draw(st.integers(0, 3)) if size == -1 else size for size in spec.shape)
        entry = {
            "name": json.dumps(spec.name),
            "datatype": json.dumps(spec.datatype),
            "shape": json.dumps(shape),
        }
        size = DATATYPES[spec.datatype]
        if draw(st.integers(0, 2)) == 0:
            count = int(np.prod(shape, dtype=int))
            raw = (
                struct.pack("<I", 1) * 0
                if size is None
                else draw(st.binary(min_size=count * size, max_size=count * size))
            )
            if spec.datatype == "BOOL" and draw(st.booleans()):
                raw = bytes(byte & 1 for byte in raw)
            if size is None:
                texts = draw(st.lists(st.binary(max_size=3), min_size=count, max_size=count))
                raw = b"".join(struct.pack("<I", len(text)) + text for text in texts)
            entry["parameters"] = json.dumps({"binary_data_size": len(raw)})
            binary += raw
        else:
            entry["data"] = draw(values(spec, shape))
        if draw(st.integers(0, 4)) == 0:
            entry.setdefault(draw(st.sampled_from(["parameters", "data"])), "null")
        names = draw(st.permutations(list(entry)))
        entries.append(
            "{"
            + ",".join(f'"{name}"{draw(SPACES)}:{draw(SPACES)}{entry[name]}' for name in names)
            + "}"
        )
    members = {"inputs": "[" + ",".join(entries) + "]"}
    if draw(st.booleans()):
        members["id"] = json.dumps(draw(st.one_of(IDS, st.none())))
    if draw(st.integers(0, 3)) == 0:
        members["outputs"] = json.dumps(
            [{"name": "out", "parameters": {"binary_data": draw(st.booleans())}}]
        )
    if draw(st.integers(0, 3)) == 0:
        members["parameters"] = draw(
            st.sampled_from(
                ['{"timeout":5}', '{"a":1.5,"binary_data_output":true}', '{"a":[1]}', "null",
                 '{"a":null,"timeout":null}']
            )
        )  # fmt: skip
    if draw(st.integers(0, 9)) == 0:
        members["more"] = draw(
            st.sampled_from(['{"data":[1,2]}', '{"data": []}', "[[]]", '"data"', "null"])
        )
    order = draw(st.permutations(sorted(members)))
    text = (
        draw(SPACES)
        + "{"
        + ",".join(f'{draw(SPACES)}"{name}":{members[name]}{draw(SPACES)}' for name in order)
        + "}"
    )
    mark = draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf"]))
    head = mark + text.encode("utf-8", "surrogatepass")
    return head + binary, str(len(head)) if binary or draw(st.integers(0, 4)) == 0 else None


@st.composite
def damaged(draw: Any, body: Body) -> Body:
    """Draw a damaged copy of a body."""
    raw, header = body
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(raw)))
        cut = draw(st.integers(0, 3))
        raw = raw[:at] + (draw(FRAGMENTS) if draw(st.booleans()) else b"") + raw[at + cut :]
    if header is not None and draw(st.integers(0, 9)) == 0:
        header = draw(
            st.sampled_from(["0", "-1", "99999", " 12 ", "²", str(int(header) + 1), "1" * 20])
        )
    return raw, header


def outcome(decode: Any, *arguments: Any) -> Any:
    """Decode and return everything comparable: the request's parts, or the error."""
    try:
        request: InferRequest = decode(*arguments)
    except InvalidRequest as error:
        return str(error), error.instance_code
    inputs = [
        (name, t.datatype, t.shape, t.data, type(t.data)) for name, t in request.inputs.items()
    ]
    parameters = [(name, type(value), value) for name, value in request.parameters.items()]
    return request.id, inputs, request.outputs, request.timeout_us, parameters


def check_same(signature: Signature, bodies: list[Body]) -> None:
    decoder = FastDecoder(signature)
    for body, header in bodies * 2:  # the second time from the cache
        assert outcome(decoder.decode, body, header) == outcome(
            decode_infer, body, header, signature
        )


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_both_decoders_give_the_same_result(data: st.DataObject) -> None:
    signature = data.draw(signatures())
    good = [data.draw(bodies(signature)) for _ in range(2)]
    check_same(signature, [*good, *(data.draw(damaged(body)) for body in good)])


def flat_body(datatype: str, values: list[str]) -> bytes:
    data = f'"shape":[{len(values)}],"data":[{",".join(values)}]'
    return f'{{"inputs":[{{"name":"x","datatype":"{datatype}",{data}}}]}}'.encode()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(NUMBERS, min_size=1, max_size=4), st.sampled_from(sorted(set(DATATYPES) - {"BYTES"}))
)
def test_both_decoders_read_every_number_alike(numbers: list[str], datatype: str) -> None:
    check_same(
        Signature((TensorSpec("x", datatype, (-1,)),), ()), [(flat_body(datatype, numbers), None)]
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(NUMBERS, NUMBERS, NUMBERS, WORDS, SPACES), max_size=12),
    st.integers(0, 9),
    st.sampled_from(["FP32", "INT16", "BOOL"]),
)
def test_both_decoders_read_lists_cut_anywhere_alike(
    values: list[str], piece: int, datatype: str
) -> None:
    body = flat_body(datatype, values)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fast_decoder, "PIECE_BYTES", piece)

        check_same(Signature((TensorSpec("x", datatype, (-1,)),), ()), [(body, None)])


@pytest.mark.parametrize(
    "values",
    ["1,2,3", "1,2,", "1,,2", "1, ,2", " 1 , 2 ", "1,2],[3", "1,[2]", "[1],2", "1,true", ""],
)
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_both_decoders_refuse_pieces_that_are_no_list(
    values: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{count}],"data":[{values}]}}]}}'
    for piece in range(8):
        monkeypatch.setattr(fast_decoder, "PIECE_BYTES", piece)

        check_same(X, [(text.encode(), None)])


def test_many_numbers_are_read_in_pieces() -> None:
    numbers = np.round(np.random.default_rng(1).random(100_000), 3)
    text = json.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [100_000], "data": numbers.tolist()}
            ]
        }
    )
    assert len(text) > 5 * fast_decoder.PIECE_BYTES

    request = FastDecoder(X)._decode_json(text.encode(), math.inf)

    assert request is not None
    assert request.inputs["x"] == to_tensor(numbers.astype(np.float32))


# --- bodies that only look like a cached template

GOOD = '{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[1,2]}]}'


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("[1,2]", "[1,2]]"),
        GOOD.replace("[1,2]", "[1,2],[3]"),
        GOOD.replace("[1,2]", "[1,true]"),
        GOOD.replace("[1,2]", "[1,2,]"),
        GOOD.replace("[1,2]", '[1,2],"data":[1,2]'),
        GOOD.replace('"data"', '"d\\u0061ta"'),
        GOOD.replace('"data":[1,2]', '"more":{"data":[1,2]},"d\\u0061ta":[]'),
        GOOD.replace('"data":[1,2]', '"more":{"data":[1,2]},"data":[3,4]'),
        GOOD.replace('"inputs"', '"more":{"data":[7,8]},"inputs"'),
        GOOD.replace('"inputs"', '"id":"a","id":"b","inputs"'),
        GOOD.replace('"inputs"', '"id":"a","inputs"').replace("]}]}", ']}],"id":""}'),
        GOOD.replace("{", '{\x0c"id":"a",', 1),
        GOOD.replace("{", '{"parameters":{"id":"a"},', 1),
        GOOD.replace("[2]", "[0]").replace("[1,2]", "[]"),
        GOOD.replace("[2]", "[0]").replace("[1,2]", "[[]]"),
        GOOD.replace("{", '{"id":"\x7f",', 1),
        GOOD.replace("{", '{"id":"a\\\\b",', 1),
        GOOD.replace("{", '{"id":"a\\"b",', 1),
        "\ufeff" + GOOD,
        GOOD + "]",
        GOOD + '"data":[1]',
    ],
)  # fmt: skip
def test_bodies_similar_to_a_template_are_decoded_alike(text: str) -> None:
    check_same(X, [(GOOD.encode(), None), (text.encode(), None)])


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ([2, 2], "[[1,2],[3,4]]"),
        ([2, 2], "[[1,2],3,4]"),
        ([2, 2], "[[1,2],3]"),
        ([2, 2], "[[1],[2,3,4]]"),
        ([2, 2], "[[1,2,3],[4]]"),
        ([2, 2], "[[1,2,3,4]]"),
        ([2, 2], "[[1],[2],[3],[4]]"),
        ([4, 1], "[[1,2],[3,4]]"),
        ([1, 4], "[[1,2],[3,4]]"),
        ([2, 2], "[[[1,2]],[[3,4]]]"),
        ([2, 2], "[[1,[2]],[3,4]]"),
        ([2, 2], "[[1,2],[3,4],[]]"),
        ([2, 0], "[[],[]]"),
        ([2, 0], "[[]]"),
        ([0, 2], "[[],[]]"),
        ([0, 2], "[]"),
    ],
)
def test_both_decoders_read_nested_lists_alike(shape: list[int], values: str) -> None:
    signature = Signature((TensorSpec("x", "INT32", (-1, -1)),), ())
    text = f'{{"inputs":[{{"name":"x","datatype":"INT32","shape":{shape},"data":{values}}}]}}'

    check_same(signature, [(text.encode(), None)])


def test_templates_differ_by_the_size_of_the_binary_part() -> None:
    text = GOOD.encode()
    empty = GOOD.replace("[2]", "[0]").replace("[1,2]", "[]").encode()

    check_same(
        X,
        [
            (text, None),
            (text, str(len(text))),
            (text + b"1234", str(len(text))),
            (text + b"1234", None),
        ],
    )
    check_same(X, [(empty, None), (empty, str(len(empty))), (empty + b"1234", str(len(empty)))])


def test_requests_of_one_template_share_no_values() -> None:
    decoder = FastDecoder(X)
    bodies = [
        GOOD.replace("{", f'{{"id":"{name}",', 1).replace("[1,2]", f"[{number},{number}]").encode()
        for name, number in (("a", 1), ("b", 2))
    ]

    first, second = (decoder.decode(body, None) for body in bodies)

    assert (first.id, first.inputs["x"].values()) == ("a", [1, 1])
    assert (second.id, second.inputs["x"].values()) == ("b", [2, 2])
    assert first.outputs is second.outputs


def test_a_cached_template_is_not_parsed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = FastDecoder(X)
    decoder.decode(GOOD.encode(), None)
    head = GOOD.replace('"data":[1,2]', '"parameters":{"binary_data_size":8}').encode()
    decoder.decode(head + bytes(8), str(len(head)))
    monkeypatch.setattr(fast_decoder, "parse_document", lambda text: pytest.fail("parsed again"))

    assert decoder.decode(GOOD.replace("1,2", "3,4").encode(), None).inputs["x"].values() == [3, 4]
    assert decoder.decode(head + struct.pack("<2f", 5, 6), str(len(head))).inputs["x"].values() == [
        5,
        6,
    ]


def test_templates_are_bounded_in_number_and_size() -> None:
    decoder = FastDecoder(X)
    for length in range(3 * TEMPLATES_MAX):
        decoder.decode(GOOD.replace("{", '{"more":"' + "x" * length + '",', 1).encode(), None)
        assert len(decoder._templates) <= TEMPLATES_MAX
    decoder._templates.clear()
    long = "x" * TEMPLATE_BYTES_MAX
    decoder.decode(GOOD.replace("{", f'{{"more":"{long}",', 1).encode(), None)

    assert not decoder._templates


def test_no_more_lists_are_searched_than_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search may go to the end of the body, so there must be few."""
    searched = []
    find = fast_decoder._list_end
    monkeypatch.setattr(
        fast_decoder, "_list_end", lambda text, start: searched.append(start) or find(text, start)
    )
    body = ('{"inputs":[' + '"data":[],' * 1000 + "]}").encode()

    with pytest.raises(InvalidRequest):
        FastDecoder(X).decode(body, None)
    assert len(searched) <= 2


# --- replies


def encode(sent: Tensor, name: str | None = None) -> bytes:
    spec = TensorSpec("y", sent.datatype, (-1,))
    request = InferRequest(name, {}, (RequestedOutput("y", False, 0),), None, {})
    return encode_infer(request, {"y": sent}, Signature((), (spec,)), "m", 1, limit=10**8).body


def values_sent(sent: Tensor) -> list[Any]:
    """Return the values of a reply as a client reads them."""
    return json.loads(encode(sent))["outputs"][0]["data"]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_every_16_bit_float_survives_json(datatype: str) -> None:
    dtype = {"FP16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}[datatype]
    every = np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # a NaN that signals
        kept = every[np.isfinite(every.view(dtype))]

    read = np.array(
        values_sent(to_tensor(kept.view(np.float16) if datatype == "FP16" else kept, datatype))
    )

    assert kept.size > 60_000
    assert read.astype(dtype).tobytes() == kept.tobytes()


@settings(max_examples=100, deadline=None)
@given(npst.arrays(np.uint32, st.integers(0, 20), elements=st.integers(0, 2**32 - 1)))
def test_fp32_survives_json_as_fp64(bits: np.ndarray) -> None:
    sent = bits.view(np.float32)
    sent = sent[np.isfinite(sent)]

    read = values_sent(to_tensor(sent))

    assert list(map(repr, read)) == list(map(repr, sent.astype(np.float64).tolist()))
    assert np.array(read, np.float64).astype(np.float32).tobytes() == sent.tobytes()


@settings(max_examples=100, deadline=None)
@given(npst.arrays(np.uint64, st.integers(0, 20), elements=st.integers(0, 2**64 - 1)))
def test_fp64_survives_json_bit_by_bit(bits: np.ndarray) -> None:
    sent = bits.view(np.float64)
    sent = sent[np.isfinite(sent)]

    assert np.array(values_sent(to_tensor(sent)), np.float64).tobytes() == sent.tobytes()


@pytest.mark.parametrize("sign", [0, 1 << 31], ids=["+", "-"])
@pytest.mark.parametrize(
    "bits", [0x15AE43FD, 0x15AE43FE, 0x3DCCCCCD, 0x00000001, 0x00800000, 0x7F7FFFFF, 0]
)
def test_a_float_with_ambiguous_short_digits_gets_longer_ones(bits: int, sign: int) -> None:
    """Check floats whose shortest FP32 digits, read as FP64, round to a neighbour."""
    assert struct.pack("<f", 7.038531e-26) == struct.pack("<I", 0x15AE43FE)
    sent = struct.pack("<3I", bits, sign | bits, bits)

    assert struct.pack("<3f", *values_sent(Tensor("FP32", (3,), sent))) == sent


@pytest.mark.parametrize("datatype", FLOATS)
def test_nan_and_infinities_are_written_by_name(datatype: str) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0.5], np.float32)
    sent = (
        (values.view(np.uint32) >> 16).astype(np.uint16)
        if datatype == "BF16"
        else values.astype({"FP16": np.float16, "FP64": np.float64}.get(datatype, np.float32))
    )

    assert values_sent(to_tensor(sent, datatype)) == ["NaN", "Infinity", "-Infinity", 0.5]


def test_replies_are_compact_json_with_fp64_digits() -> None:
    """Check that text is not escaped either."""
    name = 'é"\\\n\x7f'
    body = encode(to_tensor(np.array([-(2**63), 2**63 - 1])), name)

    assert (
        body == json.dumps(orjson.loads(body), separators=(",", ":"), ensure_ascii=False).encode()
    )
    assert json.loads(body)["id"] == name
    assert json.loads(body)["outputs"][0]["data"] == [-(2**63), 2**63 - 1]
    assert b'"data":[0.10000000149011612,-0.0,1.0]' in encode(
        to_tensor(np.array([0.1, -0.0, 1], np.float32))
    )
