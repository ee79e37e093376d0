"""Splits and shadows as callers of the infer handler meet them."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from functions.core.access.grants import Scope
from functions.core.errors import ExecutionFailed, TimedOut
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.traffic.traffic import Traffic, Weight, split
from functions.infer.prefetch import PrefetchingHandler
from tests.data_plane import Client, Context, DataPlane, LaterContext, Reply, join_loads, rows

PATH = "/v2/models/demo/infer"
FACTORS = {"1": 2.0, "2": -3.0}  # of the versions; they disagree about the highest class


@pytest.fixture
def plane(tmp_path: Path) -> DataPlane:
    plane = DataPlane(tmp_path)
    for factor in FACTORS.values():
        plane.register("demo", factor)
    return plane


@pytest.fixture
def client(plane: DataPlane) -> Client:
    return Client(plane.handler(), in_bytes=True)


def set_traffic(plane: DataPlane, traffic: Traffic | None) -> str:
    """Replace the traffic of `prod`; return the new object's id."""
    alias = plane.releases.set_traffic("demo", "prod", traffic, actor="ann")
    plane.clock.now += 10  # older answers of the registry expire
    return alias.traffic.id if alias.traffic else ""


def ask(client: Client, user: str = "", **more: Any) -> Reply:
    """Call `prod`; check that the reply names the version that made it."""
    headers = {"x-mayfly-user": user} if user else {}
    reply = client.post(PATH, rows([1, 2, 3]), headers=headers, **more)
    version = reply.headers["x-model-version"]
    assert reply.status == 200
    assert reply.json["model_version"] == version
    assert reply.json["outputs"][0]["data"] == [FACTORS[version] * x for x in (1, 2, 3)]
    return reply


def test_an_alias_without_traffic_has_no_variant(client: Client) -> None:
    assert "x-model-variant" not in ask(client).headers


def test_a_reply_names_the_variant_of_its_version(plane: DataPlane, client: Client) -> None:
    set_traffic(plane, split(1, 2, 50))

    variants = set()
    for user in range(20):
        headers = ask(client, f"user-{user}").headers
        assert headers["x-model-alias"] == "prod"
        variants.add((headers["x-model-version"], headers["x-model-variant"]))

    assert variants == {("1", "stable"), ("2", "candidate")}
    assert {line["variant"] for line in plane.lines} == {"stable", "candidate"}
    for version in (1, 2):  # a number and another alias are not split
        reply = client.post(f"/v2/models/demo/versions/{version}/infer", rows([1, 2, 3]))
        assert reply.headers["x-model-version"] == str(version)
        assert "x-model-variant" not in reply.headers


def spread(plane: DataPlane, client: Client, requests: int) -> float:
    """Send requests of as many users; return the deviation from 90/10 in sigma."""
    set_traffic(plane, split(1, 2, 10))
    versions = Counter(
        ask(client, f"user-{number}").headers["x-model-version"] for number in range(requests)
    )
    return abs(versions["2"] - 0.1 * requests) / math.sqrt(requests * 0.1 * 0.9)


def test_requests_are_split_by_their_weights(plane: DataPlane, client: Client) -> None:
    assert spread(plane, client, 2_000) < 3


@pytest.mark.stress
def test_twenty_thousand_requests_are_split_by_their_weights(
    plane: DataPlane, client: Client
) -> None:
    assert spread(plane, client, 20_000) < 3


def test_a_user_stays_with_a_candidate_that_grows(plane: DataPlane, client: Client) -> None:
    users = [f"user-{number}" for number in range(100)]
    before: set[str] = set()
    for percent in (1, 5, 10, 25, 50, 75, 100):
        set_traffic(plane, split(1, 2, percent))
        replies = {user: ask(client, user).headers["x-model-version"] for user in users * 2}
        candidates = {user for user, version in replies.items() if version == "2"}
        assert before <= candidates
        before = candidates
    assert before == set(users)


def test_a_key_stands_for_its_user(plane: DataPlane) -> None:
    set_traffic(plane, split(1, 2, 50))
    client = Client(plane.handler(gate=plane.gate), in_bytes=True)
    variants = set()
    for _ in range(20):
        headers = {"x-api-key": plane.create_key(Scope.INFER)}
        replies = [client.post(PATH, rows([1, 2, 3]), headers=headers) for _ in range(3)]
        [variant] = {reply.headers["x-model-variant"] for reply in replies}
        variants.add(variant)

    assert variants == {"stable", "candidate"}


def test_the_first_request_loads_the_side_that_answers_it(tmp_path: Path) -> None:
    for number in range(8):
        plane = DataPlane(tmp_path)
        for factor in FACTORS.values():
            plane.register("demo", factor)
        set_traffic(plane, split(1, 2, 50))
        handler = PrefetchingHandler(plane.handler, plane.resolver, plane.models)

        ask(Client(handler, in_bytes=True), f"user-{number}")

        assert len(plane.runtime.loads) == 1


# --- shadow


def shadowed(percent: int = 100, **fields: Any) -> Traffic:
    return Traffic((Weight(1, 10_000),), shadow=Weight(2, percent * 100), **fields)


def shadow_counts(plane: DataPlane) -> list[tuple[int, str, str, int, int, int]]:
    """Return what was counted of copies, by version, alias and traffic object."""
    return [
        (key.version, key.alias, key.traffic, row.compared, row.agreed, row.failed)
        for key, row in plane.meter.unwritten()
        if row.shadowed
    ]


