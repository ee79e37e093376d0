"""Splits, shadows and moves of an alias, by HTTP alone."""

import math
import os
import threading
import time
from collections import Counter
from typing import Any

import pytest

from tests.e2e.conftest import Api, Reply
from tests.models import scale_model

FACTORS = {"1": 2.0, "2": -3.0}
CLIENTS = 4
MOVES = 4
# More than the seconds for which a stack caches an alias: 1 in the fixture's, 5 by default
CACHED_S = 6.0 if "STACK_URL" in os.environ else 2.0


@pytest.fixture
def alias(api: Api, model: str) -> str:
    """Register two versions that answer differently; return the path of `prod`."""
    for number, factor in FACTORS.items():
        api.upload(f"models/{model}/{number}.onnx", scale_model(factor))
        api.wait_ready(model, int(number))
    return f"/api/v1/models/{model}/aliases/prod"


def ask(api: Api, model: str, user: str = "") -> Reply:
    """Call `prod`; check that the reply is of the version that it names."""
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}
    headers = {"x-mayfly-user": user} if user else {}
    reply = api.call("POST", f"/v2/models/{model}/infer", {"inputs": [tensor]}, headers)
    assert reply.status == 200, reply.body
    factor = FACTORS[reply.headers["x-model-version"]]
    assert reply.json["outputs"][0]["data"] == [factor, 2 * factor, 3 * factor]
    return reply


def change(api: Api, method: str, path: str, body: object) -> Any:
    reply = api.call(method, path, body)
    assert reply.status == 200, reply.body
    return reply.json


def test_users_are_split_by_weight_and_stay_on_their_side(api: Api, model: str, alias: str) -> None:
    weights = [{"version": 1, "weight": 90}, {"version": 2, "weight": 10}]
    body = {"weights": weights, "shadow": {"version": 2, "percent": 50}}
    change(api, "PUT", f"{alias}/traffic", body)
    api.wait(lambda: "x-model-variant" in ask(api, model).headers, "the split")
    time.sleep(CACHED_S)  # until each environment has it

    users = [f"user-{number}" for number in range(400)]
    sides = {user: ask(api, model, user).headers["x-model-version"] for user in users}

    share = Counter(sides.values())["2"]
    assert abs(share - 40) < 3 * math.sqrt(400 * 0.1 * 0.9)
    for user in users[::20]:
        assert ask(api, model, user).headers["x-model-version"] == sides[user]


def test_every_reply_is_of_the_version_that_it_names_while_the_alias_moves(
    api: Api, model: str, alias: str
) -> None:
    ended = threading.Event()
    faults: list[BaseException] = []
    replies: list[tuple[float, float, str]] = []  # asked, answered, version

    def call() -> None:
        while not ended.is_set():
            asked = time.monotonic()
            try:
                version = ask(api, model).headers["x-model-version"]
            except BaseException as fault:
                faults.append(fault)
                return
            replies.append((asked, time.monotonic(), version))

    threads = [threading.Thread(target=call, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    spans = []
    for move in range(MOVES):
        target = 2 - move % 2
        change(api, "PUT", alias, {"version": target})
        since = time.monotonic() + CACHED_S
        api.wait(lambda since=since: any(asked > since for asked, *_ in replies), "a reply")
        spans.append((since, time.monotonic(), str(target)))
    ended.set()
    for thread in threads:
        thread.join(60)

    assert not faults
    for since, until, target in spans:
        versions = {v for asked, answered, v in replies if since < asked and answered < until}
        assert versions <= {target}
