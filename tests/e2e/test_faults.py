"""Processes that die at the worst moment lose nothing."""

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from local.client import RunningStack
from tests.e2e.conftest import Api
from tests.models import scale_model


def slow_model(factor: float) -> bytes:
    """A scale_model of 40 MB: its registration takes long enough to be hit."""
    model = onnx.load_from_string(scale_model(factor))
    model.graph.initializer.append(
        numpy_helper.from_array(np.zeros(10_000_000, np.float32), "unused")
    )
    return model.SerializeToString()


def kill_all(stack: RunningStack, function: str) -> int:
    """SIGKILL every environment of the function. Returns how many there were."""
    pids = [
        environment["pid"] for environment in stack.environments(function) if environment["pid"]
    ]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return len(pids)


@pytest.fixture
def killing(stack: RunningStack) -> Iterator[threading.Event]:
    """Kills the register function's processes again and again until told to stop."""
    stop, hit = threading.Event(), threading.Event()

    def loop() -> None:
        while not stop.wait(0.05):
            busy = [
                e["pid"]
                for e in stack.environments("RegisterFunction")
                if e["state"] == "busy" and e["pid"]
            ]
            for pid in busy:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                hit.set()
            if hit.is_set():
                return

    thread = threading.Thread(target=loop)
    thread.start()
    yield hit
    stop.set()
    thread.join()


def test_a_registration_that_is_killed_happens_on_redelivery(
    api: Api, killing: threading.Event, model: str
) -> None:
    api.upload(f"models/{model}/x.onnx", slow_model(7.0))

    api.wait_ready(model)

    assert killing.is_set(), "the registration was over before it could be killed"
    assert api.infer(model, [1, 1, 1]).json["outputs"][0]["data"] == [7, 7, 7]
    assert [row["version"] for row in api.wait_ended(model, 1)] == ["1"]


def test_an_environment_killed_while_idle_costs_a_cold_start_and_no_request(
    api: Api, stack: RunningStack, scaled: str
) -> None:
    assert api.infer(scaled, [1, 2, 3]).status == 200

    assert kill_all(stack, "InferFunction") >= 1
    reply = api.infer(scaled, [1, 2, 3])

    assert reply.status == 200
    assert reply.headers["x-cold-start"] == "1"


def test_requests_during_which_processes_are_killed_fail_cleanly_and_the_next_ones_are_served(
    api: Api, stack: RunningStack, scaled: str
) -> None:
    rounds = 4

    def ask(_: int) -> int:
        return api.infer(scaled, [1, 2, 3]).status

    statuses: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        for _ in range(rounds):
            asked = [pool.submit(ask, number) for number in range(8)]
            kill_all(stack, "InferFunction")
            statuses += [request.result() for request in asked]

    assert set(statuses) <= {200, 429, 502, 504}
    assert 200 in statuses
    assert api.infer(scaled, [1, 2, 3]).status == 200
