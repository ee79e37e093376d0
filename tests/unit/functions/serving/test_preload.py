"""Models loaded before the first request."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from functions.core.errors import (
    Unavailable,
)
from functions.core.registry.version import Blob, Version
from functions.core.serving.model_cache import MODEL_OVERHEAD_BYTES
from functions.core.serving.preload import parse_names, preload
from tests.data_plane import ClockedPlane

PLAN = {"optimised": "extended", "prepacking": False, "threads": 1, "warmup": True, "layout": False}


@pytest.fixture
def plane(tmp_path: Path) -> ClockedPlane:
    return ClockedPlane(tmp_path)


def sampled(plane: ClockedPlane, model: str, factor: float, **record: Any) -> Version:
    document = b'{"request": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}}'
    return plane.register(
        model, factor, plan=PLAN, sample=plane.blobs.add("sample.json", document), **record
    )


def wait_for_loads() -> None:
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(10)


def test_names_to_preload() -> None:
    assert parse_names("") == []
    assert parse_names(" digits, faces:latest,,faces:3 ") == [
        ("digits", None),
        ("faces", "latest"),
        ("faces", 3),
    ]


def test_models_are_preloaded_with_a_warm_up_and_answer_warm(plane: ClockedPlane) -> None:
    one, two = sampled(plane, "one", 1.0), sampled(plane, "two", 2.0)

    preload(
        parse_names("one,two:latest"),
        plane.resolver,
        plane.models,
        plane.cache_clock.now + 60,
        plane.cache_clock,
    )

    assert sorted(plane.runtime.runs) == [1.0, 2.0]
    assert plane.models.holds(one)
    assert plane.models.holds(two)
    reads = plane.table.reads
    plane.resolver.resolve("one", None)
    assert plane.table.reads == reads


def test_what_cannot_be_preloaded_is_a_line_in_the_log(
    plane: ClockedPlane, caplog: pytest.LogCaptureFixture
) -> None:
    good = sampled(plane, "good", 1.0)
    plane.register("broken", b"no number")
    plane.claim("pending")
    plane.register("bug", 4.0)
    plane.runtime.failure = ValueError("in the warm-up")

    with caplog.at_level(logging.WARNING):
        names = "unknown,broken,pending,NOT A NAME,good:nowhere,good:99999999999,good"
        preload(
            parse_names(names),
            plane.resolver,
            plane.models,
            plane.cache_clock.now + 60,
            plane.cache_clock,
        )

    assert plane.models.holds(good)
    lines = [record.getMessage() for record in caplog.records]
    refused = [line.split(":")[1].strip() for line in lines if line.startswith("not preloaded")]
    assert sorted(refused) == ["NOT A NAME", "broken", "good", "good", "pending", "unknown"]
    assert all("\n" not in line for line in lines)


def test_the_budget_of_preloading_ends_it_and_the_loads_go_on(
    plane: ClockedPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    plane.runtime.gate = threading.Event()
    fetch = plane.blobs.fetch

    def seen(blob: Blob, path: Path) -> None:
        fetch(blob, path)
        begun.set()

    monkeypatch.setattr(plane.blobs, "fetch", seen)
    version = plane.register("m", 2.0)
    preload(
        [("m", None)], plane.resolver, plane.models, plane.cache_clock.now, plane.cache_clock
    )  # no time at all
    assert plane.blobs.fetches == 0

    preload(
        [("m", None)], plane.resolver, plane.models, plane.cache_clock.now + 0.05, plane.cache_clock
    )
    assert begun.wait(10)
    assert not plane.models.holds(version)
    plane.runtime.gate.set()
    wait_for_loads()

    assert plane.models.holds(version)


def test_preloading_evicts_nothing(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=2 * MODEL_OVERHEAD_BYTES + 100)
    versions = [plane.register(f"m{n}", float(n)) for n in range(4)]

    for n in range(4):  # one after the other
        preload(
            [(f"m{n}", None)],
            plane.resolver,
            plane.models,
            plane.cache_clock.now + 60,
            plane.cache_clock,
        )

    assert [plane.models.holds(version) for version in versions] == [True, True, False, False]


def test_a_request_for_a_model_that_is_being_preloaded_waits_for_it(plane: ClockedPlane) -> None:
    plane.runtime.gate = threading.Event()
    version = plane.register("m")
    with pytest.raises(Unavailable):
        plane.ask(version, seconds=0.0)
    answers: list[float] = []
    thread = threading.Thread(target=lambda: answers.append(plane.ask(version)))
    thread.start()
    plane.runtime.gate.set()
    thread.join(10)

    assert answers == [2.0]
    assert plane.runtime.loads == [2.0]
