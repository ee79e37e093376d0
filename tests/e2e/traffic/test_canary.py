"""Canaries by HTTP alone: the state machine judges them while requests come in."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import boto3
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from local.client import start_stack
from tests.e2e.conftest import Api, Reply, connect
from tests.models import lookup_model, make_model, scale_model

# Stated bounds: requests that a harmful candidate has before it is rolled back, and those that it
# gets until its counters are written and judged and every environment sees the alias.
WITHIN_REQUESTS = 600
LAG_REQUESTS = 600
SETTINGS = {"steps": [20, 50], "bake_seconds": 3, "max_age_seconds": 1800}
CALLERS = 2
PATIENCE_S = 600.0  # for the end of a canary; only a broken test waits so long
ROWS, WIDTH = 512, 256
SHORT, LONG = 8, 24  # layers: 0.5 and 1.6 GFLOP, so that a request takes more than twice as long


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Start a stack whose aliases are cached long enough that requests compute, not look up."""
    if url := os.environ.get("STACK_URL"):
        bucket, key = os.environ["ARTIFACTS_BUCKET"], os.environ.get("MAYFLY_KEY", "")
        yield Api(url.rstrip("/"), None, bucket, boto3.client("s3"), key)
        return
    parameters = {"AliasCacheSeconds": 5, "UsageFlushSeconds": 1}
    with start_stack(parameters=parameters, state_dir=tmp_path_factory.mktemp("stack")) as running:
        yield connect(running)


def deep_model(layers: int) -> bytes:
    """Return a model that computes so many dense layers of ROWS rows for each value of x."""
    weights = np.full((WIDTH, WIDTH), 1 / WIDTH, np.float32)
    ones = np.ones((ROWS, WIDTH), np.float32)
    names = [f"h{layer}" for layer in range(layers + 1)]
    nodes = [helper.make_node("Mul", ["ones", "x"], [names[0]])]
    nodes += [
        helper.make_node("MatMul", [source, "w"], [target]) for source, target in pairwise(names)
    ]
    nodes.append(helper.make_node("ReduceMean", [names[-1]], ["y"], keepdims=0))
    return make_model(
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(ones, "ones")],
    ).SerializeToString()


def tensor(name: str, datatype: str, shape: list[int], data: list[float]) -> dict[str, Any]:
    return {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}


