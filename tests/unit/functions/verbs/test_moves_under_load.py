"""An alias that moves while clients call it: no reply is wrong, late or missing."""

import threading
import time
from pathlib import Path

import pytest

from functions.core.registry.resolver import Resolver
from functions.core.serving.service import InferenceService
from functions.core.traffic.traffic import split
from tests.data_plane import PATIENCE_S, Client, DataPlane, rows

CACHE_S = 0.05  # the seconds within which environments follow a move, 5 as deployed
FACTORS = {"1": 2.0, "2": -3.0}


class Caller(threading.Thread):
    """Client of `prod`, in an environment of its own, until it is stopped."""

    def __init__(self, plane: DataPlane) -> None:
        super().__init__(daemon=True)
        resolver = Resolver(plane.registry, CACHE_S)
        service = InferenceService(plane.registry, resolver, plane.models, plane.statistics)
        handler = plane.handler(write=lambda _: None)
        handler._service = service
        self.client = Client(handler, in_bytes=True)
        self.stopped = threading.Event()
        self.replies: list[tuple[float, float, str]] = []  # asked, answered, version
        self.faults: list[str] = []

    def run(self) -> None:
        while not self.stopped.is_set():
            asked = time.monotonic()
            reply = self.client.post("/v2/models/demo/infer", rows([1, 2, 3]))
            version = reply.headers.get("x-model-version", "")
            expected = [FACTORS.get(version, 0.0) * x for x in (1, 2, 3)]
            if reply.status != 200 or reply.json["outputs"][0]["data"] != expected:
                self.faults.append(f"{version}: {reply.status} {reply.body!r}")
            self.replies.append((asked, time.monotonic(), version))

    def has_reply_after(self, moment: float) -> bool:
        return bool(self.replies) and self.replies[-1][0] > moment


def move(plane: DataPlane, number: int, kind: str) -> None:
    """Send all requests of `prod` to a version, by one kind of change."""
    if kind == "move":
        plane.releases.move_alias("demo", "prod", number, actor="ann")
        return
    percent = 100 if number == 2 else 0
    plane.releases.set_traffic("demo", "prod", split(1, 2, percent), actor="ann")


def call_while_moving(plane: DataPlane, clients: int, moves: int, kind: str) -> None:
    """Call an alias while it moves, and check every reply."""
    for factor in FACTORS.values():
        plane.register("demo", factor)
    callers = [Caller(plane) for _ in range(clients)]
    for caller in callers:
        caller.start()
    spans = []  # times from a move's end plus the cache seconds to the next one
    for at in range(moves):
        number = 2 - at % 2
        move(plane, number, kind)
        since = time.monotonic() + CACHE_S
        deadline = since + PATIENCE_S
        while not all(caller.has_reply_after(since) for caller in callers):
            assert time.monotonic() < deadline, [caller.faults for caller in callers]
            time.sleep(CACHE_S / 10)
        spans.append((since, time.monotonic(), str(number)))
    for caller in callers:
        caller.stopped.set()
        caller.join(PATIENCE_S)

    assert [fault for caller in callers for fault in caller.faults] == []
    for caller in callers:
        for since, until, version in spans:
            late = {
                reply
                for asked, answered, reply in caller.replies
                if since < asked and answered < until
            }
            assert late == {version}, f"{late} answered after the move to {version}"


@pytest.mark.parametrize("kind", ["move", "weights"])
def test_every_reply_is_of_the_version_that_it_names(tmp_path: Path, kind: str) -> None:
    call_while_moving(DataPlane(tmp_path), 3, 10, kind)


@pytest.mark.stress
@pytest.mark.parametrize("kind", ["move", "weights"])
def test_every_reply_is_right_through_two_hundred_moves(tmp_path: Path, kind: str) -> None:
    call_while_moving(DataPlane(tmp_path), 8, 200, kind)
