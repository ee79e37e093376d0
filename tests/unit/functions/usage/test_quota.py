"""Monthly quotas of access keys, from the key to the refusal."""

from pathlib import Path

import pytest

from functions.core.access.grants import Scope
from functions.core.errors import TooManyRequests
from functions.core.usage.items import month_key
from functions.core.usage.quota import Quota, next_month_s
from tests.control_plane import NOW_S, ControlPlane, error
from tests.data_plane import KEY_SECONDS, Client, DataPlane, Reply, rows

FLUSH_S = 10


class Stack:
    """Data plane with keys, whose environments share a table."""

    def __init__(self, directory: Path) -> None:
        self.plane = DataPlane(directory)
        self.plane.register("demo")
        self.client = Client(self.plane.handler(gate=self.plane.gate))

    def infer(self, key: str, body: object = None) -> Reply:
        body = rows([1, 2, 3]) if body is None else body
        return self.client.post("/v2/models/demo/infer", body, headers={"x-api-key": key})

    def pass_time(self, seconds: float = FLUSH_S + KEY_SECONDS) -> None:
        self.plane.clock.now += seconds


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


@pytest.mark.parametrize(
    ("now_s", "resets_s"),
    [
        (1_795_335_330, 1_796_083_200),  # 2026-11-22T08:15:30Z
        (1_796_083_199.9, 1_796_083_200),
        (1_796_083_200, 1_798_761_600),  # December
        (1_798_761_599, 1_798_761_600),
        (1_835_395_200, 1_835_481_600),  # 2028-02-29
    ],
)
def test_a_month_begins_on_its_first_day_in_utc(now_s: float, resets_s: int) -> None:
    assert next_month_s(now_s) == resets_s


def test_a_quota_is_used_up_until_the_next_month() -> None:
    quota = Quota(requests=5, used=5, resets_s=1_796_083_200)

    Quota(5, 4, quota.resets_s).check(0)
    quota.check(quota.resets_s)
    with pytest.raises(TooManyRequests, match=r"5 requests .* 2026-12-01T00:00:00Z") as caught:
        quota.check(quota.resets_s - 90.5)
    assert caught.value.headers == {"retry-after": "91"}
    assert caught.value.instance_code == "QUOTA_EXCEEDED"


def test_requests_above_the_quota_are_refused_within_the_stated_delay(stack: Stack) -> None:
    key = stack.plane.create_key(Scope.INFER, monthly_requests=3)
    assert [stack.infer(key).status for _ in range(3)] == [200] * 3
    stack.pass_time(FLUSH_S)
    assert stack.infer(key).status == 200  # followed by the write; soft
    stack.pass_time(KEY_SECONDS)

    reply = stack.infer(key)
    assert (reply.status, reply.json["code"]) == (429, "QUOTA_EXCEEDED")
    assert "2026-12-01T00:00:00Z" in reply.json["error"]
    assert int(reply.headers["retry-after"]) > 0
    get = stack.client.get("/v2/models/demo", headers={"x-api-key": key})
    assert get.status == 200  # inferences alone are limited


def test_failed_requests_do_not_count_and_refused_ones_do(stack: Stack) -> None:
    key = stack.plane.create_key(Scope.INFER, monthly_requests=2)
    stack.plane.runtime.failure = ZeroDivisionError("a bug of ours")
    assert [stack.infer(key).status for _ in range(5)] == [500] * 5
    stack.plane.runtime.failure = None
    stack.pass_time()
    assert stack.infer(key).status == 200
    assert stack.infer(key, {"inputs": []}).status == 400
    stack.pass_time()
    assert stack.infer(key).status == 200  # followed by the write
    stack.pass_time()

    assert stack.infer(key).status == 429


def test_a_new_month_begins_anew(stack: Stack) -> None:
    key = stack.plane.create_key(Scope.INFER, monthly_requests=0)
    assert stack.infer(key).status == 429

    month_s = next_month_s(stack.plane.unix_s()) - stack.plane.unix_s()
    stack.pass_time(month_s - 1)
    assert stack.infer(key).status == 429
    key = stack.plane.create_key(Scope.INFER, monthly_requests=1)
    assert stack.infer(key).status == 200
    stack.pass_time(1)
    assert stack.infer(key).status == 200