@contextmanager
def callers(api: Api, model: str, body: Callable[[int], object]) -> Iterator[list[Reply]]:
    """Send requests to the alias prod until the block ends; yield the replies so far."""
    replies: list[Reply] = []
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            path = f"/v2/models/{model}/infer"
            replies.append(api.call("POST", path, body(len(replies))))

    threads = [threading.Thread(target=run) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield replies
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def upload_two(api: Api, model: str, first: bytes, second: bytes) -> None:
    for number, content in enumerate((first, second), 1):
        api.upload(f"models/{model}/v{number}.onnx", content)
        api.wait_ready(model, number)


def start(api: Api, model: str, **settings: Any) -> dict[str, Any]:
    path = f"/api/v1/models/{model}/aliases/prod/canary"
    reply = api.call("POST", path, {"version": 2, **SETTINGS, **settings})
    assert reply.status == 201, reply.body
    return dict(reply.json)


def wait_ended(api: Api, model: str) -> dict[str, Any]:
    path = f"/api/v1/models/{model}/aliases/prod/canary"
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        canary = dict(api.get(path).json)
        if canary["state"] != "running":
            return canary
        time.sleep(1)  # each look at it takes processor time from the requests
    raise AssertionError(f"the canary ran for {PATIENCE_S:.0f} s: {canary}")


def audited(api: Api, model: str, action: str) -> dict[str, Any]:
    records = api.get(f"/api/v1/models/{model}/audit?action={action}").json["records"]
    assert len(records) == 1
    assert records[0]["actor"] == "judge"
    return dict(records[0]["after"])


def count_candidates(replies: list[Reply]) -> int:
    return sum(reply.headers.get("x-model-version") == "2" for reply in replies)


def test_a_version_that_errs_is_rolled_back_with_its_reason(api: Api, model: str) -> None:
    upload_two(api, model, lookup_model(100), lookup_model(50))

    def body(number: int) -> object:
        return tensor("i", "INT64", [1], [70 if number % 5 == 0 else 7])  # a fifth fails

    started = start(api, model)
    with callers(api, model, body) as replies:
        canary = wait_ended(api, model)

    assert (canary["state"], canary["id"]) == ("rolled_back", started["id"])
    change = audited(api, model, "roll_back_canary")
    assert "requests failed" in change["reason"]
    assert change["numbers"]["test"] == "errors"
    assert change["numbers"]["candidate_requests"] <= WITHIN_REQUESTS
    assert count_candidates(replies) <= WITHIN_REQUESTS + LAG_REQUESTS
    assert {reply.status for reply in replies} == {200, 400}


def test_a_version_that_is_slow_is_rolled_back_with_its_reason(api: Api, model: str) -> None:
    upload_two(api, model, deep_model(SHORT), deep_model(LONG))

    start(api, model)
    with callers(api, model, lambda _: tensor("x", "FP32", [1], [0.5])) as replies:
        canary = wait_ended(api, model)

    assert canary["state"] == "rolled_back", canary
    change = audited(api, model, "roll_back_canary")
    assert "more than 1.5 times as long" in change["reason"]
    assert change["numbers"]["candidate_requests"] <= WITHIN_REQUESTS
    assert {reply.status for reply in replies} == {200}


def test_an_equal_version_is_promoted_in_steps(api: Api, model: str) -> None:
    upload_two(api, model, scale_model(2.0), scale_model(2.0))

    start(api, model, min_samples=40)
    body = tensor("x", "FP32", [1, 3], [1, 2, 3])
    with callers(api, model, lambda _: body) as replies:
        canary = wait_ended(api, model)

    assert (canary["state"], canary["stable_version"]) == ("promoted", 2), canary
    assert "no difference found" in canary["verdict"]
    assert audited(api, model, "step_canary")["reason"].endswith("in step 1 of 2 (20 %)")
    assert {reply.status for reply in replies} == {200}


def test_a_canary_without_requests_is_rolled_back_at_its_maximum_age(api: Api, model: str) -> None:
    upload_two(api, model, scale_model(2.0), scale_model(2.0))

    start(api, model, bake_seconds=1, max_age_seconds=4)
    canary = wait_ended(api, model)

    assert canary["state"] == "rolled_back"
    assert "too few requests" in audited(api, model, "roll_back_canary")["reason"]


def test_a_policy_releases_a_new_version_by_a_canary(api: Api, model: str) -> None:
    api.upload(f"models/{model}/v1.onnx", scale_model(2.0))
    api.wait_ready(model, 1)
    settings = {"steps": [50], "bake_seconds": 1, "min_samples": 20, "max_age_seconds": 1800}
    policy = {"policy": {"kind": "always", "canary": settings}}
    assert api.call("PATCH", f"/api/v1/models/{model}", policy).status == 200

    api.upload(f"models/{model}/v2.onnx", scale_model(2.0))
    api.wait_ready(model, 2)
    body = tensor("x", "FP32", [1, 3], [1, 2, 3])
    with callers(api, model, lambda _: body):
        canary = wait_ended(api, model)

    assert (canary["state"], canary["started_by"]) == ("promoted", "policy"), canary
    assert canary["stable_version"] == 2


def test_a_person_stops_a_canary(api: Api, model: str) -> None:
    upload_two(api, model, scale_model(2.0), scale_model(3.0))
    start(api, model)
    path = f"/api/v1/models/{model}/aliases/prod/canary"

    assert api.call("DELETE", path).json["state"] == "stopped"
    assert api.call("POST", f"{path}/promote").status == 409
