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
    """A world whose cache has a clock that moves when told to."""

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
def world(tmp_path: Path) -> Cached:
    return Cached(tmp_path)


def wide(world: DataPlane, factor: float, graph: int = 10, weights: int = 1000) -> Version:
    """A version with a file of weights, which the runtime maps."""
    text = f"{factor} "
    files = (
        world.blobs.add("model.onnx", text.ljust(graph).encode()),
        world.blobs.add("weights.bin", text.ljust(weights).encode()),
    )
    return replace(world.register("wide", factor), files=files)


# --- what is counted --------------------------------------------------------------------------------------------------


def test_a_load_counts_its_peak_and_then_what_it_keeps(tmp_path: Path) -> None:
    world = Cached(tmp_path, memory_bytes=100 * MB)
    version = world.register("m", measured={"resident_mb": 10.0, "peak_memory_mb": 30.0})
    seen = []

    class Seeing(MemoryBlobs):
        def fetch(self, blob: Blob, path: Path) -> None:
            seen.append(world.models.held_bytes())
            super().fetch(blob, path)

    world.models._blobs = seeing = Seeing()
    seeing.content = world.blobs.content
    world.ask(version)

    assert (loading_bytes(version), footprint_bytes(version)) == (
        30 * MB + MODEL_OVERHEAD_BYTES,
        10 * MB + MODEL_OVERHEAD_BYTES,
    )
    assert seen == [(loading_bytes(version), version.size_bytes)]
    assert world.models.held_bytes() == (footprint_bytes(version), 0)


def test_a_peak_above_the_bound_has_the_memory_for_itself(tmp_path: Path) -> None:
    world = Cached(tmp_path, memory_bytes=20 * MB)
    other = world.register("m", 3.0)
    version = world.register("m", 2.0, measured={"resident_mb": 10.0, "peak_memory_mb": 30.0})
    world.ask(other)

    assert world.ask(version) == 2.0
    assert not world.models.holds(other)


def test_removed_files_that_are_mapped_take_storage(tmp_path: Path) -> None:
    world = Cached(tmp_path, storage_bytes=2500)
    versions = [wide(world, n) for n in (1.0, 2.0, 3.0)]
    small = world.register("small", 4.0)
    world.ask(small)
    for version in versions[:2]:
        world.ask(version)
    assert world.models.held_bytes()[1] == 2000

    world.ask(versions[2])

    held = [world.models.holds(version) for version in (small, *versions)]
    assert held == [True, False, True, True]  # the small one has no file: it makes no room
    assert world.models.held_bytes()[1] == 2000


def test_a_model_that_storage_can_never_hold_is_not_downloaded(tmp_path: Path) -> None:
    world = Cached(tmp_path, storage_bytes=1000)
    version = wide(world, 2.0)

    error = world.refused(version)

    assert (error.instance_code, world.blobs.fetches) == ("MODEL_TOO_LARGE", 0)
    assert "takes 0 MB of temporary storage, there are 0 MB" in str(error)


