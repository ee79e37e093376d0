"""Processes of functions that are killed: no upload is lost, and requests fail cleanly."""

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
from onnx import numpy_helper

from local.client import RunningStack
from tests.e2e.conftest import Api
from tests.models import scale_model

UPLOADS_MAX = 20  # until one is killed in time


def slow_model(factor: float) -> bytes:
    """Return a scale_model of 40 MB, whose registration takes a while."""
    model = onnx.load_from_string(scale_model(factor))
    model.graph.initializer.append(
        numpy_helper.from_array(np.zeros(10_000_000, np.float32), "unused")
    )
    return model.SerializeToString()


def kill(stack: RunningStack, function: str, state: str | None = None) -> int:
    """Send SIGKILL to every environment of a function, or those in `state`; return their number."""
    pids = [
        environment["pid"]
        for environment in stack.environments(function)
        if environment["pid"] and state in (None, environment["state"])
    ]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(pids)


def upload_and_kill(api: Api, stack: RunningStack, model: str) -> int:
    """Upload versions until the registration of one is killed; return its number."""

    def has_ended(number: int) -> bool:
        rows = api.index(model)
        return len(rows) == number and all(row["state"] != "LOADING" for row in rows)

    for number in range(1, UPLOADS_MAX + 1):
        api.upload(f"models/{model}/x.onnx", slow_model(float(number)))
        while not has_ended(number):
            if kill(stack, "RegisterFunction", "busy") and not has_ended(number):
                return number
    raise AssertionError(f"{UPLOADS_MAX} registrations ended before they could be killed")


def test_a_killed_registration_succeeds_on_redelivery(
    api: Api, stack: RunningStack, model: str
) -> None:
    number = upload_and_kill(api, stack, model)

    api.wait_ready(model, number)

    reply = api.infer(model, [1, 1, 1], number)
    assert reply.json["outputs"][0]["data"] == [number] * 3
    versions = [int(row["version"]) for row in api.wait_ended(model, number)]
    assert versions == list(range(1, number + 1))


def test_a_killed_idle_environment_costs_a_cold_start_and_no_request(
    api: Api, stack: RunningStack, scaled: str
) -> None:
    assert api.infer(scaled, [1, 2, 3]).status == 200

    assert kill(stack, "InferFunction") >= 1
    reply = api.infer(scaled, [1, 2, 3])

    assert reply.status == 200
    assert reply.headers["x-cold-start"] == "1"


def test_requests_in_killed_processes_fail_cleanly(
    api: Api, stack: RunningStack, scaled: str
) -> None:
    rounds = 4

    def infer(_: int) -> int:
        return api.infer(scaled, [1, 2, 3]).status

    statuses: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(rounds):
            requests = [pool.submit(infer, number) for number in range(8)]
            kill(stack, "InferFunction")
            statuses += [request.result() for request in requests]

    assert set(statuses) <= {200, 429, 502, 504}
    assert 200 in statuses
    assert api.infer(scaled, [1, 2, 3]).status == 200
