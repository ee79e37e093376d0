"""Canaries to versions whose requests end their environments: rolled back, never promoted."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from onnx import helper

from local.client import RunningStack, start_stack
from tests.e2e.conftest import Api, connect
from tests.e2e.traffic.test_canary import audited, callers, start, tensor, upload_two, wait_ended
from tests.integration.functions.serving.test_stuck_operators import STUCK, TIMEOUT_S, model

STUCK_S = 2.0  # a request of the stable version takes milliseconds
QUICK = [helper.make_node("Identity", ["n"], ["value"])]
pytestmark = pytest.mark.stress  # some minutes of both processors


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    parameters = {"InferTimeout": TIMEOUT_S, "UsageFlushSeconds": 1, "AliasCacheSeconds": 1}
    folder = tmp_path_factory.mktemp("stack")
    with start_stack(parameters=parameters, state_dir=folder) as running:
        yield running


@contextlib.contextmanager
def killed(stack: RunningStack) -> Iterator[None]:
    """Kill each environment that has been busy with a request for STUCK_S."""
    ended, busy_since = threading.Event(), dict[int, float]()

    def run() -> None:
        while not ended.wait(0.1):
            states = {e["pid"]: e["state"] for e in stack.environments("InferFunction")}
            for pid, state in states.items():
                since = busy_since.setdefault(pid, time.monotonic())
                if state != "busy":
                    del busy_since[pid]
                elif time.monotonic() > since + STUCK_S:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(("test", "kills"), [("errors", False), ("lost", True)])
def test_a_version_that_ends_its_environments_is_rolled_back(
    stack: RunningStack, test: str, kills: bool
) -> None:
    api: Api = connect(stack)
    nodes, _, stuck = STUCK["multiplication"]
    upload_two(api, "stuck", model(QUICK), model(nodes))
    body = tensor("n", "INT64", [], [stuck])

    start(api, "stuck", steps=[20, 50], bake_seconds=5, min_samples=20)
    killer = killed(stack) if kills else contextlib.nullcontext()
    with killer, callers(api, "stuck", lambda _: body) as replies:
        canary = wait_ended(api, "stuck")

    assert canary["state"] == "rolled_back", canary
    assert audited(api, "stuck", "roll_back_canary")["numbers"]["test"] == test
    assert {reply.status for reply in replies} == {200, 502 if kills else 504}