def ask_and_post(client: Client, body: Any = None, **more: Any) -> Reply:
    """Call `prod`; run what is left for after the reply."""
    context = LaterContext()
    reply = client.post(PATH, body or rows([1, 2, 3]), context=context, **more)
    context.post()
    return reply


def test_a_copy_is_run_after_the_reply_and_compared(plane: DataPlane, client: Client) -> None:
    traffic = set_traffic(plane, shadowed())
    context = LaterContext()

    ask(client, context=context)
    assert plane.runtime.runs == [2.0]
    context.post()

    assert plane.runtime.runs == [2.0, -3.0]
    assert shadow_counts(plane) == [(2, "prod", traffic, 1, 0, 0)]
    ask_and_post(client, rows([0, 0, 0]))
    assert shadow_counts(plane) == [(2, "prod", traffic, 2, 1, 0)]


def test_the_tolerance_of_the_manifest_decides(plane: DataPlane, client: Client) -> None:
    plain = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))
    tolerance = {"tolerance": {"rtol": 0.02, "unit": "kg"}}
    for factor, card in ((2.0, tolerance), (2.03, {}), (2.05, {})):
        plane.register("close", factor, plain, card=card)
    counts = []
    for shadow in (2, 3):
        traffic = Traffic((Weight(1, 10_000),), shadow=Weight(shadow, 10_000))
        plane.releases.set_traffic("close", "prod", traffic, actor="ann")
        plane.clock.now += 10
        context = LaterContext()
        client.post("/v2/models/close/infer", rows([1, 2, 3]), context=context)
        context.post()
        counts += [count[3:] for count in shadow_counts(plane) if count[0] == shadow]

    assert counts == [(1, 1, 0), (1, 0, 0)]


def test_a_share_of_the_stable_requests_is_copied(plane: DataPlane, client: Client) -> None:
    handler = plane.handler()
    traffic = split(1, 2, 50, shadow=Weight(2, 2_000))
    set_traffic(plane, traffic)
    stable = 0
    for number in range(2_000):
        context = LaterContext()
        event = {
            "httpMethod": "POST",
            "path": PATH,
            "requestContext": {"requestId": f"request-{number}"},
            "body": '{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[1,2,3]}]}',
        }
        reply = handler(event, context)
        context.post()
        assert isinstance(reply, dict)
        stable += reply["headers"]["x-model-variant"] == "stable"

    [(_, _, _, compared, _, _)] = shadow_counts(plane)
    assert abs(compared - 0.2 * stable) < 3 * math.sqrt(0.2 * 0.8 * stable)


def test_a_shadow_that_fails_is_counted_and_changes_no_reply(
    plane: DataPlane, client: Client
) -> None:
    traffic = set_traffic(plane, shadowed())
    ask_and_post(client)
    context = LaterContext()
    reply = ask(client, context=context)
    plane.runtime.failure = ExecutionFailed("the model fails on these values")
    context.post()

    assert reply.status == 200
    assert shadow_counts(plane) == [(2, "prod", traffic, 1, 0, 1)]


@pytest.mark.parametrize(
    "signature",
    [
        Signature((TensorSpec("z", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),)),
        Signature((TensorSpec("x", "FP64", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),)),
        Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 3)),)),
        Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1, 3)),)),
        Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("z", "FP32", (-1, 3)),)),
    ],
    ids=["name", "datatype", "width", "rank", "output"],
)
def test_a_shadow_with_another_signature_fails(
    plane: DataPlane, client: Client, signature: Signature
) -> None:
    plane.register("demo", 5.0, signature)
    traffic = set_traffic(plane, Traffic((Weight(1, 10_000),), shadow=Weight(3, 10_000)))

    assert ask_and_post(client).status == 200

    assert plane.runtime.runs == [2.0]
    assert shadow_counts(plane) == [(3, "prod", traffic, 0, 0, 1)]


def test_a_shadow_takes_no_memory_of_other_models(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path, memory_bytes=5 << 20)  # two tiny models
    for factor in FACTORS.values():
        plane.register("demo", factor)
    other = plane.register("other", 7.0)
    client = Client(plane.handler(), in_bytes=True)
    client.post("/v2/models/other/infer", rows([1, 2, 3]))
    set_traffic(plane, shadowed())

    assert ask_and_post(client).status == 200
    join_loads()

    assert plane.models.holds(other)
    assert shadow_counts(plane) == []


@pytest.mark.parametrize("failure", [MemoryError(), TimedOut("no time")], ids=["memory", "time"])
def test_a_copy_without_memory_or_time_is_not_counted(
    plane: DataPlane, client: Client, failure: Exception
) -> None:
    """A copy has less of both than its request had, which says nothing about its version."""
    set_traffic(plane, shadowed())
    context = LaterContext()
    ask(client, context=context)
    plane.runtime.failure = failure
    context.post()

    assert shadow_counts(plane) == []


def test_nothing_is_copied_where_work_cannot_follow_the_reply(
    plane: DataPlane, client: Client
) -> None:
    set_traffic(plane, shadowed())

    ask(client, context=Context())

    assert plane.runtime.runs == [2.0]


def test_a_failed_request_is_not_copied(plane: DataPlane, client: Client) -> None:
    set_traffic(plane, shadowed())

    assert ask_and_post(client, rows([1, 2])).status == 400
    assert plane.runtime.runs == []
