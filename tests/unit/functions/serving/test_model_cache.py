"""Many models in one environment: what is counted, what fails and for how long, what is loaded ahead."""

import ctypes
import errno
import gc
import logging
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from functions.core.errors import InvalidModel, PlatformError, Unavailable
from functions.core.registry.load_plan import Plan
from functions.core.registry.version import Blob, Version
from functions.core.serving import model_cache
from functions.core.serving.model_cache import (
    MB,
    MODEL_OVERHEAD_BYTES,
    ModelCache,
    footprint_bytes,
    loading_bytes,
)
from functions.core.serving.preload import parse_names, preload
from tests.data_plane import Clock, DataPlane, ScaleSession
from tests.fakes import MemoryBlobs

PLAN = {"optimised": "extended", "prepacking": False, "threads": 1, "warmup": True, "layout": False}


class Cached(DataPlane):
    """A plane whose cache has a clock that moves when told to."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory)
        self.now = Clock()
        options = {"memory_bytes": 1 << 30, **options}
        self.models = ModelCache(
            self.blobs, self.runtime, directory=directory, clock=self.now, **options
        )

    def ask(self, version: Version, seconds: float = 60.0) -> float:
        with self.models.session(version, self.now.now + seconds) as session:
            return session.factor  # type: ignore[attr-defined, no-any-return]

    def refused(self, version: Version) -> PlatformError:
        with pytest.raises(PlatformError) as caught:
            self.ask(version)
        return caught.value


@pytest.fixture
def plane(tmp_path: Path) -> Cached:
    return Cached(tmp_path)


def wide(plane: DataPlane, factor: float, graph: int = 10, weights: int = 1000) -> Version:
    """A version with a file of weights, which the runtime maps."""
    text = f"{factor} "
    files = (
        plane.blobs.add("model.onnx", text.ljust(graph).encode()),
        plane.blobs.add("weights.bin", text.ljust(weights).encode()),
    )
    return replace(plane.register("wide", factor), files=files)


# --- what is counted --------------------------------------------------------------------------------------------------


def test_a_load_counts_its_peak_and_then_what_it_keeps(tmp_path: Path) -> None:
    plane = Cached(tmp_path, memory_bytes=100 * MB)
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
    plane = Cached(tmp_path, memory_bytes=20 * MB)
    other = plane.register("m", 3.0)
    version = plane.register("m", 2.0, measured={"resident_mb": 10.0, "peak_memory_mb": 30.0})
    plane.ask(other)

    assert plane.ask(version) == 2.0
    assert not plane.models.holds(other)


def test_removed_files_that_are_mapped_take_storage(tmp_path: Path) -> None:
    plane = Cached(tmp_path, storage_bytes=2500)
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
    plane = Cached(tmp_path, storage_bytes=1000)
    version = wide(plane, 2.0)

    error = plane.refused(version)

    assert (error.instance_code, plane.blobs.fetches) == ("MODEL_TOO_LARGE", 0)
    assert "takes 0 MB of temporary storage, there are 0 MB" in str(error)


def test_by_default_what_is_free_is_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        model_cache, "_free_bytes", lambda _: model_cache.STORAGE_RESERVE_BYTES + 1000
    )
    plane = Cached(tmp_path)

    assert plane.refused(wide(plane, 2.0)).instance_code == "MODEL_TOO_LARGE"
    assert plane.ask(wide(plane, 2.0, weights=900)) == 2.0


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "MODELS_BUSY"), (errno.ENOMEM, "MODEL_TOO_LARGE")]
)
def test_what_the_system_lacks_is_no_bug(
    plane: Cached, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def full(blob: Blob, path: Path) -> None:
        raise OSError(number, "no")

    version = plane.register("m")
    monkeypatch.setattr(plane.blobs, "fetch", full)

    assert plane.refused(version).instance_code == code


def test_one_session_is_made_at_a_time(tmp_path: Path) -> None:
    plane = Cached(tmp_path)
    making, most = [], []
    both = threading.Barrier(2)

    class Runtime:
        def load(self, path: Path, plan: Plan | None = None) -> ScaleSession:
            making.append(path)
            most.append(len(making))
            making.remove(path)
            return ScaleSession(float(path.read_bytes()), plane.runtime)

    class Together(MemoryBlobs):
        def fetch(self, blob: Blob, path: Path) -> None:
            both.wait(10)  # downloads do not wait for each other
            super().fetch(blob, path)

    versions = [plane.register("m", n) for n in (1.0, 2.0)]
    blobs = Together()
    blobs.content = plane.blobs.content
    plane.models = ModelCache(
        blobs, Runtime(), memory_bytes=MB * 100, directory=tmp_path, clock=plane.now
    )
    threads = [threading.Thread(target=plane.ask, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert most == [1, 1]


def test_the_files_of_a_model_are_fetched_at_once(tmp_path: Path) -> None:
    plane = Cached(tmp_path)
    both = threading.Barrier(2)

    class Together(MemoryBlobs):
        def fetch(self, blob: Blob, path: Path) -> None:
            both.wait(10)
            super().fetch(blob, path)

    version = wide(plane, 2.0)
    plane.models._blobs = blobs = Together()
    blobs.content = plane.blobs.content

    assert plane.ask(version) == 2.0
    assert plane.runtime.seen == [["model.onnx", "weights.bin"]]


def test_files_that_cannot_be_fetched_end_the_load(plane: Cached) -> None:
    version = wide(plane, 2.0)
    del plane.blobs.content[version.files[1].key]

    assert plane.refused(version).instance_code == "BLOB_MISSING"
    assert list(plane.directory.iterdir()) == []


def test_without_memory_for_a_thread_files_are_fetched_one_by_one(
    plane: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "fetch":
            raise RuntimeError("can't start new thread")
        start(thread)

    version = wide(plane, 2.0)
    monkeypatch.setattr(threading.Thread, "start", refuse)

    assert plane.ask(version) == 2.0
    assert plane.runtime.seen == [["model.onnx", "weights.bin"]]


def test_an_evicted_session_is_gone(tmp_path: Path) -> None:
    """Nothing of the cache, of a request or of an error holds on to it."""
    plane = Cached(tmp_path, memory_bytes=MODEL_OVERHEAD_BYTES + 100)
    one, two = plane.register("m", 1.0), plane.register("m", 2.0)
    with plane.models.session(one, plane.now.now + 60) as session:
        gone = weakref.ref(session)
        del session
        assert plane.refused(two).instance_code == "MODELS_BUSY"

    gc.disable()
    try:
        plane.ask(two)
        assert gone() is None
    finally:
        gc.enable()


# --- what fails, and for how long -------------------------------------------------------------------------------------

FAILURES = [
    (InvalidModel("x", code="NOT_LOADABLE"), model_cache.FAILED_SECONDS, "NOT_LOADABLE"),
    (MemoryError(), model_cache.FAILED_SECONDS, "MODEL_TOO_LARGE"),
    (Unavailable("storage does not answer"), model_cache.UNAVAILABLE_SECONDS, "UNAVAILABLE"),
]


@pytest.mark.parametrize(
    ("failure", "seconds", "code"), FAILURES, ids=["invalid", "too large", "unavailable"]
)
def test_a_model_that_could_not_be_loaded_is_not_downloaded_again_for_a_while(
    plane: Cached, failure: BaseException, seconds: float, code: str
) -> None:
    plane.runtime.refusals = [failure]
    version = plane.register("m")
    first = plane.refused(version)
    plane.now.now += seconds - 0.5

    again = plane.refused(version)

    assert (first.instance_code, again.instance_code, type(again)) == (code, code, type(first))
    assert plane.blobs.fetches == 1
    if isinstance(again, Unavailable):
        assert first.retry_after_s == seconds  # type: ignore[attr-defined]
        assert again.retry_after_s == 1
    plane.now.now += 0.5
    assert plane.ask(version) == 2.0
    assert plane.blobs.fetches == 2


def test_a_load_that_lacks_memory_beside_models_in_use_is_too_large_for_now_only(
    plane: Cached,
) -> None:
    used, version = plane.register("m", 1.0), plane.register("m", 2.0)
    with plane.models.session(used, plane.now.now + 60):
        plane.runtime.refusals = [MemoryError()]
        assert plane.refused(version).instance_code == "MODELS_BUSY"
        plane.now.now += model_cache.UNAVAILABLE_SECONDS
        assert plane.ask(version) == 2.0


def test_a_failure_concerns_its_own_model_and_few_are_remembered(
    plane: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "FAILURES", 3)
    versions = [plane.register("m", f"no number {n}".encode()) for n in range(5)]
    for version in versions:
        assert plane.refused(version).instance_code == "NOT_LOADABLE"
    assert plane.ask(plane.register("m", 7.0)) == 7.0
    fetches = plane.blobs.fetches

    for version in reversed(versions):
        plane.refused(version)

    assert plane.blobs.fetches == fetches + 2
    assert len(plane.models._failures) == 3


def test_a_bug_in_a_load_says_where_it_is(plane: Cached) -> None:
    plane.runtime.refusals = [ValueError("a bug")]

    with pytest.raises(ValueError, match="a bug") as caught:
        plane.ask(plane.register("m"))

    assert caught.traceback[-1].name == "load"
    assert caught.value.__traceback__ is not None


def test_failures_hold_on_to_no_request(plane: Cached) -> None:
    class Body:
        pass

    version = plane.register("m", b"no number")

    def request() -> "weakref.ref[Body]":
        body = Body()
        plane.refused(version)
        return weakref.ref(body)

    kept = [request() for _ in range(3)]
    gc.collect()
    assert [one() for one in kept] == [None] * 3


class Dying(MemoryBlobs):
    """Storage whose next fetches fail, as connections do that died while the environment was frozen."""

    def __init__(self, failures: int, code: str | None = None) -> None:
        super().__init__()
        self.failures, self.code = failures, code

    def fetch(self, blob: Blob, path: Path) -> None:
        self.failures -= 1
        if self.failures >= 0:
            self.fetches += 1
            raise Unavailable("storage cannot be reached; try again", code=self.code)
        super().fetch(blob, path)


@pytest.mark.parametrize(
    ("failures", "code", "fetches", "answered"),
    [(1, None, 2, True), (2, None, 2, False), (1, "BLOB_MISSING", 1, False)],
    ids=["once", "twice", "missing"],
)
def test_a_download_is_tried_once_more_where_that_may_help(
    plane: Cached, failures: int, code: str | None, fetches: int, answered: bool
) -> None:
    version = plane.register("m")
    plane.models._blobs = blobs = Dying(failures, code)
    blobs.content = plane.blobs.content

    if answered:
        assert plane.ask(version) == 2.0
    else:
        plane.refused(version)
    assert blobs.fetches == fetches


def test_no_memory_for_a_thread_is_told_and_takes_nothing(
    plane: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    version = plane.register("m")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert plane.refused(version).instance_code == "MODELS_BUSY"
    assert plane.models.held_bytes() == (0, 0)
    plane.now.now += model_cache.UNAVAILABLE_SECONDS
    assert plane.ask(version) == 2.0


def test_models_are_loaded_with_the_stack_of_a_main_thread(plane: Cached) -> None:
    """glibc says how much: the attributes of the running thread."""
    sizes: list[int] = []
    libc = ctypes.CDLL(None)

    class Runtime:
        def load(self, path: Path, plan: Plan | None = None) -> ScaleSession:
            attributes, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
            libc.pthread_self.restype = ctypes.c_void_p
            assert not libc.pthread_getattr_np(ctypes.c_void_p(libc.pthread_self()), attributes)
            libc.pthread_attr_getstacksize(attributes, ctypes.byref(size))
            sizes.append(size.value)
            return ScaleSession(2.0, plane.runtime)

    before = threading.stack_size(1 * MB)
    try:
        plane.models._runtime = Runtime()
        plane.ask(plane.register("m"))
        assert threading.stack_size() == 1 * MB
    finally:
        threading.stack_size(before)
    assert sizes[0] >= 8 * MB - 64 * 1024


# --- what is loaded ahead ---------------------------------------------------------------------------------------------


def sampled(plane: DataPlane, model: str, factor: float, **record: Any) -> Version:
    document = b'{"request": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}}'
    return plane.register(
        model, factor, plan=PLAN, sample=plane.blobs.add("sample.json", document), **record
    )


def wait_for_loads() -> None:
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(10)


def test_a_load_whose_request_gave_up_warms_up(plane: Cached) -> None:
    plane.runtime.gate = threading.Event()
    version = sampled(plane, "m", 2.0)
    with pytest.raises(Unavailable, match="still loading"):
        plane.ask(version, seconds=0.0)

    plane.runtime.gate.set()
    wait_for_loads()

    assert plane.runtime.runs == [2.0]
    assert plane.ask(version) == 2.0
    assert plane.runtime.runs == [2.0]


def test_names_to_preload() -> None:
    assert parse_names("") == []
    assert parse_names(" digits, faces:latest,,faces:3 ") == [
        ("digits", None),
        ("faces", "latest"),
        ("faces", 3),
    ]


def test_models_are_preloaded_with_a_warm_up_and_answer_warm(plane: Cached) -> None:
    one, two = sampled(plane, "one", 1.0), sampled(plane, "two", 2.0)

    preload(
        parse_names("one,two:latest"), plane.resolver, plane.models, plane.now.now + 60, plane.now
    )

    assert sorted(plane.runtime.runs) == [1.0, 2.0]
    assert plane.models.holds(one)
    assert plane.models.holds(two)
    reads = plane.table.reads
    plane.resolver.resolve("one", None)
    assert plane.table.reads == reads


def test_what_cannot_be_preloaded_is_a_line_in_the_log(
    plane: Cached, caplog: pytest.LogCaptureFixture
) -> None:
    good = sampled(plane, "good", 1.0)
    plane.register("broken", b"no number")
    plane.claim("pending")
    plane.register("bug", 4.0)
    plane.runtime.failure = ValueError("in the warm-up")

    with caplog.at_level(logging.WARNING):
        names = "unknown,broken,pending,NOT A NAME,good:nowhere,good:99999999999,good"
        preload(parse_names(names), plane.resolver, plane.models, plane.now.now + 60, plane.now)

    assert plane.models.holds(good)
    lines = [record.getMessage() for record in caplog.records]
    refused = [line.split(":")[1].strip() for line in lines if line.startswith("not preloaded")]
    assert sorted(refused) == ["NOT A NAME", "broken", "good", "good", "pending", "unknown"]
    assert all("\n" not in line for line in lines)


def test_the_budget_of_preloading_ends_it_and_the_loads_go_on(
    plane: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    plane.runtime.gate = threading.Event()
    fetch = plane.blobs.fetch

    def seen(blob: Blob, path: Path) -> None:
        fetch(blob, path)
        begun.set()

    monkeypatch.setattr(plane.blobs, "fetch", seen)
    version = plane.register("m", 2.0)
    preload([("m", None)], plane.resolver, plane.models, plane.now.now, plane.now)  # no time at all
    assert plane.blobs.fetches == 0

    preload([("m", None)], plane.resolver, plane.models, plane.now.now + 0.05, plane.now)
    assert begun.wait(10)
    assert not plane.models.holds(version)
    plane.runtime.gate.set()
    wait_for_loads()

    assert plane.models.holds(version)


def test_preloading_evicts_nothing(tmp_path: Path) -> None:
    plane = Cached(tmp_path, memory_bytes=2 * MODEL_OVERHEAD_BYTES + 100)
    versions = [plane.register(f"m{n}", float(n)) for n in range(4)]

    for n in range(4):  # one after the other
        preload([(f"m{n}", None)], plane.resolver, plane.models, plane.now.now + 60, plane.now)

    assert [plane.models.holds(version) for version in versions] == [True, True, False, False]


def test_a_request_for_a_model_that_is_being_preloaded_waits_for_it(plane: Cached) -> None:
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
