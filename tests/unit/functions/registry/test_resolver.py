"""Cached resolution of model names: lifetimes, refusals, failures of the registry."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from functions.adapters.clock import Elapsed
from functions.core.errors import (
    ModelNotFound,
    NotReady,
    Unavailable,
)
from functions.core.protocol.signature import Signature, TensorSpec
from functions.core.registry import resolver
from functions.core.registry.resolver import Resolver
from functions.core.registry.version import Resolved
from tests.data_plane import PATIENCE_S, Clock, DataPlane


@pytest.fixture
def plane(tmp_path: Path) -> DataPlane:
    return DataPlane(tmp_path)


def test_an_alias_is_cached_until_its_lifetime_ends(plane: DataPlane) -> None:
    plane.register("m")
    plane.resolver.resolve("m", "latest")
    plane.register("m")
    reads = plane.table.reads

    assert plane.resolver.resolve("m", "latest").version.number == 1
    assert plane.table.reads == reads
    plane.clock.now += 5.1
    assert plane.resolver.resolve("m", "latest").version.number == 2


def test_a_version_read_again_stays_the_same_object(plane: DataPlane) -> None:
    """Every request looks up its files, which compare faster by identity."""
    plane.register("m")
    first = plane.resolver.resolve("m", "latest")
    plane.clock.now += 5.1
    reads = plane.table.reads
    plane.resolver.resolve("m", "latest")

    assert plane.table.reads > reads
    assert plane.resolver.resolve("m", "latest") is first


def test_lifetimes_are_shortened_at_random_and_never_extended(plane: DataPlane) -> None:
    plane.register("m")
    eager = Resolver(plane.registry, 5.0, plane.clock, chance=lambda: 1.0)
    eager.resolve("m", "latest")
    plane.register("m")

    plane.clock.now += 3.9
    assert eager.resolve("m", "latest").version.number == 1
    plane.clock.now += 0.2
    assert eager.resolve("m", "latest").version.number == 2


def test_a_lifetime_of_zero_caches_nothing(tmp_path: Path) -> None:
    plane = DataPlane(tmp_path, seconds=0)
    plane.register("m")
    plane.resolver.resolve("m", "latest")
    plane.register("m")

    assert plane.resolver.resolve("m", "latest").version.number == 2
    with pytest.raises(ModelNotFound):
        plane.resolver.resolve("new", None)
    plane.register("new")
    assert plane.resolver.resolve("new", None).version.number == 1


def test_a_stale_version_is_served_while_the_registry_fails_but_not_forever(
    plane: DataPlane,
) -> None:
    plane.register("m")
    plane.resolver.resolve("m", None)
    plane.table.broken = True

    plane.clock.now += resolver.STALE_SECONDS - 1
    assert plane.resolver.resolve("m", None).version.number == 1
    with pytest.raises(Unavailable):
        plane.resolver.resolve("m", "latest")  # never read before
    plane.clock.now += 2
    with pytest.raises(Unavailable):
        plane.resolver.resolve("m", None)
    plane.table.broken = False
    assert plane.resolver.resolve("m", None).version.number == 1


def test_a_failing_registry_is_retried_once_a_second(plane: DataPlane) -> None:
    plane.register("m")
    plane.resolver.resolve("m", None)
    plane.table.broken = True
    plane.clock.now += 6
    plane.resolver.resolve("m", None)
    plane.table.broken = False
    reads = plane.table.reads

    plane.resolver.resolve("m", None)
    assert plane.table.reads == reads
    plane.clock.now += resolver.RETRY_SECONDS
    plane.resolver.resolve("m", None)
    assert plane.table.reads > reads


def test_an_unloaded_model_is_refused_although_it_is_cached(plane: DataPlane) -> None:
    plane.register("m")
    plane.resolver.resolve("m", None)
    plane.registry.serve("m", False)
    plane.clock.now += 6

    with pytest.raises(NotReady, match="unloaded"):
        plane.resolver.resolve("m", None)


def test_an_unknown_name_is_cached_for_a_second(plane: DataPlane) -> None:
    for _ in range(3):
        with pytest.raises(ModelNotFound, match="Request for unknown model: 'm'"):
            plane.resolver.resolve("m", None)
    assert plane.table.reads == 1

    plane.register("m")
    plane.clock.now += resolver.REFUSAL_SECONDS
    assert plane.resolver.resolve("m", None).version.number == 1


def test_unknown_names_evict_no_cached_versions(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "REFUSALS", 10)
    plane.register("m")
    plane.resolver.resolve("m", None)
    for n in range(50):
        with pytest.raises(ModelNotFound):
            plane.resolver.resolve(f"m{n}", None)
    reads = plane.table.reads

    plane.resolver.resolve("m", None)
    assert plane.table.reads == reads
    assert len(plane.resolver._refusals) == 10


def test_threads_that_resolve_the_same_name_read_once(plane: DataPlane) -> None:
    plane.register("m")
    reads = plane.table.reads
    reading, proceed = threading.Event(), threading.Event()
    resolve = plane.registry.resolve

    def slowly(model: str, reference: int | str | None) -> Resolved:
        reading.set()
        assert proceed.wait(PATIENCE_S)
        return resolve(model, reference)

    plane.registry.resolve = slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(plane.resolver.resolve, "m", None) for _ in range(8)]
        assert reading.wait(PATIENCE_S)
        proceed.set()
        assert {result.result(PATIENCE_S).version.number for result in results} == {1}
    assert plane.table.reads - reads == 2  # one resolution reads the alias and the version


def test_a_read_overtaken_by_an_invalidation_is_not_cached(plane: DataPlane) -> None:
    plane.register("m")
    resolve = plane.registry.resolve

    def overtaken(model: str, reference: int | str | None) -> Resolved:
        resolved = resolve(model, reference)
        plane.registry.serve("m", False)
        plane.resolver.invalidate("m")
        return resolved

    plane.registry.resolve = overtaken  # type: ignore[method-assign]
    assert plane.resolver.resolve("m", None).version.number == 1
    plane.registry.resolve = resolve  # type: ignore[method-assign]

    with pytest.raises(NotReady, match="unloaded"):
        plane.resolver.resolve("m", None)


def test_cached_refusals_keep_no_request_in_memory(plane: DataPlane) -> None:
    """A traceback would keep the frames of the request, and so its body."""

    class Body:
        pass

    def request() -> "weakref.ref[Body]":
        body = Body()
        with pytest.raises(ModelNotFound):
            plane.resolver.resolve("m", None)
        return weakref.ref(body)

    bodies = [request() for _ in range(3)]
    gc.collect()
    assert [body() for body in bodies] == [None] * 3


def test_versions_with_many_labels_weigh_more_in_the_cache(
    plane: DataPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "ANSWERS", 40)
    labels = tuple(map(str, range(640)))
    wide = Signature(
        (TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 640), labels=labels),)
    )
    for n in range(10):
        plane.register(f"m{n}", signature=wide)
        plane.resolver.resolve(f"m{n}", None)

    assert list(plane.resolver._answers) == [(f"m{n}", None) for n in (7, 8, 9)]
    plane.resolver.invalidate()
    assert plane.resolver._weight == 0


def test_time_spent_frozen_counts_towards_a_lifetime(plane: DataPlane) -> None:
    """The boot clock stands still in a freeze; the time of day is corrected afterwards."""
    boot, day = Clock(), Clock()
    cached = Resolver(plane.registry, 5.0, Elapsed(boot, day), chance=lambda: 0.0)
    plane.register("m")
    cached.resolve("m", "latest")
    plane.register("m")

    boot.now += 4
    day.now -= 3600  # set back: no lifetime is extended
    assert cached.resolve("m", "latest").version.number == 1
    day.now += 24 * 3600
    assert cached.resolve("m", "latest").version.number == 2


def test_the_real_clock_advances() -> None:
    elapsed = Elapsed()
    before = elapsed(), time.monotonic()
    while time.monotonic() == before[1]:
        pass
    assert elapsed() > before[0]
