"""Models in memory: sharing, bounds on memory and storage, eviction."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from functions.core.errors import (
    Unavailable,
)
from functions.core.registry.version import Blob, Version
from functions.core.serving import model_cache
from functions.core.serving.model_cache import (
    MB,
    MODEL_OVERHEAD_BYTES,
    footprint_bytes,
    loading_bytes,
)
from tests.data_plane import ClockedPlane
from tests.fakes import MemoryBlobs


@pytest.fixture
def plane(tmp_path: Path) -> ClockedPlane:
    return ClockedPlane(tmp_path)


def wide(plane: ClockedPlane, factor: float, graph: int = 10, weights: int = 1000) -> Version:
    """A version with a file of weights, which the runtime maps."""
    text = f"{factor} "
    files = (
        plane.blobs.add("model.onnx", text.ljust(graph).encode()),
        plane.blobs.add("weights.bin", text.ljust(weights).encode()),
    )
    return replace(plane.register("wide", factor), files=files)


def test_a_version_is_loaded_once_and_leaves_no_file(plane: ClockedPlane) -> None:
    version = plane.register("m", 3.0)

    assert [plane.ask(version) for _ in range(3)] == [3.0] * 3
    assert plane.runtime.loads == [3.0]
    assert list(plane.directory.iterdir()) == []


def test_files_are_named_as_the_model_names_them(plane: ClockedPlane) -> None:
    files = (plane.blobs.add("model.onnx", b"2"), plane.blobs.add("weights.bin", b"w"))
    plane.ask(replace(plane.register("m"), files=files))

    assert plane.runtime.seen == [["model.onnx", "weights.bin"]]


def test_versions_with_the_same_files_share_a_session(plane: ClockedPlane) -> None:
    one, two = plane.register("m", 3.0), plane.register("other", 3.0)
    plane.ask(one)

    assert plane.models.holds(two)
    assert plane.ask(two) == 3.0
    assert plane.blobs.fetches == 1


def test_many_threads_wait_for_one_load(plane: ClockedPlane) -> None:
    plane.runtime.gate = threading.Event()
    version = plane.register("m", 3.0)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(plane.ask, version) for _ in range(8)]
        plane.runtime.gate.set()
        assert [found.result(10) for found in asked] == [3.0] * 8
    assert plane.runtime.loads == [3.0]


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=2 * MODEL_OVERHEAD_BYTES + 100)
    one, two, three = (plane.register("m", n) for n in (1.0, 2.0, 3.0))
    for version in (one, two, one, three):
        plane.ask(version)

    assert [plane.models.holds(version) for version in (one, two, three)] == [True, False, True]


def test_a_model_in_use_is_never_evicted(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=MODEL_OVERHEAD_BYTES + 100)
    one, two = plane.register("m", 1.0), plane.register("m", 2.0)
    with plane.models.session(one, plane.cache_clock.now + 60):
        plane.models.evict(one.files)
        with pytest.raises(Unavailable, match="leave no memory") as refused:
            plane.ask(two)
        assert plane.models.holds(one)

    assert refused.value.code == "UNAVAILABLE"
    assert refused.value.instance_code == "MODELS_BUSY"
    assert plane.ask(two) == 2.0
    assert not plane.models.holds(one)


def test_what_was_measured_at_registration_counts(plane: ClockedPlane) -> None:
    version = plane.register("m", 2.0, measured={"resident_mb": 100.5})

    assert footprint_bytes(version) == int(100.5 * MB) + MODEL_OVERHEAD_BYTES


def test_a_model_that_cannot_fit_says_how_much_it_needs(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=4 * MB)
    version = plane.register("m", b"2 " + b" " * (2 * MB))

    with pytest.raises(
        Unavailable, match=r"takes about 6 MB of memory, 4 MB are kept for models"
    ) as refused:
        plane.ask(version)

    assert refused.value.instance_code == "MODEL_TOO_LARGE"
    assert footprint_bytes(version) > 4 * MB
    assert plane.blobs.fetches == 0


def test_the_bound_holds_under_many_threads_and_models(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=4 * MODEL_OVERHEAD_BYTES + 1000)
    versions = [plane.register(f"m{n}", float(n + 1)) for n in range(12)]
    held: list[int] = []

    def ask(n: int) -> float:
        version = versions[n * 7 % 12]
        found = plane.ask(version)
        held.append(sum(plane.models.holds(v) for v in versions))
        return found - (n * 7 % 12 + 1)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(300))) == {0.0}
    assert max(held) <= 4
    assert list(tmp_path.iterdir()) == []


def test_a_load_counts_its_peak_and_then_what_it_keeps(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=100 * MB)
    version = plane.register("m", measured={"resident_mb": 10.0, "peak_memory_mb": 30.0})
    seen = []

    class Seeing(MemoryBlobs):
        def fetch(self, blob: Blob, path: Path) -> None:
            seen.append(plane.models.held_bytes())
            super().fetch(blob, path)

    plane.models._blobs = seeing = Seeing()
    seeing.content = plane.blobs.content
    plane.ask(version)

    assert (loading_bytes(version), footprint_bytes(version)) == (
        30 * MB + MODEL_OVERHEAD_BYTES,
        10 * MB + MODEL_OVERHEAD_BYTES,
    )
    assert seen == [(loading_bytes(version), version.size_bytes)]
    assert plane.models.held_bytes() == (footprint_bytes(version), 0)


def test_a_peak_above_the_bound_has_the_memory_for_itself(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, memory_bytes=20 * MB)
    other = plane.register("m", 3.0)
    version = plane.register("m", 2.0, measured={"resident_mb": 10.0, "peak_memory_mb": 30.0})
    plane.ask(other)

    assert plane.ask(version) == 2.0
    assert not plane.models.holds(other)


def test_removed_files_that_are_mapped_take_storage(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, storage_bytes=2500)
    versions = [wide(plane, n) for n in (1.0, 2.0, 3.0)]
    small = plane.register("small", 4.0)
    plane.ask(small)
    for version in versions[:2]:
        plane.ask(version)
    assert plane.models.held_bytes()[1] == 2000

    plane.ask(versions[2])

    held = [plane.models.holds(version) for version in (small, *versions)]
    assert held == [True, False, True, True]  # the small one has no file: it makes no room
    assert plane.models.held_bytes()[1] == 2000


def test_a_model_that_storage_can_never_hold_is_not_downloaded(tmp_path: Path) -> None:
    plane = ClockedPlane(tmp_path, storage_bytes=1000)
    version = wide(plane, 2.0)

    error = plane.refusal(version)

    assert (error.instance_code, plane.blobs.fetches) == ("MODEL_TOO_LARGE", 0)
    assert "takes 0 MB of temporary storage, there are 0 MB" in str(error)


def test_by_default_what_is_free_is_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        model_cache, "_free_bytes", lambda _: model_cache.STORAGE_RESERVE_BYTES + 1000
    )
    plane = ClockedPlane(tmp_path)

    assert plane.refusal(wide(plane, 2.0)).instance_code == "MODEL_TOO_LARGE"
    assert plane.ask(wide(plane, 2.0, weights=900)) == 2.0


def test_an_evicted_session_is_gone(tmp_path: Path) -> None:
    """Nothing of the cache, of a request or of an error holds on to it."""
    plane = ClockedPlane(tmp_path, memory_bytes=MODEL_OVERHEAD_BYTES + 100)
    one, two = plane.register("m", 1.0), plane.register("m", 2.0)
    with plane.models.session(one, plane.cache_clock.now + 60) as session:
        gone = weakref.ref(session)
        del session
        assert plane.refusal(two).instance_code == "MODELS_BUSY"

    gc.disable()
    try:
        plane.ask(two)
        assert gone() is None
    finally:
        gc.enable()
