"""Limits of an uploaded model: each below, at and above its value."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

from functions.core.errors import InvalidModel
from functions.core.package import onnx_limits as limits
from functions.core.package.onnx_reader import read_onnx
from tests.hostile.cases import (
    FLOAT,
    INT64,
    constant,
    graph,
    message,
    model,
    node,
    number,
    raw_identity,
    raw_model,
    raw_node,
    raw_value,
    value,
    varint,
)

IDENTITY_FIELDS = 24  # fields of `raw_identity()`


def packed_dims(*dims: int) -> bytes:
    return b"".join(number(1, size) for size in dims)


def tensor(name: bytes, dims: bytes, *rest: bytes, kind: int = FLOAT) -> bytes:
    return message(5, dims, number(2, kind), message(8, name), *rest)


def in_another_file(name: bytes, elements: int) -> bytes:
    return tensor(
        name,
        number(1, elements),
        message(13, message(1, b"location"), message(2, b"w.bin")),
        number(14, 1),
    )


def nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = raw_node(
            b"If", [b"c"], [b"r"], message(5, message(1, b"then_branch"), message(6, inner))
        )
    return raw_identity(inner)


def constants_bytes(size: int) -> bytes:
    largest = limits.DIMENSION
    sizes = [largest] * (size // largest) + ([size % largest] if size % largest else [])
    kind = 2  # one byte an element
    return raw_identity(
        *(
            tensor(
                b"w%d" % at,
                number(1, one),
                message(13, message(1, b"location"), message(2, b"w.bin")),
                number(14, 1),
                kind=kind,
            )
            for at, one in enumerate(sizes)
        )
    )


def metadata_entries(count: int) -> bytes:
    return raw_identity(extra=b"".join(message(14, message(1, b"k%d" % at)) for at in range(count)))


def metadata_bytes(size: int) -> bytes:
    head = len(message(1, b"k"))
    return raw_identity(
        extra=message(14, message(1, b"k"), number(3, 0) * 0, message(2, b"v" * (size - head - 5)))
    )


def division(elements: int) -> bytes:
    return model(
        [node("Div", "x w", "y")],
        [value("x", INT64, None)],
        [value("y", INT64, None)],
        constant("w", np.full(elements, 2), np.int64),
    )


MAKERS: dict[str, tuple[Callable[[int], bytes], str]] = {
    "NODES": (
        lambda n: raw_identity(*(raw_node(b"Relu", [b"x"], [b"o"]) for _ in range(n - 1))),
        "TOO_COMPLEX",
    ),
    "SUBGRAPH_DEPTH": (nested, "TOO_COMPLEX"),
    "TENSORS": (
        lambda n: raw_identity(*(message(11, raw_value(b"x%d" % at)) for at in range(n - 1))),
        "TOO_COMPLEX",
    ),
    "TENSORS out": (
        lambda n: raw_identity(*(message(12, raw_value(b"y%d" % at)) for at in range(n - 1))),
        "TOO_COMPLEX",
    ),
    "FAN": (lambda n: raw_identity(raw_node(b"Sum", [b"x"] * n, [b"o"])), "TOO_COMPLEX"),
    "FAN out": (
        lambda n: raw_identity(raw_node(b"Split", [b"x"], [b"o%d" % at for at in range(n)])),
        "TOO_COMPLEX",
    ),
    "ATTRIBUTES": (
        lambda n: raw_identity(
            raw_node(
                b"Relu",
                [b"x"],
                [b"o"],
                b"".join(message(5, message(1, b"a%d" % at)) for at in range(n)),
            )
        ),
        "TOO_COMPLEX",
    ),
    "RANK": (lambda n: raw_model(message(11, raw_value(b"x", dims=[1] * n))), "BAD_SHAPE"),
    "RANK of a constant": (
        lambda n: raw_identity(tensor(b"w", packed_dims(*[1] * n), message(9, bytes(4)))),
        "TOO_COMPLEX",
    ),
    "DIMENSION": (lambda n: raw_model(message(11, raw_value(b"x", dims=[n]))), "BAD_SHAPE"),
    "DIMENSION of a constant": (
        lambda n: raw_identity(tensor(b"w", packed_dims(n, 0))),
        "BAD_CONSTANT",
    ),
    "NAME": (lambda n: raw_identity(y=b"y" * n), "BAD_NAME"),
    "NAME in Chinese": (lambda n: raw_identity(y="模".encode() * n), "BAD_NAME"),
    "INITIALIZERS": (
        lambda n: raw_identity(*(tensor(b"w%d" % at, number(1, 0)) for at in range(n))),
        "TOO_COMPLEX",
    ),
    "CONSTANTS_BYTES": (constants_bytes, "TOO_LARGE_FOR_MEMORY"),
    "METADATA_ENTRIES": (metadata_entries, "TOO_COMPLEX"),
    "METADATA_BYTES": (metadata_bytes, "TOO_COMPLEX"),
    "FIELDS": (lambda n: raw_identity(extra=number(99, 0) * (n - IDENTITY_FIELDS)), "TOO_COMPLEX"),
    "DIVISOR_ELEMENTS": (division, "UNSAFE_INTEGER_DIVISION"),
}


def read(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    try:
        read_onnx(path)
    except InvalidModel as error:
        return error.instance_code
    return "read"


@pytest.mark.parametrize("name", MAKERS)
def test_a_limit_holds_below_at_and_above_its_value(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = name.split()[0]
    if limit == "FIELDS":
        monkeypatch.setattr(limits, limit, 10_000)
    make, code = MAKERS[name]
    most: int = getattr(limits, limit)

    assert [read(tmp_path, make(size)) for size in (most - 1, most, most + 1)] == [
        "read",
        "read",
        code,
    ]


@pytest.mark.parametrize(
    ("versions", "make"),
    [
        (limits.OPSETS, lambda n: raw_identity(opset=n)),
        (limits.IR_VERSIONS, lambda n: raw_identity(ir=n)),
        (
            limits.ML_OPSETS,
            lambda n: raw_identity(extra=message(8, message(1, b"ai.onnx.ml"), number(2, n))),
        ),
    ],
    ids=["opset", "ir", "ml opset"],
)
def test_versions_that_the_runtime_reads_are_read(
    tmp_path: Path, versions: range, make: Callable[[int], bytes]
) -> None:
    assert {read(tmp_path, make(version)) for version in versions} == {"read"}
    for version in (versions[0] - 1, versions[-1] + 1):
        assert read(tmp_path, make(version)) in (
            "UNSUPPORTED_OPSET",
            "NOT_ONNX" if not version else "",
        )


def test_every_limit_is_tested() -> None:
    numbers = {
        name
        for name, content in vars(limits).items()
        if name.isupper() and isinstance(content, int)
    }

    assert numbers - {"STRING"} == {name.split()[0] for name in MAKERS}


@pytest.mark.parametrize("operator", [*sorted(limits.MICROSOFT), "EPContext", "BeamSearch"])
def test_listed_operators_of_microsoft_are_allowed(tmp_path: Path, operator: str) -> None:
    custom = raw_node(operator.encode(), [b"x"], [b"o"], message(7, b"com.microsoft"))

    expected = "read" if operator in limits.MICROSOFT else "FOREIGN_OPERATOR"
    assert read(tmp_path, raw_identity(custom)) == expected


def test_each_operator_of_microsoft_on_a_cpu_is_allowed_or_has_a_reason_why_not() -> None:
    kernels = {
        kernel.op_name
        for kernel in get_all_opkernel_def()
        if kernel.domain == "com.microsoft" and kernel.provider == "CPUExecutionProvider"
    }

    assert limits.MICROSOFT | limits.NOT_SERVED.keys() == kernels
    assert not limits.MICROSOFT & limits.NOT_SERVED.keys()


@pytest.mark.parametrize("operator", sorted(limits.NOT_SERVED))
def test_a_refused_operator_comes_with_the_reason(tmp_path: Path, operator: str) -> None:
    path = tmp_path / "model.onnx"
    custom = raw_node(operator.encode(), [b"x"], [b"o"], message(7, b"com.microsoft"))
    path.write_bytes(raw_identity(custom))

    with pytest.raises(InvalidModel, match=re.escape(limits.NOT_SERVED[operator])) as refused:
        read_onnx(path)
    assert operator in str(refused.value)
    assert "export the model with operators of ai.onnx" in str(refused.value)


def opset_import(version: int, domain: bytes = b"") -> bytes:
    return message(8, *([message(1, domain)] if domain else []), number(2, version))


@pytest.mark.parametrize(
    ("imports", "opset"),
    [
        ([(b"", 20), (b"", 20)], 20),
        ([(b"", 11), (b"", 13)], 13),
        ([(b"", 13), (b"", 11)], 11),
        ([(b"", 11), (b"ai.onnx", 13)], 13),
        ([(b"ai.onnx", 13), (b"", 11)], 11),
        ([(b"", 13), (b"no.node.uses.it", 2**40)], 13),
        ([(b"", 13), (b"line\nbreak", 1)], 13),
        ([(b"", 13), (b"d" * 100_000, 1)], 13),
        ([(b"ai.onnx.ml", 2)], limits.OPSETS[-1]),
        ([(b"ai.onnx.ml", 9), (b"ai.onnx.ml", 2)], limits.OPSETS[-1]),
    ],
)
def test_of_repeated_imports_the_last_one_counts(
    tmp_path: Path, imports: list[tuple[bytes, int]], opset: int
) -> None:
    path = tmp_path / "model.onnx"
    graph = message(
        7,
        raw_node(b"Identity", [b"x"], [b"y"]),
        message(11, raw_value(b"x")),
        message(12, raw_value(b"y")),
    )
    path.write_bytes(
        number(1, 10) + graph + b"".join(opset_import(version, name) for name, version in imports)
    )

    assert read_onnx(path).opset == opset


@pytest.mark.parametrize(
    "text",
    ["n" * 5000, "line\nbreak", "\u202e\x1b[31m", ""],
    ids=["long", "line break", "unprintable", "empty"],
)
def test_names_that_no_caller_sees_may_be_any_text(tmp_path: Path, text: str) -> None:
    name = text.encode()
    dims = message(2, message(1, message(2, name)))
    typed = message(2, message(1, number(1, FLOAT), dims))
    content = raw_model(
        raw_node(b"Relu", [b"x"], [b"i" + name], message(3, name)),
        raw_node(b"Add", [b"i" + name, b"w" + name], [b"y"]),
        message(5, number(2, FLOAT), message(8, b"w" + name), message(4, bytes(4))),
        message(11, message(1, b"x"), typed),
        message(12, message(1, b"y"), typed),
        message(13, raw_value(b"i" + name)),
    )

    assert read(tmp_path, content) == "read"


def test_a_constant_may_have_any_size_that_the_file_has(tmp_path: Path) -> None:
    size = 250_002 * 768 * 4
    head = number(1, 250_002) + number(1, 768) + number(2, FLOAT) + message(8, b"w")
    prefix = head + varint(9 << 3 | 2) + varint(size)
    inner = raw_node(b"Gather", [b"w", b"x"], [b"y"])
    inner += message(11, raw_value(b"x", INT64)) + message(12, raw_value(b"y"))
    inner += varint(5 << 3 | 2) + varint(len(prefix) + size) + prefix
    start = number(1, 10) + opset_import(20) + varint(7 << 3 | 2) + varint(len(inner) + size)
    path = tmp_path / "model.onnx"
    path.write_bytes(start + inner)
    with path.open("r+b") as file:
        file.truncate(len(start + inner) + size)  # a hole that reads as zeros

    assert read_onnx(path).nodes == 1


def lengths(count: int) -> list[int]:
    return [(at * 37) % 140 for at in range(count)]  # 128 and more take two bytes for the length


@pytest.mark.parametrize("number_of", [5, 3000])
def test_texts_of_any_length_are_counted_and_cost_one_field_a_run(
    tmp_path: Path, number_of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [b"%d" % at + b"t" * size for at, size in enumerate(lengths(number_of))]
    strings = b"".join(message(6, text) for text in texts)
    attribute = message(5, message(1, b"nodes_modes"), *(message(9, text) for text in texts))
    content = raw_identity(
        tensor(b"s", number(1, number_of), strings, kind=8),
        raw_node(b"Neg", [b"x"], [b"o"], attribute),
    )
    short_enough = sum(len(text) < 128 for text in texts)
    monkeypatch.setattr(limits, "FIELDS", 2 * (2 * (number_of - short_enough) + 1) + 100)

    assert read(tmp_path, content) == "read"
    fewer = raw_identity(tensor(b"s", number(1, number_of + 1), strings, kind=8))
    assert read(tmp_path, fewer) == "BAD_CONSTANT"


def test_a_dynamic_dimension_may_be_minus_one(tmp_path: Path) -> None:
    assert read(tmp_path, raw_identity(message(11, raw_value(b"z", dims=[-1, 3])))) == "read"


@pytest.mark.parametrize("packed", [True, False])
def test_dimensions_and_values_are_read_packed_and_unpacked(tmp_path: Path, packed: bool) -> None:
    dims = message(1, varint(2), varint(2)) if packed else packed_dims(2, 2)
    data = (
        message(7, *map(varint, (1, 2, 3, -1)))
        if packed
        else b"".join(number(7, v) for v in (1, 2, 3, -1))
    )
    division = raw_node(b"Div", [b"i", b"w"], [b"o"])
    content = raw_identity(
        division, tensor(b"w", dims, data, kind=INT64), message(11, raw_value(b"i", INT64))
    )

    assert read(tmp_path, content) == "UNSAFE_INTEGER_DIVISION"


I = value("x", INT64)  # noqa: E741
O = value("y", INT64)  # noqa: E741


@pytest.mark.parametrize(
    ("why", "content"),
    [
        ("by a constant", model([node("Div", "x w", "y")], [I], [O], constant("w", 2, np.int64))),
        (
            "by a negative constant",
            model([node("Div", "x w", "y")], [I], [O], constant("w", -2, np.int64)),
        ),
        (
            "by a Constant node",
            model([node("Constant", "", "w", value_int=7), node("Mod", "x w", "y")], [I], [O]),
        ),
        ("of floats", model([node("Div", "x z", "y")], [value("x"), value("z")], [value("y")])),
        (
            "of unsigned numbers",
            model([node("Div", "x z", "y")], [value("x", 13), value("z", 13)], [value("y", 13)]),
        ),
        ("fmod", model([node("Mod", "x z", "y", fmod=1)], [I, value("z", INT64)], [O])),
        (
            "of a shape by a value",
            model([node("Shape", "x", "s"), node("Div", "s x", "y")], [I], [O]),
        ),
        (
            "by a shape",
            model(
                [node("Shape", "x", "s"), node("Gather", "s i", "d"), node("Div", "x d", "y")],
                [I],
                [O],
                constant("i", 0, np.int64),
            ),
        ),
        (
            "by shapes and constants",
            model(
                [
                    node("Shape", "x", "s"),
                    node("Concat", "s i", "d", axis=0),
                    node("Mod", "x d", "y"),
                ],
                [I],
                [O],
                constant("i", [4], np.int64),
            ),
        ),
    ],
)
def test_integer_division_that_cannot_trap_is_read(
    tmp_path: Path, why: str, content: bytes
) -> None:
    assert read(tmp_path, content) == "read", why


@pytest.mark.parametrize(
    ("why", "content"),
    [
        ("by a request", model([node("Div", "x z", "y")], [I, value("z", INT64)], [O])),
        ("by -1", model([node("Div", "x w", "y")], [I], [O], constant("w", -1, np.int64))),
        ("by 0", model([node("Mod", "x w", "y")], [I], [O], constant("w", [3, 0], np.int64))),
        (
            "by -1 in a Constant node",
            model([node("Constant", "", "w", value_int=-1), node("Div", "x w", "y")], [I], [O]),
        ),
        (
            "after Cast",
            model(
                [
                    node("Cast", "f", "x", to=INT64),
                    node("Cast", "f", "z", to=INT64),
                    node("Div", "x z", "y"),
                ],
                [value("f")],
                [O],
            ),
        ),
        (
            "of a product of shapes",
            model(
                [node("Shape", "x", "s"), node("Mul", "s s", "d"), node("Div", "x d", "y")],
                [I],
                [O],
            ),
        ),
        (
            "of what is declared inside",
            model([node("Mystery", "x", "m"), node("Div", "m m", "y")], [I], [O]),
        ),
    ],
)
def test_integer_division_that_can_trap_is_refused(
    tmp_path: Path, why: str, content: bytes
) -> None:
    assert read(tmp_path, content) == "UNSAFE_INTEGER_DIVISION", why


def test_initializers_of_old_files_are_constants_though_listed_as_inputs(
    tmp_path: Path,
) -> None:
    content = model(
        [node("Div", "x w", "y")], [I, value("w", INT64, [])], [O], constant("w", 2, np.int64)
    )

    assert read(tmp_path, content) == "UNSAFE_INTEGER_DIVISION"
    assert read(tmp_path, content.replace(number(1, 10), number(1, 3), 1)) == "read"


def test_a_subgraph_sees_the_types_around_it(tmp_path: Path) -> None:
    inner = graph("then", [node("Div", "x x", "r")], [], [value("r", INT64)])
    content = model(
        [node("If", "c", "y", then_branch=inner, else_branch=inner)], [I, value("c", 9, [])], [O]
    )

    assert read(tmp_path, content) == "UNSAFE_INTEGER_DIVISION"
