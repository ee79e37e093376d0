"""Models loaded before the first request."""

import logging
import threading
from pathlib import Path

import pytest

from functions.core.errors import (
    Unavailable,
)
from functions.core.registry.version import Blob
from functions.core.serving.model_cache import MODEL_OVERHEAD_BYTES
from functions.core.serving.preload import parse_names, preload
from tests.data_plane import PATIENCE_S, ClockedPlane, join_loads


@pytest.fixture
def plane(tmp_path: Path) -> ClockedPlane:
    return ClockedPlane(tmp_path)


def test_names_may_have_an_alias_or_a_version() -> None:
    assert parse_names("") == []
    assert parse_names(" digits, faces:latest,,faces:3 ") == [
        ("digits", None),
        ("faces", "latest"),
        ("faces", 3),
    ]


def test_preloaded_models_are_warmed_up_and_resolved(plane: ClockedPlane) -> None:
    first = plane.register_with_sample("one", 1.0)
    second = plane.register_with_sample("two", 2.0)

    preload(
        parse_names("one,two:latest"),
        plane.resolver,
        plane.models,
        plane.cache_clock.now + 60,
        plane.cache_clock,
    )

    assert sorted(plane.runtime.runs) == [1.0, 2.0]
    assert plane.models.holds(first)
    assert plane.models.holds(second)
    reads = plane.table.reads
    plane.resolver.resolve("one", None)
    assert plane.table.reads == reads


def test_a_model_that_cannot_be_preloaded_is_logged(
    plane: ClockedPlane, caplog: pytest.LogCaptureFixture
) -> None:
    good = plane.register_with_sample("good", 1.0)
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


def test_preloading_ends_at_its_deadline_and_loads_continue(
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
    assert begun.wait(PATIENCE_S)
    assert not plane.models.holds(version)
    plane.runtime.gate.set()
    join_loads()

    assert plane.models.holds(version)


def test_preloading_evicts_no_model(tmp_path: Path) -> None:
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


def test_a_request_waits_for_a_load_that_has_started(plane: ClockedPlane) -> None:
    plane.runtime.gate = threading.Event()
    version = plane.register("m")
    with pytest.raises(Unavailable):
        plane.infer(version, seconds=0.0)
    answers: list[float] = []
    thread = threading.Thread(target=lambda: answers.append(plane.infer(version)))
    thread.start()
    plane.runtime.gate.set()
    thread.join(PATIENCE_S)

    assert answers == [2.0]
    assert plane.runtime.loads == [2.0]
