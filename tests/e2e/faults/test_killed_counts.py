"""Counts of requests whose environments are killed: bounded loss, and right sums."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from local.client import RunningStack, start_stack
from tests.e2e.conftest import Api, connect, wait
from tests.models import scale_model

FLUSH_S = 2
SPAN_S = 3 * FLUSH_S  # of requests before an environment is killed
REQUESTS_MAX = 5000
CALLERS = 4
COUNTED = 200  # requests of several environments whose counts are added


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("stack")
    with start_stack(parameters={"UsageFlushSeconds": FLUSH_S}, state_dir=folder) as running:
        yield running


@pytest.fixture(scope="module")
def api(counting: RunningStack) -> Api:
    return connect(counting)


def register(api: Api, model: str) -> str:
    api.upload(f"models/{model}/model.onnx", scale_model(2.0, {"schema": 1}))
    api.wait_ready(model)
    return model


def requests_of(api: Api, model: str, alias: str = "prod") -> int:
    """Return the counted requests of a model by an alias, "" for a version's number."""
    rows = api.get(f"/api/v1/models/{model}/usage?by=alias").json["rows"]
    return sum(row["requests"] for row in rows if row["alias"] == alias)


def infer(api: Api, model: str, reference: int | None = None) -> None:
    assert api.infer(model, [1, 2, 3], reference).status == 200


def idle(stack: RunningStack) -> list[int]:
    """Return the processes of infer once none has work, not even after a reply."""

    def pids() -> list[int]:
        environments = stack.environments("InferFunction")
        is_idle = all(environment["state"] == "idle" for environment in environments)
        return [environment["pid"] for environment in environments] if is_idle else []

    return list(wait(pids, "infer to be idle"))


def kill(stack: RunningStack, pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait(lambda: not Path(f"/proc/{pid}").exists(), f"the end of process {pid}")


def test_a_killed_environment_loses_the_requests_since_its_last_write_at_most(
    api: Api, counting: RunningStack
) -> None:
    model = register(api, "lost")
    counting.recycle("InferFunction")  # one environment from here on
    sent: list[float] = []
    answered: list[float] = []
    while len(sent) < REQUESTS_MAX and (not sent or sent[-1] < sent[0] + SPAN_S):
        sent.append(time.monotonic())
        infer(api, model)
        answered.append(time.monotonic())
        [pid] = idle(counting)  # it has written its counts, if they were due

    kill(counting, pid)
    infer(api, model)  # the next environment writes its first count at once
    idle(counting)

    made = len(sent) + 1
    recent = sum(at > sent[-1] - FLUSH_S for at in answered)
    counted = requests_of(api, model)
    assert 0 <= made - counted <= recent < made
    assert requests_of(api, model) == counted


def test_counts_of_several_environments_add_up_also_if_one_is_killed(
    api: Api, counting: RunningStack
) -> None:
    model = register(api, "sums")

    def call_beside(number: int) -> None:
        infer(api, model, 1)

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(call_beside, range(COUNTED)))

        def are_written() -> bool:
            list(pool.map(lambda _: infer(api, model), range(CALLERS)))  # a write follows a reply
            return requests_of(api, model, "") == COUNTED

        wait(are_written, f"{COUNTED} counted requests")
        pids = idle(counting)
        kill(counting, pids[0])
        list(pool.map(lambda _: infer(api, model), range(CALLERS)))

    assert len(pids) > 1
    assert requests_of(api, model, "") == COUNTED
