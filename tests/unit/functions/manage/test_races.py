"""Administrators who change one model at the same time, each in an environment of its own."""

import random
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from aws_lambda_powertools.event_handler import APIGatewayRestResolver

from functions.core.registry.table import Item, Write
from tests.control_plane import ControlPlane
from tests.data_plane import BrokenTable
from tests.unit.functions.manage.client import Admin

CHANGES = 500  # of each administrator
VERSIONS = 4


class SharedTable(BrokenTable):
    """Table of two environments: each operation is atomic, as DynamoDB's are."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def get(self, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        with self._lock:
            return super().get(keys)

    def query(self, pk: str, prefix: str) -> Iterator[Item]:
        with self._lock:
            return iter(list(super().query(pk, prefix)))

    def transact(self, puts: Sequence[Write]) -> None:
        with self._lock:
            super().transact(puts)


@pytest.fixture
def _many_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def _event_of_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the threads' events apart: Powertools has one for all resolvers of a process."""
    events = threading.local()
    convert = APIGatewayRestResolver._to_proxy_event

    def keep(resolver: APIGatewayRestResolver, event: dict[str, Any]) -> Any:
        events.current = convert(resolver, event)
        return events.current

    monkeypatch.setattr(APIGatewayRestResolver, "_to_proxy_event", keep)
    current = property(lambda _: events.current)
    monkeypatch.setattr(APIGatewayRestResolver, "current_event", current, raising=False)


def change(admin: Admin, choice: random.Random) -> tuple[str, int, Any]:
    """Make a random change on the revision that the administrator saw."""
    alias = choice.choice(["prod", "stage"])
    path = f"/models/m/aliases/{alias}"
    standing = admin.send("GET", path).json
    seen = standing.get("revision", 0)
    target = choice.randint(1, VERSIONS)
    match choice.randrange(4):
        case 0 if seen:
            body: Any = {"expected_revision": seen}
            reply = admin.send("POST", f"{path}/rollback", body)
        case 1 if seen:
            weights = [
                {"version": standing["version"], "weight": 60},
                {"version": VERSIONS + target, "weight": 40},
            ]
            body = {"weights": weights, "expected_revision": seen}
            reply = admin.send("PUT", f"{path}/traffic", body)
        case 2 if seen and alias == "stage":
            reply = admin.send("DELETE", path, expected_revision=seen)
        case _:
            body = {"version": target, "expected_revision": seen}
            reply = admin.send("PUT", path, body)
    return alias, seen, reply


@pytest.mark.usefixtures("_many_switches", "_event_of_each_thread")
def test_racing_administrators_lose_no_update_and_the_audit_replays() -> None:
    table = SharedTable()
    admins = [Admin(ControlPlane(table=table)) for _ in range(2)]
    for _ in range(8):
        admins[0].plane.register("m")
    begin = admins[0].get("/models/m")["revision"]
    replies: list[tuple[str, int, Any]] = []

    def work(admin: Admin, seed: int) -> None:
        choice = random.Random(seed)  # noqa: S311 (a test of the same choices each time)
        for _ in range(CHANGES):
            replies.append(change(admin, choice))

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(admins, (1, 2), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {reply.status for *_, reply in replies} <= {200, 400, 404, 409}
    records = [r for r in admins[0].plane.registry.audit("m") if r["revision"] > begin]
    end = admins[0].get("/models/m")
    assert [r["revision"] for r in records] == list(range(begin + 1, end["revision"] + 1))
    assert len(records) > CHANGES / 2
    state: dict[str, tuple[int | None, Any]] = {"prod": (1, None), "stage": (None, None)}
    for record in records:
        [(alias, version)] = record["after"]["aliases"].items()
        assert record["before"]["aliases"][alias] == state[alias][0]
        traffic = record["after"].get("traffic", {}).get(alias)
        assert record["before"].get("traffic", {}).get(alias) == state[alias][1]
        state[alias] = (version, traffic)
    for alias, (version, traffic) in state.items():
        reply = admins[1].send("GET", f"/models/m/aliases/{alias}")
        if version is None:
            assert reply.status == 404
        else:
            assert (reply.json["version"], reply.json["traffic"]) == (version, traffic)
        assert end["aliases"].get(alias) == version
