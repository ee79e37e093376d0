"""Models in memory: sharing, bounds on memory and storage, eviction."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from functions.core.errors import (
    Unavailable,
)
from functions.core.registry.version import Blob
from functions.core.serving import model_cache
from functions.core.serving.model_cache import (
    MB,
    MODEL_OVERHEAD_BYTES,
    ModelCache,
    footprint_bytes,
    loading_bytes,
)
from tests.data_plane import PATIENCE_S, ClockedPlane, join_loads
from tests.fakes import MemoryBlobs


@pytest.fixture
def plane(tmp_path: Path) -> ClockedPlane:
    return ClockedPlane(tmp_path)


def test_a_version_is_loaded_once_and_its_files_are_removed(plane: ClockedPlane) -> None:
    version = plane.register("m", 3.0)

    assert [plane.infer(version) for _ in range(3)] == [3.0] * 3
    assert plane.runtime.loads == [3.0]
    assert list(plane.directory.iterdir()) == []


def test_files_have_the_names_that_the_model_refers_to(plane: ClockedPlane) -> None:
    files = (plane.blobs.add("model.onnx", b"2"), plane.blobs.add("weights.bin", b"w"))
    plane.infer(replace(plane.register("m"), files=files))

    assert plane.runtime.seen == [["model.onnx", "weights.bin"]]


def test_versions_with_the_same_files_share_a_session(plane: ClockedPlane) -> None:
    first, second = plane.register("m", 3.0), plane.register("other", 3.0)
    plane.infer(first)

    assert plane.models.holds(second)
    assert plane.infer(second) == 3.0
    assert plane.blobs.fetches == 1


def test_many_threads_wait_for_one_load(plane: ClockedPlane) -> None:
    plane.runtime.gate = threading.Event()
    version = plane.register("m", 3.0)
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(plane.infer, version) for _ in range(8)]
        plane.runtime.gate.set()
        assert [result.result(PATIENCE_S) for result in results] == [3.0] * 8
    assert plane.runtime.loads == [3.0]


def test_the_least_recently_used_model_is_evicted(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=2 * MODEL_OVERHEAD_BYTES + 100)
    first, second, third = (plane.register("m", n) for n in (1.0, 2.0, 3.0))
    for version in (first, second, first, third):
        plane.infer(version)

    assert [plane.models.holds(version) for version in (first, second, third)] == [
        True,
        False,
        True,
    ]


def test_a_model_in_use_is_never_evicted(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=MODEL_OVERHEAD_BYTES + 100)
    first, second = plane.register("m", 1.0), plane.register("m", 2.0)
    with plane.models.session(first, plane.cache_clock.now + 60):
        plane.models.evict(first.files)
        with pytest.raises(Unavailable, match="leave no memory") as refused:
            plane.infer(second)
        assert plane.models.holds(first)

    assert refused.value.code == "UNAVAILABLE"
    assert refused.value.instance_code == "MODELS_BUSY"
    assert plane.infer(second) == 2.0
    assert not plane.models.holds(first)


def test_the_footprint_is_what_registration_measured(plane: ClockedPlane) -> None:
    version = plane.register("m", 2.0, measured={"resident_mb": 100.5})

    assert footprint_bytes(version) == int(100.5 * MB) + MODEL_OVERHEAD_BYTES


def test_a_model_that_cannot_fit_says_how_much_it_needs(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=4 * MB)
    version = plane.register("m", b"2 " + b" " * (2 * MB))

    with pytest.raises(
        Unavailable, match=r"takes about 6 MB of memory, 4 MB are kept for models"
    ) as refused:
        plane.infer(version)

    assert refused.value.instance_code == "MODEL_TOO_LARGE"
    assert footprint_bytes(version) > 4 * MB
    assert plane.blobs.fetches == 0


def test_the_bound_holds_under_many_threads_and_models(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=4 * MODEL_OVERHEAD_BYTES + 1000)
    versions = [plane.register(f"m{n}", float(n + 1)) for n in range(12)]
    held: list[int] = []

    def error(n: int) -> float:
        number = n * 7 % 12
        factor = plane.infer(versions[number])
        held.append(sum(plane.models.holds(version) for version in versions))
        return factor - (number + 1)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(error, range(300))) == {0.0}
    assert max(held) <= 4
    assert list(tmp_path.iterdir()) == []


def test_a_load_reserves_its_peak_memory_then_its_footprint(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=100 * MB)
    version = plane.register("m", measured={"resident_mb": 10.0, "peak_memory_mb": 30.0})
    while_fetching = []

    class ObservedBlobs(MemoryBlobs):
        def fetch(self, blob: Blob, path: Path) -> None:
            while_fetching.append(plane.models.held_bytes())
            super().fetch(blob, path)

    plane.models._blobs = blobs = ObservedBlobs()
    blobs.content = plane.blobs.content
    plane.infer(version)

    assert (loading_bytes(version), footprint_bytes(version)) == (
        30 * MB + MODEL_OVERHEAD_BYTES,
        10 * MB + MODEL_OVERHEAD_BYTES,
    )
    assert while_fetching == [(loading_bytes(version), version.size_bytes)]
    assert plane.models.held_bytes() == (footprint_bytes(version), 0)


def test_a_peak_above_the_bound_evicts_all_other_models(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=20 * MB)
    small = plane.register("m", 3.0)
    version = plane.register("m", 2.0, measured={"resident_mb": 10.0, "peak_memory_mb": 30.0})
    plane.infer(small)

    assert plane.infer(version) == 2.0
    assert not plane.models.holds(small)


def test_removed_files_that_are_mapped_occupy_storage(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, storage_bytes=2500)
    versions = [plane.register_with_weights(n) for n in (1.0, 2.0, 3.0)]
    small = plane.register("small", 4.0)
    plane.infer(small)
    for version in versions[:2]:
        plane.infer(version)
    assert plane.models.held_bytes()[1] == 2000

    plane.infer(versions[2])

    held = [plane.models.holds(version) for version in (small, *versions)]
    assert held == [
        True,
        False,
        True,
        True,
    ]  # the small model has no mapped file: evicting it would free nothing
    assert plane.models.held_bytes()[1] == 2000


def test_a_model_larger_than_the_storage_is_not_downloaded(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, storage_bytes=1000)
    version = plane.register_with_weights(2.0)

    error = plane.refusal(version)

    assert (error.instance_code, plane.blobs.fetches) == ("MODEL_TOO_LARGE", 0)
    assert "takes 0 MB of temporary storage, there are 0 MB" in str(error)


def test_the_default_storage_bound_is_the_free_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        model_cache, "_free_bytes", lambda _: model_cache.STORAGE_RESERVE_BYTES + 1000
    )
    plane = ClockedPlane(tmp_path)

    assert plane.refusal(plane.register_with_weights(2.0)).instance_code == "MODEL_TOO_LARGE"
    assert plane.infer(plane.register_with_weights(2.0, weights=900)) == 2.0


def test_an_evicted_session_is_freed_at_once(tmp_path: Path) -> None:
    """Neither the cache nor a request nor an error keeps a reference to it."""
    plane = ClockedPlane(tmp_path, memory_bytes=MODEL_OVERHEAD_BYTES + 100)
    first, second = plane.register("m", 1.0), plane.register("m", 2.0)
    with plane.models.session(first, plane.cache_clock.now + 60) as session:
        reference = weakref.ref(session)
        del session
        assert plane.refusal(second).instance_code == "MODELS_BUSY"

    gc.disable()
    try:
        plane.infer(second)
        assert reference() is None
    finally:
        gc.enable()


def test_a_model_can_be_evicted_before_its_load_thread_ends(tmp_path: Path) -> None:
    proceed = threading.Event()

    class SlowThreads(ModelCache):
        def _finish_load(self, *arguments: Any) -> bool:
            ended = super()._finish_load(*arguments)
            assert proceed.wait(PATIENCE_S)
            return ended

    plane = ClockedPlane(tmp_path)
    first, second = plane.register("m", 1.0), plane.register("m", 2.0)
    plane.models = SlowThreads(
        plane.blobs,
        plane.runtime,
        memory_bytes=MODEL_OVERHEAD_BYTES + 100,
        directory=tmp_path,
        clock=plane.cache_clock,
    )

    assert [plane.infer(first), plane.infer(second)] == [1.0, 2.0]
    proceed.set()
    join_loads()
