"""Compatibility with unmodified clients: tritonclient, KServe, curl."""

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio

from tests.e2e.conftest import Api
from tests.models import scale_model

X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
KSERVE_PYTHON = os.environ.get("MAYFLY_KSERVE_PYTHON", ".venv-kserve/bin/python")


@pytest.fixture(params=["stage path", "no base path"])
def base(api: Api, request: pytest.FixtureRequest) -> str:
    """Return host:port[/stage], the form that tritonclient takes."""
    url = api.url if request.param == "stage path" else api.root_url
    if url is None:
        pytest.skip("STACK_URL names one base path only")
    return url.partition("://")[2]


class Bearer(triton.InferenceServerClientPlugin):
    """Plugin of tritonclient that sends an access key with every request."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> None:
        request.headers["authorization"] = f"Bearer {self._key}"


@pytest.fixture
def client(api: Api, base: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(base, network_timeout=60, connection_timeout=60) as client:
        client.register_plugin(Bearer(api.key))
        yield client


def tensors(module: Any, binary: bool) -> dict[str, list[Any]]:
    x = module.InferInput("x", list(X.shape), "FP32")
    x.set_data_from_numpy(X, binary_data=binary)
    return {"inputs": [x], "outputs": [module.InferRequestedOutput("y", binary_data=binary)]}


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_triton_infers(client: triton.InferenceServerClient, scaled: str, binary: bool) -> None:
    answer = client.infer(scaled, **tensors(triton, binary), request_id="mine")

    np.testing.assert_array_equal(answer.as_numpy("y"), 2 * X)
    assert answer.get_response()["id"] == "mine"
    assert answer.get_response()["model_version"] == "1"


def test_triton_infers_without_naming_outputs_and_by_version_and_alias(
    client: triton.InferenceServerClient, scaled: str
) -> None:
    for version in ("", "1", "prod", "latest"):
        answer = client.infer(scaled, tensors(triton, True)["inputs"], model_version=version)
        np.testing.assert_array_equal(answer.as_numpy("y"), 2 * X)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_triton_compresses_both_ways(
    client: triton.InferenceServerClient, scaled: str, algorithm: str
) -> None:
    many = np.tile(X, (500, 1))
    x = triton.InferInput("x", list(many.shape), "FP32")
    x.set_data_from_numpy(many)

    answer = client.infer(
        scaled,
        [x],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )

    np.testing.assert_array_equal(answer.as_numpy("y"), 2 * many)


def test_triton_classifies(client: triton.InferenceServerClient, scaled: str) -> None:
    answer = client.infer(
        scaled,
        tensors(triton, True)["inputs"],
        outputs=[triton.InferRequestedOutput("y", class_count=2)],
    )

    assert answer.as_numpy("y").tolist() == [
        [b"6.000000:2:c", b"4.000000:1:b"],
        [b"12.000000:2:c", b"10.000000:1:b"],
    ]


def test_triton_reads_health_and_metadata(
    client: triton.InferenceServerClient, scaled: str
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(scaled)
    assert client.is_model_ready(scaled, "latest")
    assert not client.is_model_ready("nobody")
    assert {"binary_tensor_data", "classification"} <= set(
        client.get_server_metadata()["extensions"]
    )
    assert client.get_model_metadata(scaled, "prod")["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
    ]
    assert client.get_model_config(scaled)["input"][0]["data_type"] == "TYPE_FP32"
    statistics = client.get_inference_statistics(scaled)
    assert statistics["model_stats"][0]["name"] == scaled
    assert statistics["delay_seconds"] > 0
    assert scaled in {row["name"] for row in client.get_inference_statistics()["model_stats"]}
    assert scaled in {row["name"] for row in client.get_model_repository_index()}


def test_triton_unloads_and_loads(
    client: triton.InferenceServerClient, api: Api, model: str
) -> None:
    """Uses a model of its own, because environments follow one after the other."""

    def is_refused() -> bool:
        try:
            client.infer(model, **tensors(triton, True))
        except triton.InferenceServerException as error:
            return "unloaded" in str(error)
        return False

    api.upload(f"models/{model}/model.onnx", scale_model(2.0))
    api.wait_ready(model)
    client.unload_model(model)
    api.wait(lambda: not client.is_model_ready(model), "the model to be unloaded")
    api.wait(is_refused, "the model to refuse requests")
    client.load_model(model)
    api.wait(lambda: client.is_model_ready(model), "the model to be loaded again")
    api.wait(lambda: api.infer(model, [1, 2, 3]).status == 200, "the model to answer again")
    with pytest.raises(triton.InferenceServerException, match="failed to load 'nobody'"):
        client.load_model("nobody")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda c, m: c.infer("nobody", **tensors(triton, True)),
            "Request for unknown model: 'nobody'",
        ),
        (lambda c, m: c.infer(m, **tensors(triton, True), model_version="9"), "'9'"),
        (
            lambda c, m: c.infer(
                m, [triton.InferInput("z", [1], "FP32").set_data_from_numpy(X[0, :1])]
            ),
            "'z'",
        ),
        (lambda c, m: c.get_model_metadata("nobody"), "Request for unknown model: 'nobody'"),
    ],
    ids=["model", "version", "input", "metadata"],
)
def test_triton_raises_errors_with_our_text(
    client: triton.InferenceServerClient, scaled: str, call: Callable[[Any, str], Any], says: str
) -> None:
    with pytest.raises(triton.InferenceServerException, match=says):
        call(client, scaled)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_triton_aio_infers_and_reads_metadata(
    api: Api, base: str, scaled: str, binary: bool
) -> None:
    async def run() -> None:
        async with triton_aio.InferenceServerClient(base, conn_timeout=60) as client:
            client.register_plugin(Bearer(api.key))
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready(scaled, "prod")
            assert (await client.get_model_metadata(scaled))["name"] == scaled
            assert (await client.get_server_metadata())["name"]
            for algorithm in (None, "gzip", "deflate"):
                answer = await client.infer(
                    scaled, **tensors(triton_aio, binary), response_compression_algorithm=algorithm
                )
                np.testing.assert_array_equal(answer.as_numpy("y"), 2 * X)
            with pytest.raises(
                triton_aio.InferenceServerException, match="Request for unknown model"
            ):
                await client.infer("nobody", **tensors(triton_aio, binary))

    asyncio.run(run())


def test_triton_sends_every_datatype_of_the_wire(api: Api, scaled: str, base: str) -> None:
    """A wrong datatype is refused with our sentence, so its bytes were understood."""
    with triton.InferenceServerClient(base, network_timeout=60) as client:
        client.register_plugin(Bearer(api.key))
        for datatype, dtype in [
            ("INT8", np.int8),
            ("UINT64", np.uint64),
            ("FP16", np.float16),
            ("BOOL", np.bool_),
        ]:
            x = triton.InferInput("x", [1, 3], datatype)
            x.set_data_from_numpy(np.ones((1, 3), dtype))
            with pytest.raises(
                triton.InferenceServerException, match=f"{datatype}.*FP32|FP32.*{datatype}"
            ):
                client.infer(scaled, [x])


def test_kserve_infers(api: Api, scaled: str) -> None:
    """KServe has a virtual environment of its own: its requirements exclude ours."""
    for url in filter(None, [api.url, api.root_url]):
        done = subprocess.run(
            [KSERVE_PYTHON, "tests/e2e/kserve_client.py", url, scaled, api.key],
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.splitlines()[-1]) == {
            "live": True, "ready": True, "model_ready": True, "y": [2, 4, 6], "by_alias": [2, 4, 6],
        }  # fmt: skip


def test_curl_infers_in_json_and_raw(api: Api, scaled: str, tmp_path: Path) -> None:
    key = ["-H", f"x-api-key: {api.key}"]

    def curl(*arguments: str) -> bytes:
        done = subprocess.run(
            ["curl", "-sS", "--fail-with-body", "--noproxy", "*", *key, *arguments],
            capture_output=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    url = f"{api.url}/v2/models/{scaled}/infer"
    request = '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}]}'
    assert json.loads(curl(url, "-d", request))["outputs"][0]["data"] == [2, 4, 6]
    assert json.loads(curl(url, "--compressed", "-d", request))["outputs"][0]["data"] == [2, 4, 6]

    raw = tmp_path / "raw"
    raw.write_bytes(X[:1].tobytes())
    answer = curl(url, "-H", "Inference-Header-Content-Length: 0", "--data-binary", f"@{raw}")
    assert answer.endswith((2 * X[:1]).tobytes())