def test_by_default_what_is_free_is_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        model_cache, "_free_bytes", lambda _: model_cache.STORAGE_RESERVE_BYTES + 1000
    )
    world = Cached(tmp_path)

    assert world.refused(wide(world, 2.0)).instance_code == "MODEL_TOO_LARGE"
    assert world.ask(wide(world, 2.0, weights=900)) == 2.0


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "MODELS_BUSY"), (errno.ENOMEM, "MODEL_TOO_LARGE")]
)
def test_what_the_system_lacks_is_no_bug(
    world: Cached, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    def full(blob: Blob, path: Path) -> None:
        raise OSError(number, "no")

    version = world.register("m")
    monkeypatch.setattr(world.blobs, "fetch", full)

    assert world.refused(version).instance_code == code


def test_one_session_is_made_at_a_time(tmp_path: Path) -> None:
    world = Cached(tmp_path)
    making, most = [], []
    both = threading.Barrier(2)

    class Runtime:
        def load(self, path: Path, plan: Plan | None = None) -> ScaleSession:
            making.append(path)
            most.append(len(making))
            making.remove(path)
            return ScaleSession(float(path.read_bytes()), world.runtime)

    class Together(MemoryBlobs):
        def fetch(self, blob: Blob, path: Path) -> None:
            both.wait(10)  # downloads do not wait for each other
            super().fetch(blob, path)

    versions = [world.register("m", n) for n in (1.0, 2.0)]
    blobs = Together()
    blobs.content = world.blobs.content
    world.models = ModelCache(
        blobs, Runtime(), memory_bytes=MB * 100, directory=tmp_path, clock=world.now
    )
    threads = [threading.Thread(target=world.ask, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert most == [1, 1]


def test_the_files_of_a_model_are_fetched_at_once(tmp_path: Path) -> None:
    world = Cached(tmp_path)
    both = threading.Barrier(2)

    class Together(MemoryBlobs):
        def fetch(self, blob: Blob, path: Path) -> None:
            both.wait(10)
            super().fetch(blob, path)

    version = wide(world, 2.0)
    world.models._blobs = blobs = Together()
    blobs.content = world.blobs.content

    assert world.ask(version) == 2.0
    assert world.runtime.seen == [["model.onnx", "weights.bin"]]


def test_files_that_cannot_be_fetched_end_the_load(world: Cached) -> None:
    version = wide(world, 2.0)
    del world.blobs.content[version.files[1].key]

    assert world.refused(version).instance_code == "BLOB_MISSING"
    assert list(world.directory.iterdir()) == []


def test_without_memory_for_a_thread_files_are_fetched_one_by_one(
    world: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "fetch":
            raise RuntimeError("can't start new thread")
        start(thread)

    version = wide(world, 2.0)
    monkeypatch.setattr(threading.Thread, "start", refuse)

    assert world.ask(version) == 2.0
    assert world.runtime.seen == [["model.onnx", "weights.bin"]]


def test_an_evicted_session_is_gone(tmp_path: Path) -> None:
    """Nothing of the cache, of a request or of an error holds on to it."""
    world = Cached(tmp_path, memory_bytes=MODEL_OVERHEAD_BYTES + 100)
    one, two = world.register("m", 1.0), world.register("m", 2.0)
    with world.models.session(one, world.now.now + 60) as session:
        gone = weakref.ref(session)
        del session
        assert world.refused(two).instance_code == "MODELS_BUSY"

    gc.disable()
    try:
        world.ask(two)
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
    world: Cached, failure: BaseException, seconds: float, code: str
) -> None:
    world.runtime.refusals = [failure]
    version = world.register("m")
    first = world.refused(version)
    world.now.now += seconds - 0.5

    again = world.refused(version)

    assert (first.instance_code, again.instance_code, type(again)) == (code, code, type(first))
    assert world.blobs.fetches == 1
    if isinstance(again, Unavailable):
        assert first.retry_after_s == seconds  # type: ignore[attr-defined]
        assert again.retry_after_s == 1
    world.now.now += 0.5
    assert world.ask(version) == 2.0
    assert world.blobs.fetches == 2


def test_a_load_that_lacks_memory_beside_models_in_use_is_too_large_for_now_only(
    world: Cached,
) -> None:
    used, version = world.register("m", 1.0), world.register("m", 2.0)
    with world.models.session(used, world.now.now + 60):
        world.runtime.refusals = [MemoryError()]
        assert world.refused(version).instance_code == "MODELS_BUSY"
        world.now.now += model_cache.UNAVAILABLE_SECONDS
        assert world.ask(version) == 2.0


def test_a_failure_concerns_its_own_model_and_few_are_remembered(
    world: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache, "FAILURES", 3)
    versions = [world.register("m", f"no number {n}".encode()) for n in range(5)]
    for version in versions:
        assert world.refused(version).instance_code == "NOT_LOADABLE"
    assert world.ask(world.register("m", 7.0)) == 7.0
    fetches = world.blobs.fetches

    for version in reversed(versions):
        world.refused(version)

    assert world.blobs.fetches == fetches + 2
    assert len(world.models._failures) == 3


def test_a_bug_in_a_load_says_where_it_is(world: Cached) -> None:
    world.runtime.refusals = [ValueError("a bug")]

    with pytest.raises(ValueError, match="a bug") as caught:
        world.ask(world.register("m"))

    assert caught.traceback[-1].name == "load"
    assert caught.value.__traceback__ is not None


def test_failures_hold_on_to_no_request(world: Cached) -> None:
    class Body:
        pass

    version = world.register("m", b"no number")

    def request() -> "weakref.ref[Body]":
        body = Body()
        world.refused(version)
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
    world: Cached, failures: int, code: str | None, fetches: int, answered: bool
) -> None:
    version = world.register("m")
    world.models._blobs = blobs = Dying(failures, code)
    blobs.content = world.blobs.content

    if answered:
        assert world.ask(version) == 2.0
    else:
        world.refused(version)
    assert blobs.fetches == fetches


def test_no_memory_for_a_thread_is_told_and_takes_nothing(
    world: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    version = world.register("m")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert world.refused(version).instance_code == "MODELS_BUSY"
    assert world.models.held_bytes() == (0, 0)
    world.now.now += model_cache.UNAVAILABLE_SECONDS
    assert world.ask(version) == 2.0


def test_models_are_loaded_with_the_stack_of_a_main_thread(world: Cached) -> None:
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
            return ScaleSession(2.0, world.runtime)

    before = threading.stack_size(1 * MB)
    try:
        world.models._runtime = Runtime()
        world.ask(world.register("m"))
        assert threading.stack_size() == 1 * MB
    finally:
        threading.stack_size(before)
    assert sizes[0] >= 8 * MB - 64 * 1024


# --- what is loaded ahead ---------------------------------------------------------------------------------------------


def sampled(world: DataPlane, model: str, factor: float, **record: Any) -> Version:
    document = b'{"request": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}}'
    return world.register(
        model, factor, plan=PLAN, sample=world.blobs.add("sample.json", document), **record
    )


def wait_for_loads() -> None:
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(10)


def test_a_load_whose_request_gave_up_warms_up(world: Cached) -> None:
    world.runtime.gate = threading.Event()
    version = sampled(world, "m", 2.0)
    with pytest.raises(Unavailable, match="still loading"):
        world.ask(version, seconds=0.0)

    world.runtime.gate.set()
    wait_for_loads()

    assert world.runtime.runs == [2.0]
    assert world.ask(version) == 2.0
    assert world.runtime.runs == [2.0]


def test_names_to_preload() -> None:
    assert parse_names("") == []
    assert parse_names(" digits, faces:latest,,faces:3 ") == [
        ("digits", None),
        ("faces", "latest"),
        ("faces", 3),
    ]


def test_models_are_preloaded_with_a_warm_up_and_answer_warm(world: Cached) -> None:
    one, two = sampled(world, "one", 1.0), sampled(world, "two", 2.0)

    preload(
        parse_names("one,two:latest"), world.resolver, world.models, world.now.now + 60, world.now
    )

    assert sorted(world.runtime.runs) == [1.0, 2.0]
    assert world.models.holds(one)
    assert world.models.holds(two)
    reads = world.table.reads
    world.resolver.resolve("one", None)
    assert world.table.reads == reads


def test_what_cannot_be_preloaded_is_a_line_in_the_log(
    world: Cached, caplog: pytest.LogCaptureFixture
) -> None:
    good = sampled(world, "good", 1.0)
    world.register("broken", b"no number")
    world.claim("pending")
    world.register("bug", 4.0)
    world.runtime.failure = ValueError("in the warm-up")

    with caplog.at_level(logging.WARNING):
        names = "unknown,broken,pending,NOT A NAME,good:nowhere,good:99999999999,good"
        preload(parse_names(names), world.resolver, world.models, world.now.now + 60, world.now)

    assert world.models.holds(good)
    lines = [record.getMessage() for record in caplog.records]
    refused = [line.split(":")[1].strip() for line in lines if line.startswith("not preloaded")]
    assert sorted(refused) == ["NOT A NAME", "broken", "good", "good", "pending", "unknown"]
    assert all("\n" not in line for line in lines)


def test_the_budget_of_preloading_ends_it_and_the_loads_go_on(
    world: Cached, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    world.runtime.gate = threading.Event()
    fetch = world.blobs.fetch

    def seen(blob: Blob, path: Path) -> None:
        fetch(blob, path)
        begun.set()

    monkeypatch.setattr(world.blobs, "fetch", seen)
    version = world.register("m", 2.0)
    preload([("m", None)], world.resolver, world.models, world.now.now, world.now)  # no time at all
    assert world.blobs.fetches == 0

    preload([("m", None)], world.resolver, world.models, world.now.now + 0.05, world.now)
    assert begun.wait(10)
    assert not world.models.holds(version)
    world.runtime.gate.set()
    wait_for_loads()

    assert world.models.holds(version)


def test_preloading_evicts_nothing(tmp_path: Path) -> None:
    world = Cached(tmp_path, memory_bytes=2 * MODEL_OVERHEAD_BYTES + 100)
    versions = [world.register(f"m{n}", float(n)) for n in range(4)]

    for n in range(4):  # one after the other
        preload([(f"m{n}", None)], world.resolver, world.models, world.now.now + 60, world.now)

    assert [world.models.holds(version) for version in versions] == [True, True, False, False]


def test_a_request_for_a_model_that_is_being_preloaded_waits_for_it(world: Cached) -> None:
    world.runtime.gate = threading.Event()
    version = world.register("m")
    with pytest.raises(Unavailable):
        world.ask(version, seconds=0.0)
    answers: list[float] = []
    thread = threading.Thread(target=lambda: answers.append(world.ask(version)))
    thread.start()
    world.runtime.gate.set()
    thread.join(10)

    assert answers == [2.0]
    assert world.runtime.loads == [2.0]