def test_a_warm_request_of_a_key_with_a_quota_reads_nothing(stack: Stack) -> None:
    key = stack.plane.create_key(Scope.INFER, monthly_requests=1000)
    stack.infer(key)
    reads = stack.plane.table.reads
    for _ in range(50):
        assert stack.infer(key).status == 200

    assert stack.plane.table.reads == reads


def test_a_quota_is_changed_and_counts_what_was_used_this_month() -> None:
    plane = ControlPlane()
    admin, key = plane.create()["key"], plane.create("infer")
    for at_s, status in ((NOW_S, 200), (NOW_S, 500), (NOW_S - 40 * 86_400, 200)):
        meter = plane.meter(at_s)
        for _ in range(4):
            meter.count("demo", 1, "prod", key["id"], "", status, 1000)
        meter.flush()

    path, headers = f"/api/v1/keys/{key['id']}", {"x-api-key": admin}
    reply = plane.client.send("PATCH", path, {"monthly_requests": 10}, headers=headers)

    assert (reply.status, reply.json["monthly_requests"]) == (200, 10)
    [month] = plane.table.get([month_key(key["id"], "2026-11")])
    assert month is not None
    assert month["requests"] == 4
    assert plane.lines[-2]["audit"]["after"] == {"monthly_requests": 10}
    reply = plane.client.send("PATCH", path, {"monthly_requests": None}, headers=headers)
    assert reply.json["monthly_requests"] is None


def test_each_limit_is_changed_alone_or_with_others() -> None:
    plane = ControlPlane()
    admin, key = plane.create()["key"], plane.create("infer", max_tokens=500)
    path, headers = f"/api/v1/keys/{key['id']}", {"x-api-key": admin}

    def change(body: dict[str, object]) -> tuple[object, object, object]:
        reply = plane.client.send("PATCH", path, body, headers=headers)
        assert reply.status == 200, reply.body
        audit = plane.lines[-2]["audit"]
        assert audit["after"] == body
        return reply.json["monthly_requests"], reply.json["max_tokens"], audit["before"]

    assert change({"max_tokens": 200}) == (None, 200, {"max_tokens": 500})
    assert change({"monthly_requests": 9}) == (9, 200, {"monthly_requests": None})
    both = {"monthly_requests": None, "max_tokens": None}
    assert change(both) == (None, None, {"monthly_requests": 9, "max_tokens": 200})
    document = plane.client.get("/api/v1/openapi.json").json["components"]["schemas"]["ChangeKey"]
    assert document["minProperties"] == 1
    assert all("default" not in field for field in document["properties"].values())


def test_a_new_text_of_a_key_has_the_quota(stack: Stack) -> None:
    key = stack.plane.create_key(Scope.INFER, monthly_requests=0)
    _, rotated = stack.plane.keys.rotate(key.split("_")[1], 60, actor="anna")

    assert [stack.infer(text).status for text in (key, rotated)] == [429, 429]


@pytest.mark.parametrize(
    "body",
    [{}, {"monthly_requests": -1}, {"monthly_requests": "many"}, {"max_tokens": 0}, {"x": 1}],
)
def test_a_wrong_limit_is_refused(body: dict[str, object]) -> None:
    plane = ControlPlane()
    key = plane.create()
    path, headers = f"/api/v1/keys/{key['id']}", {"x-api-key": key["key"]}

    status, code, text = error(plane.client.send("PATCH", path, body, headers=headers))
    assert (status, code) == (400, "INVALID_REQUEST")
    assert text.startswith(next(iter(body), "body: nothing to change"))


def test_an_ended_key_keeps_its_limits() -> None:
    plane = ControlPlane()
    key_id = plane.create("infer")["id"]
    plane.invoke("revoke-key", id=key_id)

    reply = plane.invoke("change-key", id=key_id, monthly_requests=5)
    assert reply["code"] == "STATE_CONFLICT"
