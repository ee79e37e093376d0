"""Limits of an uploaded model: each below, at and above its value."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
    largest = limits.CONSTANT_BYTES
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
    "CONSTANT_BYTES": (
        lambda n: raw_identity(
            tensor(
                b"w", number(1, n), message(13, message(1, b"location"), message(2, b"w")), kind=2
            )
        ),
        "BAD_CONSTANT",
    ),
    "CONSTANTS_BYTES": (constants_bytes, "TOO_COMPLEX"),
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
