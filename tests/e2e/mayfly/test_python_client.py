"""The Python client against a stack: every datatype, 16 at once, versions, errors."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto, helper

from mayfly import AsyncMayfly, Mayfly, errors
from tests.e2e.conftest import Api
from tests.models import make_model, scale_model

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
PROTOCOL = {
    "BOOL": (TensorProto.BOOL, [[True, False]]),
    "INT8": (TensorProto.INT8, [[-128, 127]]),
    "INT16": (TensorProto.INT16, [[-(2**15), 1]]),
    "INT32": (TensorProto.INT32, [[-(2**31), 1]]),
    "INT64": (TensorProto.INT64, [[-(2**63), 2**63 - 1]]),
    "UINT8": (TensorProto.UINT8, [[0, 255]]),
    "UINT16": (TensorProto.UINT16, [[0, 2**16 - 1]]),
    "UINT32": (TensorProto.UINT32, [[0, 2**32 - 1]]),
    "UINT64": (TensorProto.UINT64, [[0, 2**64 - 1]]),
    "FP16": (TensorProto.FLOAT16, [[65504.0, float("inf")]]),
    "BF16": (TensorProto.BFLOAT16, [[1.0, -2.5]]),
    "FP32": (TensorProto.FLOAT, [[0.5, float("-inf")]]),
    "FP64": (TensorProto.DOUBLE, [[0.1, 2.0**-1074]]),
    "BYTES": (TensorProto.STRING, [[b"\xff\x00", b""]]),
}


@pytest.fixture
def client(api: Api) -> Iterator[Mayfly]:
    with Mayfly(api.url, api.key) as client:
        yield client


def echo_all() -> bytes:
    """Return a model with an input `i_T` and an output `o_T` for each datatype T."""
    tensor = helper.make_tensor_value_info
    model = make_model(
        [helper.make_node("Identity", [f"i_{name}"], [f"o_{name}"]) for name in PROTOCOL],
        [tensor(f"i_{name}", kind, ["batch", 2]) for name, (kind, _) in PROTOCOL.items()],
        [tensor(f"o_{name}", kind, ["batch", 2]) for name, (kind, _) in PROTOCOL.items()],
    )
    return bytes(model.SerializeToString())


def test_every_datatype_comes_back_as_it_went(api: Api, client: Mayfly, model: str) -> None:
    api.upload(f"models/{model}/m.onnx", echo_all())
    api.wait_ready(model)

    answer = client.model(model).predict({f"i_{n}": v for n, (_, v) in PROTOCOL.items()})

    assert {n: answer[f"o_{n}"].tolist() for n in PROTOCOL} == {
        n: v for n, (_, v) in PROTOCOL.items()
    }


def test_sixteen_threads_share_a_client(client: Mayfly, scaled: str) -> None:
    model = client.model(scaled)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: model.predict(X * n), range(64)))

    for n, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["y"], 2 * X * n)


def test_sixteen_tasks_share_a_client(api: Api, scaled: str) -> None:
    async def main() -> None:
        async with AsyncMayfly(api.url, api.key) as client:
            model = client.model(scaled)
            for first in range(0, 64, 16):
                calls = [model.predict(X * n) for n in range(first, first + 16)]
                for n, answer in enumerate(await asyncio.gather(*calls), first):
                    np.testing.assert_array_equal(answer["y"], 2 * X * n)

    asyncio.run(main())


def test_an_answer_names_version_and_alias(client: Mayfly, scaled: str) -> None:
    default = client.model(scaled).predict(X)
    by_alias = client.model(f"{scaled}:latest").predict(X)
    by_number = client.model(scaled, 1).predict(X)

    answers = (default, by_alias, by_number)
    assert [(a.version, a.alias) for a in answers] == [(1, "prod"), (1, "latest"), (1, "")]
    assert all(answer.request_id for answer in answers)


def test_classes_are_texts(client: Mayfly, scaled: str) -> None:
    answer = client.model(scaled).predict(X, classes={"y": 1})

    assert answer.texts("y") == ["6.000000:2:c", "12.000000:2:c"]


def test_compressed_requests_and_replies_are_the_same(
    client: Mayfly, scaled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = client.model(scaled)
    monkeypatch.setattr(type(model), "_nearby", False)
    large = np.ones((20_000, 3), np.float32)
    for _ in range(2):  # the second asks for a compressed reply, too
        answer = model.predict(large)
        np.testing.assert_array_equal(answer["y"], 2 * large)

    assert answer.headers["content-encoding"] == "gzip"


def test_a_changed_signature_is_read_again(api: Api, client: Mayfly, model: str) -> None:
    api.upload(f"models/{model}/m.onnx", scale_model(2.0))
    api.wait_ready(model)
    latest = client.model(model, "latest")
    assert latest.predict(X).version == 1
    two = make_model(
        [helper.make_node("Identity", ["other"], ["z"])],
        [helper.make_tensor_value_info("other", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("z", TensorProto.INT64, ["n"])],
    )
    api.upload(f"models/{model}/m.onnx", two.SerializeToString())
    api.wait(lambda: latest.signature().version == 2, "latest to be version 2")

    assert latest.predict([5]).value.tolist() == [5]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([[1.0, 2.0]], r"input 'x': shape \[1, 2\] does not fit \[-1, 3\]"),
        ({"z": [1.0]}, "unknown input 'z'"),
        (["a", "b", "c"], "input 'x'"),
    ],
)
def test_a_wrong_input_is_named(client: Mayfly, scaled: str, values: object, text: str) -> None:
    with pytest.raises(errors.InvalidInput, match=text):
        client.model(scaled).predict(values)


def test_errors_are_of_their_class(api: Api, client: Mayfly, scaled: str) -> None:
    with pytest.raises(errors.ModelNotFound):
        client.model("no-such-model").predict(X)
    with pytest.raises(errors.ModelNotFound):
        client.model(scaled, 99).ready()
    with pytest.raises(errors.InvalidInput, match="unknown output 'q'"):
        client.model(scaled).predict(X, outputs=["q"])
    if api.key:
        with pytest.raises(errors.Unauthorized), Mayfly(api.url, f"{api.key[:-1]}!") as other:
            other.model(scaled).predict(X)
